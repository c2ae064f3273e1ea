"""`carft export`: a run as a CLIP that other libraries read, its class head, and a card.

The CLIP is the original's state dict with the fine-tuned image encoder, in OpenAI's format, or for
open_clip's checkpoints a folder that its ``local-dir:`` loads. Neither has a place for a head.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft import __version__, text
from domainbed_carft.clips import backbone, open_clip_models, openai_models, pictures
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.files import not_written, require_output
from domainbed_carft.files.weights import load_weights, sha256
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.jobs.setting import printed_versions
from domainbed_carft.runs.saved import TrainedRun, architecture_of, open_run, original_clip

SUFFIXES = (".pt", ".pth")

# The arguments of a run by which it is repeated; not those that only say where files are.
_REPEATED = (
    "algorithm", "dataset", "test_envs", "hparams_seed", "trial_seed", "seed", "holdout_fraction",
    "uda_holdout_fraction", "task", "steps", "checkpoint_freq",
)  # fmt: skip


class Files(NamedTuple):
    """The files of one export, named after the weights, or in a folder of their own."""

    weights: Path
    head: Path
    card: Path
    readme: Path

    @classmethod
    def of(cls, weights: Path, for_open_clip: bool = False) -> Files:
        """The files of an export to ``weights``; for open_clip these are a folder."""
        if for_open_clip:
            names = (open_clip_models.WEIGHTS, "head.pt", "card.json", "README.md")
            return cls(*(weights / name for name in names))
        return cls(weights, *(weights.with_suffix(end) for end in (".head.pt", ".json", ".md")))


def run(arguments: argparse.Namespace) -> None:
    """Open the run, export it, and print where to."""
    opened = open_run(arguments.path, arguments.which)
    how = {name: getattr(arguments, name) for name in ("original", "half", "force")}
    files = export(opened, arguments.output, **how)
    what = f"{opened.args['algorithm']} on {opened.args['dataset']}, {opened.path.name}"
    print(text.shown(f"{arguments.output}: {what} (see {files.readme})"))


def export(
    run: TrainedRun,
    weights: Path,
    *,
    original: str | None = None,
    half: bool = False,
    force: bool = False,
) -> Files:
    """Write a run's weights, head and cards, all of them or none.

    ``weights``: where to, for one of open_clip's checkpoints a folder; ``original``: the name of
    the CLIP that the run started from, needed unless that is a published one; ``half``: in half
    precision as OpenAI publishes its weights, else in float32; ``force``: overwrite.

    Raises CarftError if a file already exists or cannot be written, if the original is missing or
    not the run's, and for weights that are not finite.
    """
    for_open_clip = bool(architecture_of(run))
    if for_open_clip and (half or weights.suffix in SUFFIXES):
        told = "of a checkpoint of open_clip; expected the name of a folder, without --half"
        raise CarftError(f"-o {weights} is for a run {told}")
    if not for_open_clip and weights.suffix not in SUFFIXES:
        raise CarftError(f"-o {weights}: expected a name that ends in {' or '.join(SUFFIXES)}")
    files = Files.of(weights, for_open_clip)
    # A folder that is there gets its files replaced, one by one; else it appears whole.
    alone = for_open_clip and not os.path.lexists(weights)
    for path in (weights,) if alone else files:
        require_output(path, (run.path, original))
        if os.path.lexists(path) and not force:
            raise CarftError(f"{path} already exists; choose another name, or add --force")
    source = original_clip(run, original)
    require_output(weights if alone else files.weights, (source.path,))
    state = _state_dict(run, source, half)
    try:
        with tempfile.TemporaryDirectory(dir=weights.parent, prefix=".carft-export-") as temporary:
            staged = Files.of(Path(temporary, weights.name), for_open_clip)
            contents: dict[Path, Any] = {staged.head: _head(run)}
            if for_open_clip:
                staged.weights.parent.mkdir()
                how = source.architecture, source.tokenizer
                open_clip_models.save(staged.weights.parent, state, *how)
            else:
                contents[staged.weights] = state
            for path, content in contents.items():
                with path.open("wb") as file:  # a file object: the name then changes no byte
                    torch.save(content, file)
            card = card_of(run, source, state, staged)
            staged.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            # "replace": file names need not be text.
            page = readme(card, staged.card.name)
            staged.readme.write_text(page, encoding="utf-8", errors="replace")
            made = [staged.weights.parent] if alone else staged.weights.parent.iterdir()
            for path in made:
                os.replace(path, (weights if alone else files.weights).parent / path.name)
    except (OSError, RuntimeError) as error:
        raise not_written(weights, error) from error
    return files


def card_of(
    run: TrainedRun, source: backbone.Backbone, state: Mapping[str, Tensor], staged: Files
) -> dict[str, Any]:
    """The card for JSON; ``staged`` are the files before they are moved into place."""
    protocol, wanted = run.hparams["protocol"], source.preprocessing
    kept = json.loads(source.architecture or "{}")
    config = kept.get("model_cfg") or open_clip_config(source.model)
    is_half = any(tensor.dtype == torch.float16 for tensor in state.values())
    card = {
        "format": "open_clip folder" if kept else "OpenAI CLIP state dict",
        "quick_gelu": bool(config.get("quick_gelu")),
        "precision": "fp16" if is_half else "fp32",
        "open_clip_name": open_clip_name(source.name),
        "open_clip_config": config,
        **{
            name: {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
            for name, path in (("weights", staged.weights), ("head", staged.head))
        },
        "original": {"name": run.hparams["clip_backbone"], "sha256": source.digest},
        "run": _facts(run),
        "classes": run.classes,
        "contexts": run.contexts,
        "pictures": {  # side lengths in pixels, mean and deviation of [0, 1]
            **wanted._asdict(),
            "protocol": protocol,
            "means": pictures.PROTOCOLS[protocol],
            "data_set_size": run.content["model_input_shape"][-1],
        },
        "versions": {"domainbed_carft": __version__, "torch": torch.__version__},
    }
    # JSON has no word for what is not a number.
    return dict(json.loads(json.dumps(card, default=str), parse_constant=lambda name: None))


def open_clip_config(model: Any) -> dict[str, Any]:
    """The architecture of a ``clip.model.CLIP`` as an open_clip configuration."""
    visual, words = model.visual, model.transformer
    if hasattr(visual, "transformer"):
        layers, width = visual.transformer.layers, visual.transformer.width
        patch = visual.conv1.kernel_size[0]
    else:
        layers = [len(getattr(visual, f"layer{n}")) for n in range(1, 5)]
        width, patch = visual.layer1[0].conv1.out_channels, None
    size = visual.input_resolution
    return {
        "embed_dim": model.text_projection.shape[1],
        "quick_gelu": True,
        "vision_cfg": {"image_size": size, "layers": layers, "width": width, "patch_size": patch},
        "text_cfg": {
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "width": words.width,
            "heads": words.width // 64,
            "layers": words.layers,
        },
    }


def open_clip_name(name: str) -> str | None:
    """What open_clip calls one of OpenAI's CLIPs with QuickGELU; None for any other."""
    if name not in openai_models.OPENAI_WEIGHTS:
        return None
    return name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def readme(card: Mapping[str, Any], card_file: str) -> str:
    """The card for people, in Markdown; ``card_file`` is the name of the JSON beside it."""
    environment = text.templates(autoescape=False)
    environment.filters |= {"words": _words, "python": repr}
    environment.filters["percent"] = lambda share: "" if share is None else f"{100 * share:.1f}%"
    template = environment.get_template("model_card.md.j2")
    return template.render(card=card, card_file=card_file)


