"""A run exported as a CLIP that other libraries read, its class head, and a card.

The CLIP is the original's state dict with the fine-tuned image encoder, in OpenAI's format, or for
open_clip's checkpoints a folder that its ``local-dir:`` loads. Neither has a place for a head. The
card says what the export holds and how it was made, as JSON and as a page for people.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import text
from domainbed_carft.arguments import FLAG, check
from domainbed_carft.clips import backbone, open_clip, openai
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.files import require_output, write_error
from domainbed_carft.files.weights import load_weights, sha256
from domainbed_carft.images.protocols import PROTOCOLS
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.jobs.setting import printed_versions
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.results.formats import escape_markdown
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import (
    AnyRun,
    architecture_of,
    load_run,
    original_clip,
    require_clip_with_head,
)
from domainbed_carft.runs.soup_members import DESCRIBING, SAME_ARGS
from domainbed_carft.version import __version__

SUFFIXES = (".pt", ".pth")
_TEXT_ENCODER = "text."  # how the names of a trained text encoder begin

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


@dataclass(frozen=True)
class ExportedFiles:
    """The files of one export, named after the weights, or in a folder of their own."""

    weights: Path
    head: Path
    card: Path
    readme: Path

    @classmethod
    def named_after(cls, weights: Path) -> ExportedFiles:
        """The files of an export in OpenAI's format, whose names begin as that of the weights."""
        return cls(
            weights=weights,
            head=weights.with_suffix(".head.pt"),
            card=weights.with_suffix(".json"),
            readme=weights.with_suffix(".md"),
        )

    @classmethod
    def inside(cls, folder: Path) -> ExportedFiles:
        """The files of an export for open_clip, all in one folder."""
        return cls(
            weights=folder / open_clip.WEIGHTS,
            head=folder / "head.pt",
            card=folder / "card.json",
            readme=folder / "README.md",
        )

    @property
    def paths(self) -> list[Path]:
        """All four files."""
        return [self.weights, self.head, self.card, self.readme]

    def as_dict(self) -> dict[str, str]:
        """The paths as text, by what the files hold."""
        return {name: str(path) for name, path in vars(self).items()}


def export(
    run: AnyRun,
    path: AnyPath,
    *,
    original: AnyPath | None = None,
    half: bool = False,
    force: bool = False,
) -> ExportedFiles:
    """Write a run as a CLIP that clip and open_clip load, with class head and card; returns where.

    ``path``: a name that ends in .pt; of a run that started from open_clip:..., a folder.
    ``original``: the CLIP that the run started from, needed unless that is a published one.
    ``half``: in half precision, as OpenAI publishes its weights. ``force``: overwrite. All files
    are written, or none is.

    Raises CarftError if a file is there already or cannot be written, if the original is missing or
    not the run's, for weights that are not finite, and for your own method if it predicts by more
    than the image encoder and the head.

    >>> files = export(job, folder / "clip.pt")
    >>> files.head.name, files.card.name
    ('clip.head.pt', 'clip.json')
    """
    check(FLAG, half=half, force=force)
    run = run if isinstance(run, Run) else load_run(run, device="cpu")
    require_clip_with_head(run)
    output = as_path(path)
    original = as_text(original)
    is_folder = bool(architecture_of(run))
    _require_fitting_name(run, output, is_folder, half)
    files = _files_of(output, is_folder)

    # A folder that is there gets its files replaced, one by one; else it appears whole.
    is_new_folder = is_folder and not os.path.lexists(output)
    for path in [output] if is_new_folder else files.paths:
        require_output(path, (run.path, original))
        if os.path.lexists(path) and not force:
            raise CarftError(f"{path} already exists; choose another name, or add --force")

    clip = original_clip(run, original)
    require_output(output if is_new_folder else files.weights, (clip.path,))
    state = _state_dict(run, clip, half)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".carft-export-") as temporary:
            staged = _files_of(Path(temporary, output.name), is_folder)
            _write(staged, run, clip, state, is_folder)

            staging_folder = staged.weights.parent
            staged_paths = [staging_folder] if is_new_folder else staging_folder.iterdir()
            target = output.parent if is_new_folder else files.weights.parent
            for path in staged_paths:
                os.replace(path, target / path.name)
    except (OSError, RuntimeError) as error:
        raise write_error(output, error) from error
    return files


def _files_of(output: Path, is_folder: bool) -> ExportedFiles:
    return ExportedFiles.inside(output) if is_folder else ExportedFiles.named_after(output)


def _require_fitting_name(run: Run, output: Path, is_folder: bool, half: bool) -> None:
    """Raise CarftError unless the name of the output fits what the run started from."""
    has_suffix = output.suffix in SUFFIXES
    if is_folder and (half or has_suffix):
        raise CarftError(
            f"-o {output} is for a run of a checkpoint of open_clip; expected the name of a "
            "folder, without --half"
        )
    if not is_folder and not has_suffix:
        raise CarftError(
            f"-o {output}: expected a name that ends in {' or '.join(SUFFIXES)}, since this run "
            f"started from {run.hparams['clip_backbone']!r}, which is no CLIP of open_clip; only "
            "runs that started from one are exported to a folder"
        )


