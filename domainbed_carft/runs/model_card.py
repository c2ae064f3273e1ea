"""The card of an export: what it holds and how it was made, as JSON and as a page for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import text
from domainbed_carft.clips import backbone, openai
from domainbed_carft.data import benchmarks
from domainbed_carft.files.weights import sha256
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.jobs.setting import printed_versions
from domainbed_carft.pictures.protocols import PROTOCOLS
from domainbed_carft.results.formats import escape_markdown
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.soup_members import DESCRIBING, SAME_ARGS
from domainbed_carft.version import __version__

# The arguments of a run by which it is repeated; not those that only say where files are.
REPEATED_ARGS = (
    "algorithm",
    "dataset",
    "test_envs",
    "hparams_seed",
    "trial_seed",
    "seed",
    "holdout_fraction",
    "uda_holdout_fraction",
    "task",
    "steps",
    "checkpoint_freq",
)
# Those of them that a soup keeps.
SOUP_ARGS = ("algorithm", *SAME_ARGS, "task")

CLIP_HEAD_WIDTH = 64  # of the text encoder's attention heads, in all of OpenAI's CLIPs


def card_of(
    run: TrainedRun,
    clip: backbone.Backbone,
    state: Mapping[str, Tensor],
    *,
    weights: Path,
    head: Path,
) -> dict[str, Any]:
    """The card, for JSON.

    ``clip``: the original; ``state``: the exported state dict; ``weights``, ``head``: its files.
    """
    protocol = run.hparams["protocol"]
    architecture = json.loads(clip.architecture or "{}")
    config = architecture.get("model_cfg") or open_clip_config(clip.model)
    is_half = any(tensor.dtype == torch.float16 for tensor in state.values())
    card = {
        "format": "open_clip folder" if architecture else "OpenAI CLIP state dict",
        "quick_gelu": bool(config.get("quick_gelu")),
        "precision": "fp16" if is_half else "fp32",
        "open_clip_name": open_clip_name(clip.name),
        "open_clip_config": config,
        "weights": _file_facts(weights),
        "head": _file_facts(head),
        "original": {"name": run.hparams["clip_backbone"], "sha256": clip.digest},
        "text_encoder": text_encoder(run),
        "run": run_facts(run),
        "classes": run.classes,
        "contexts": run.contexts,
        "pictures": {  # side lengths in pixels, mean and deviation of [0, 1]
            **clip.preprocessing._asdict(),
            "protocol": protocol,
            "means": PROTOCOLS[protocol],
            "data_set_size": run.content["model_input_shape"][-1],
        },
        "versions": {"domainbed_carft": __version__, "torch": torch.__version__},
    }
    # JSON has no word for what is not a number.
    serialised = json.dumps(card, default=str)
    return dict(json.loads(serialised, parse_constant=lambda name: None))


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}


def open_clip_config(model: Any) -> dict[str, Any]:
    """The architecture of a ``clip.model.CLIP`` as an open_clip configuration."""
    visual = model.visual
    text_transformer = model.transformer
    if hasattr(visual, "transformer"):
        layers = visual.transformer.layers
        width = visual.transformer.width
        patch_size = visual.conv1.kernel_size[0]
    else:  # a ResNet
        layers = [len(getattr(visual, f"layer{n}")) for n in range(1, 5)]
        width = visual.layer1[0].conv1.out_channels
        patch_size = None

    return {
        "embed_dim": model.text_projection.shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": visual.input_resolution,
            "layers": layers,
            "width": width,
            "patch_size": patch_size,
        },
        "text_cfg": {
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "width": text_transformer.width,
            "heads": text_transformer.width // CLIP_HEAD_WIDTH,
            "layers": text_transformer.layers,
        },
    }


def open_clip_name(name: str) -> str | None:
    """What open_clip calls one of OpenAI's CLIPs with QuickGELU; None for any other."""
    if name not in openai.OPENAI_WEIGHTS:
        return None
    return name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def text_encoder(run: TrainedRun) -> dict[str, str]:
    """Which text encoder the export has, and which the heads are of: "original" or "fine-tuned".

    Context weights and their scale are always the original's, as in the run's own predictions.
    """
    state = "fine-tuned" if run.algorithm.trains_text else "original"
    return {
        "weights": state,
        "logit_scale": state,
        "class_head": state,
        "context_head": "original",
    }