def _state_dict(run: TrainedRun, source: backbone.Backbone, half: bool) -> dict[str, Tensor]:
    model = source.model
    model.visual.load_state_dict(run.algorithm.encoder.state_dict())
    if run.args["algorithm"] == "FLYP":  # which has trained the other half of it, too
        kept = load_weights(run.path)["model_dict"]
        halves = {n[len("text.") :]: t for n, t in kept.items() if n.startswith("text.")}
        own = {name.removeprefix("model."): tensor for name, tensor in halves.items()}
        scale = kept["log_scale"].reshape(model.logit_scale.shape)
        model.load_state_dict({**own, "logit_scale": scale}, strict=False)
    if half:
        from clip.model import convert_weights

        convert_weights(model)
    state = dict(model.state_dict())
    if wrong := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        why = "; try without --half" if half else ": the training diverged"
        raise CarftError(f"{wrong[0]} has values that are not finite{why}")
    return state


def _head(run: TrainedRun) -> dict[str, Any]:
    """The head, which classifies the features: tensors and plain values only.

    Class logits are ``logit_scale`` * unit features . ``weight`` + ``bias``, context logits
    ``context_scale`` * unit features . ``context_weights``.
    """
    algorithm, scale = run.algorithm, run.hparams["context_scale"]
    return {
        "weight": algorithm.head.weight.detach().clone(),
        "classes": run.classes,
        "bias": algorithm.head.bias.detach().clone(),
        "logit_scale": float(algorithm.head_factor),
        "context_weights": algorithm.context_weights.clone(),
        "contexts": run.contexts,
        "context_scale": float(algorithm.logit_scale if isinstance(scale, str) else scale),
    }


def _facts(run: TrainedRun) -> dict[str, Any]:
    repeated = {key: run.args.get(key) for key in _REPEATED}
    folder = run.path.parent
    found = [
        one
        for one in records.read_file(folder / RECORDS)[0]
        if all(one["args"].get(key) == value for key, value in repeated.items())
        and run.step in (None, one["step"])
        and run.alpha is None  # no record is of weights that nobody has trained
    ]
    record: dict[str, Any] = max(found, key=lambda one: float(one["step"]), default={})
    benchmark = benchmarks.BENCHMARKS.get(str(repeated["dataset"]))
    known = [environment.folder for environment in getattr(benchmark, "environments", ())]
    listed = record.get("environments")
    named = {f"env{i}": str(n) for i, n in enumerate(listed if isinstance(listed, list) else known)}
    shares = {name: value for name, value in record.items() if isinstance(value, float)}
    there = [env for env in map("env{}".format, range(len(record))) if f"{env}_out_acc" in record]
    return {
        **repeated,
        "test_environments": [named.get(f"env{i}", f"env{i}") for i in repeated["test_envs"] or ()],
        "file": run.path.name,
        "wise_ft_alpha": run.alpha,
        "step": record.get("step", run.step),
        "accuracies": {
            named.get(env, env): {kind: shares.get(f"{env}_{kind}_acc") for kind in ("in", "out")}
            for env in there
        },
        **{key: run.hparams[key] for key in ("data_edition", "prompts_digest", "clip_digest")},
        "hparams": dict(run.hparams),
        "versions": printed_versions(folder) if record else {},
        # Where its data is, and its output goes, is another matter.
        "command": shlex.join(train_command({**repeated, "hparams": run.args.get("hparams")})),
    }


def _words(value: Any) -> str:
    """As plain text within Markdown, also between the bars of a table."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", text.shown(" ".join(words.split())))