def _write(
    files: ExportedFiles,
    run: Run,
    clip: backbone.Backbone,
    state: dict[str, Tensor],
    is_folder: bool,
) -> None:
    """Write all four files; raises OSError or RuntimeError where that fails."""
    if is_folder:
        folder = files.weights.parent
        folder.mkdir()
        open_clip.save(folder, state, clip.architecture, clip.tokenizer)
    _save(files.head, _head(run))
    if not is_folder:
        _save(files.weights, state)

    card = card_of(run, clip, state, weights=files.weights, head=files.head)
    files.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    page = readme(card, files.card.name)
    # "replace": file names need not be text.
    files.readme.write_text(page, encoding="utf-8", errors="replace")


def _save(path: Path, content: Any) -> None:
    with path.open("wb") as file:  # a file object: the name then changes no byte
        torch.save(content, file)


def _state_dict(run: Run, clip: backbone.Backbone, half: bool) -> dict[str, Tensor]:
    """The original's state dict with what the run trained; CarftError for values not finite."""
    model = clip.model
    model.visual.load_state_dict(run.algorithm.encoder.state_dict())
    if run.algorithm.trains_text:
        _load_text_encoder(model, load_weights(run.path)["model_dict"])

    if half:
        from clip.model import convert_weights

        convert_weights(model)

    state = dict(model.state_dict())
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        reason = "; try without --half" if half else ": the training diverged"
        raise CarftError(f"{not_finite[0]} has values that are not finite{reason}")
    return state


def _load_text_encoder(model: Any, run_state: dict[str, Tensor]) -> None:
    """Give a CLIP the text encoder and the logit scale that the run has trained."""
    state = {
        name.removeprefix(_TEXT_ENCODER).removeprefix("model."): tensor
        for name, tensor in run_state.items()
        if name.startswith(_TEXT_ENCODER)
    }
    state["logit_scale"] = run_state["log_scale"].reshape(model.logit_scale.shape)
    model.load_state_dict(state, strict=False)


def _head(run: Run) -> dict[str, Any]:
    """The head, which classifies the features: tensors and plain values only.

    Class logits are ``logit_scale`` * unit features . ``weight`` + ``bias``, context logits
    ``context_scale`` * unit features . ``context_weights``.
    """
    algorithm = run.algorithm
    context_scale = run.hparams["context_scale"]
    if isinstance(context_scale, str):
        context_scale = algorithm.logit_scale
    return {
        "weight": algorithm.head.weight.detach().cpu().clone(),
        "classes": run.classes,
        "bias": algorithm.head.bias.detach().cpu().clone(),
        "logit_scale": float(algorithm.head_factor),
        "context_weights": algorithm.context_weights.cpu().clone(),
        "contexts": run.contexts,
        "context_scale": float(context_scale),
    }


def card_of(
    run: Run,
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
        "images": {  # side lengths in pixels, mean and deviation of [0, 1]
            **clip.preprocessing._asdict(),
            "protocol": protocol,
            "means": PROTOCOLS[protocol],
            "dataset_size": run.content["model_input_shape"][-1],
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


def text_encoder(run: Run) -> dict[str, str]:
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


def run_facts(run: Run) -> dict[str, Any]:
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
        "step": record.get("step", None if is_soup else run.step),
        "accuracies": _accuracies(record, environments),
        "data_edition": run.hparams.get("data_edition", ""),
        "prompts_digest": run.hparams["prompts_digest"],
        "clip_digest": run.hparams["clip_digest"],
        "hparams": hparams,
        "versions": printed_versions(run.path.parent) if record else {},
        "command": None if is_soup else _command(run, arguments),
    }


def _record_of(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
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


def _command(run: Run, arguments: Mapping[str, Any]) -> str:
    """The command line that trains the run again, without where its data is and its output goes."""
    return shlex.join(train_command({**arguments, "hparams": run.args.get("hparams")}))


def readme(card: Mapping[str, Any], card_file: str) -> str:
    """The card for people, in Markdown; ``card_file`` is the name of the JSON beside it."""
    dataset = benchmarks.dataset_title(str(card["run"]["dataset"]))
    page: str = _readme_template().render(card=card, card_file=card_file, dataset=dataset)
    return page


@functools.cache
def _readme_template() -> Any:
    environment = text.load_templates(autoescape=False)
    environment.filters["words"] = _markdown_text
    environment.filters["python"] = repr
    environment.filters["percent"] = _percent
    return environment.get_template("model_card.md.j2")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _markdown_text(value: Any) -> str:
    """A value as plain text within Markdown, also between the bars of a table."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape_markdown(plain)