def run_facts(run: TrainedRun) -> dict[str, Any]:
    """What the card says of the run: arguments, settings, accuracies, how it was made."""
    is_soup = run.soup is not None
    known_args = SOUP_ARGS if is_soup else REPEATED_ARGS
    arguments = {name: run.args.get(name) if name in known_args else None for name in REPEATED_ARGS}
    record = {} if is_soup else _record_of(run, arguments)

    environments = _environment_names(arguments["dataset"], record)
    targets = [f"env{index}" for index in arguments["test_envs"] or ()]
    hparams = dict(run.hparams)
    if is_soup:  # which has no settings of a training
        hparams = {name: value for name, value in hparams.items() if name in DESCRIBING}

    return {
        "title": run.title,
        "soup": run.soup,
        **arguments,
        "test_environments": [environments.get(target, target) for target in targets],
        "file": run.path.name,
        "wise_ft_alpha": run.alpha,
        "wise_ft_layers": run.layers,
        "step": record.get("step", None if is_soup else run.step),
        "accuracies": _accuracies(record, environments),
        "data_edition": run.hparams.get("data_edition", ""),
        "prompts_digest": run.hparams["prompts_digest"],
        "clip_digest": run.hparams["clip_digest"],
        "hparams": hparams,
        "versions": printed_versions(run.path.parent) if record else {},
        "command": None if is_soup else _command(run, arguments),
    }


def _record_of(run: TrainedRun, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The last record of the job that is of these weights; {} if there is none."""
    if run.alpha is not None:  # no record is of weights that nobody has trained
        return {}

    matching = [
        record
        for record in records.read_file(run.path.parent / RECORDS)[0]
        if all(record["args"].get(name) == value for name, value in arguments.items())
        and run.step in (None, record["step"])
    ]
    return max(matching, key=lambda record: float(record["step"]), default={})


def _environment_names(dataset: Any, record: Mapping[str, Any]) -> dict[str, str]:
    """From env0, env1, ... to the environments' names, as the record or the benchmark has them."""
    names = record.get("environments")
    if not isinstance(names, list):
        benchmark = benchmarks.BENCHMARKS.get(str(dataset))
        names = [environment.folder for environment in getattr(benchmark, "environments", ())]
    return {f"env{index}": str(name) for index, name in enumerate(names)}


def _accuracies(
    record: Mapping[str, Any], environments: Mapping[str, str]
) -> dict[str, dict[str, float | None]]:
    """The record's accuracies on in-split and out-split, by environment."""
    shares = {name: value for name, value in record.items() if isinstance(value, float)}
    accuracies = {}
    for index in range(len(record)):
        key = f"env{index}"
        if f"{key}_out_acc" in record:
            accuracies[environments.get(key, key)] = {
                "in": shares.get(f"{key}_in_acc"),
                "out": shares.get(f"{key}_out_acc"),
            }
    return accuracies


def _command(run: TrainedRun, arguments: Mapping[str, Any]) -> str:
    """The command line that trains the run again, without where its data is and its output goes."""
    return shlex.join(train_command({**arguments, "hparams": run.args.get("hparams")}))


def readme(card: Mapping[str, Any], card_file: str) -> str:
    """The card for people, in Markdown; ``card_file`` is the name of the JSON beside it."""
    environment = text.templates(autoescape=False)
    environment.filters["words"] = _markdown_text
    environment.filters["python"] = repr
    environment.filters["percent"] = _percent

    template = environment.get_template("model_card.md.j2")
    dataset = benchmarks.dataset_title(str(card["run"]["dataset"]))
    return template.render(card=card, card_file=card_file, dataset=dataset)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _markdown_text(value: Any) -> str:
    """A value as plain text within Markdown, also between the bars of a table."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape_markdown(plain)
