"""``carft export``: a run as a CLIP that other libraries read, its class head, and a card.

The weights are the original CLIP's whole state dict in OpenAI's format, with the fine-tuned image
encoder in place of the original's. The head has no place in that format and stands beside it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft import __version__, text
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import folder as job_folder  # fmt: skip
from domainbed_carft.jobs import records, scan, train_command
from domainbed_carft.method import backbone, objective, pictures, prompts
from domainbed_carft.method.algorithms import CLIPAlgorithm
from domainbed_carft.results import settings
from domainbed_carft.runs import output
from domainbed_carft.runs.saved import Run, original_clip

SUFFIXES = (".pt", ".pth")

# Unit vectors; another processor's rounding moves an element by some 1e-7, other weights by 1e-2.
SAME_TEXT = 1e-3


class Files(NamedTuple):
    """The files of one export; all but the weights go by the weights' name."""

    weights: Path
    head: Path
    card: Path
    readme: Path

    @classmethod
    def of(cls, weights: Path) -> Files:
        """The files whose weights are to be in ``weights``."""
        suffixes = (".head.pt", ".json", ".md")
        return cls(weights, *(weights.with_suffix(suffix) for suffix in suffixes))


def export(
    run: Run,
    weights: Path,
    *,
    original: str | None = None,
    half: bool = False,
    force: bool = False,
    command: str = "",
) -> Files:
    """Write a run's weights, head and cards, all four or none of them.

    ``weights``: where to; ``original``: the file of the CLIP that the run started from, needed
    unless that is a published one; ``half``: in half precision as OpenAI publishes
    its weights, else in float32; ``force``: overwrite; ``command``: for the card.

    Raises CarftError where a file is there already or cannot be written, where the original's
    weights are missing or others than the run's, and for weights that are no numbers.
    """
    files = Files.of(weights)
    require_free(files, force)
    source = _original(run, original)
    for path in files:  # not even ``force`` overwrites what the export is made from
        output.require_no_input(path, (run.path, source.path))
    state = _state_dict(run.algorithm, source, half)
    with _staged(files) as staged:
        _write(staged.weights, lambda file: torch.save(state, file))
        _write(staged.head, lambda file: torch.save(_head(run), file))
        content = facts(run, source, state, staged, command)
        staged.card.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        # "replace": file names need not be text.
        page = readme(content, staged.card.name)
        staged.readme.write_text(page, encoding="utf-8", errors="replace")
    return files


def require_free(files: Files, force: bool) -> None:
    """Raise CarftError unless all four may be written."""
    weights = files.weights
    if weights.suffix not in SUFFIXES:
        raise CarftError(
            f"-o is {weights}, expected a name that ends in {' or '.join(SUFFIXES)}: the head and "
            "the cards get the same name with other endings, and open_clip goes by the ending"
        )
    if not os.path.isdir(weights.parent):  # pathlib's raises where one may not look
        raise CarftError(f"-o is {weights}, but {weights.parent} is no folder; make it first")
    folders = [path for path in files if os.path.isdir(path)]
    if folders:
        raise CarftError(f"{folders[0]} is a folder, expected a place for a file; choose another")
    there = [str(path) for path in files if os.path.lexists(path)]
    if there and not force:
        raise CarftError(
            f"already there: {', '.join(there)}. Nothing was written; choose another name, or add "
            "--force to overwrite"
        )


def _original(run: Run, file: str | None) -> backbone.Backbone:
    """The CLIP that the run started from; CarftError if it is not there, or is another."""
    loaded = original_clip(run, file)
    difference = _difference(run, loaded)
    if difference:
        raise CarftError(
            f"{loaded.path} is not the CLIP that the run started from: {difference}. Say where "
            "that one is with --original FILE"
        )
    return loaded


def _difference(run: Run, loaded: backbone.Backbone) -> str:
    """How the file differs from the run's original in what is taken from it; "" if it does not.

    A run records no digest of it. What is taken is all but the image encoder: the text encoder, of
    which the run has the context weights, and the logit scale.
    """
    trained = {k: v.shape for k, v in run.algorithm.encoder.state_dict().items()}
    there = {k: v.shape for k, v in loaded.model.visual.state_dict().items()}
    if trained != there:
        names = sorted(k for k in trained.keys() | there.keys() if trained.get(k) != there.get(k))
        return f"other shapes in its image encoder, as in {names[0]}"
    scale = float(run.algorithm.logit_scale)
    if abs(scale - loaded.logit_scale) > 1e-4 * scale:
        return f"its logit scale is {loaded.logit_scale:.4f}, the run's {scale:.4f}"
    two = prompts.prompts(run.contexts[:2], run.classes)  # a single context has no weights
    made = objective.zero_shot_weights(backbone.text_features(loaded, two)).contexts
    off = float((made - run.algorithm.context_weights[:2]).abs().max())
    if not off < SAME_TEXT:  # nor if it is no number
        return f"its text encoder puts the run's contexts elsewhere (by {off:.3g})"
    if not run.algorithm.trains_encoder:
        kept = run.algorithm.encoder.state_dict()
        changed = [k for k, v in loaded.model.visual.state_dict().items() if not v.equal(kept[k])]
        if changed:
            return f"other weights in its image encoder, as in {changed[0]}"
    return ""


def _state_dict(
    algorithm: CLIPAlgorithm, source: backbone.Backbone, half: bool
) -> dict[str, Tensor]:
    """The original's state dict with the fine-tuned image encoder, in OpenAI's order."""
    model = source.model
    model.visual.load_state_dict(algorithm.encoder.state_dict())
    if half:
        from clip.model import convert_weights

        convert_weights(model)
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            why = "; without --half it may fit" if half else ": the training diverged"
            raise CarftError(f"{name} has values that are no finite numbers{why}")
    return state


def _head(run: Run) -> dict[str, Any]:
    """What classifies the features: tensors and plain values only.

    Class logits are ``logit_scale`` * unit features . ``weight``, context logits ``context_scale``
    * unit features . ``context_weights``.
    """
    algorithm = run.algorithm
    scale = run.hparams["context_scale"]
    return {
        "weight": algorithm.head.weight.detach().clone(),
        "classes": list(run.classes),
        "logit_scale": float(algorithm.logit_scale),
        "context_weights": algorithm.context_weights.clone(),
        "contexts": list(run.contexts),
        "context_scale": float(algorithm.logit_scale if isinstance(scale, str) else scale),
    }


@contextmanager
def _staged(files: Files) -> Iterator[Files]:
    """Files of the same names in a folder beside, which take their places once all are whole."""
    folder = files.weights.parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".carft-export-") as temporary:
            staged = Files(*(Path(temporary) / path.name for path in files))
            yield staged
            for made, path in zip(staged, files, strict=True):
                os.replace(made, path)
    except OSError as error:
        raise CarftError(
            f"the export cannot be written to {folder}: {error.strerror or error}; nothing was "
            "overwritten. Make room there, or choose another folder"
        ) from error


def _write(path: Path, write_to: Callable[[IO[bytes]], object]) -> None:
    """By way of a file object: the bytes then do not depend on the file's name."""
    with path.open("wb") as file:
        try:
            write_to(file)
        except RuntimeError as error:  # torch's own, behind which it hides that of a write
            hidden = error.__context__
            raise (hidden if isinstance(hidden, OSError) else OSError(str(error))) from None


# The arguments of a run by which it is repeated; not those that only say where files are.
_REPEATED = (
    "algorithm", "dataset", "test_envs", "hparams_seed", "trial_seed", "seed", "holdout_fraction",
    "uda_holdout_fraction", "task", "steps", "checkpoint_freq",
)  # fmt: skip


def facts(
    run: Run,
    source: backbone.Backbone,
    state: Mapping[str, Tensor],
    staged: Files,
    command: str,
) -> dict[str, Any]:
    """The card as JSON has it; ``staged`` are the files as they are before they get in place."""
    config = open_clip_config(state)
    return _plain(
        {
            "format": "OpenAI CLIP state dict",
            "quick_gelu": True,
            "precision": "fp16" if state["text_projection"].dtype == torch.float16 else "fp32",
            "open_clip_name": open_clip_name(source.name),
            "open_clip_config": config,
            "weights": _file(staged.weights),
            "head": _file(staged.head),
            "original": {"name": run.hparams["clip_backbone"], "sha256": source.digest},
            "run": _run(run),
            "classes": run.classes,
            "contexts": run.contexts,
            "pictures": _pictures(run, config),
            "versions": {
                "domainbed_carft": __version__,
                "clip": _installed("clip-anytorch"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "command": command,
        }
    )


def open_clip_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture in the words of open_clip's model configurations.

    The rules by which OpenAI's format implies it are those of openai/CLIP, clip/model.py,
    build_model.
    """
    if "visual.proj" in state:
        width, _, _, patch = state["visual.conv1.weight"].shape
        size = patch * round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        layers: Any = sum(k.startswith("visual.") and k.endswith("in_proj_weight") for k in state)
    else:
        width, patch = state["visual.layer1.0.conv1.weight"].shape[0], None
        size = 32 * round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        layers = [_blocks(state, f"visual.layer{n}.") for n in range(1, 5)]
    length, text_width = state["positional_embedding"].shape
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {"image_size": size, "layers": layers, "width": width, "patch_size": patch},
        "text_cfg": {
            "context_length": length,
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": _blocks(state, "transformer.resblocks."),
        },
    }


def open_clip_name(name: str) -> str | None:
    """What open_clip calls one of OpenAI's CLIPs with QuickGELU; None for any other."""
    if name not in backbone.OPENAI_WEIGHTS:
        return None
    return name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def readme(card: Mapping[str, Any], card_file: str) -> str:
    """The card for people, in Markdown; ``card_file`` is the name of the JSON beside it."""
    environment = text.templates(autoescape=False)
    environment.filters["words"] = _words
    environment.filters["python"] = repr
    environment.filters["percent"] = lambda share: "" if share is None else f"{100 * share:.1f}%"
    template = environment.get_template("model_card.md.j2")
    return template.render(card=card, card_file=card_file)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # OpenAI's own, which goes by another name
        return None


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": backbone.sha256(path), "bytes": path.stat().st_size}


def _pictures(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to a picture: side lengths in pixels, mean and deviation of [0, 1]."""
    protocol = run.hparams.get("protocol", "domainbed")
    return {
        "resolution": config["vision_cfg"]["image_size"],
        "mean": pictures.CLIP_MEAN,
        "std": pictures.CLIP_STD,
        "protocol": protocol,
        "means": pictures.PROTOCOLS.get(protocol),
        "data_set_size": run.input_shape[-1],
    }


def _run(run: Run) -> dict[str, Any]:
    record = _record(run)
    count = sum(f"env{index}_out_acc" in record for index in range(len(record)))
    names = _environment_names(run, record, count)
    targets = run.args.get("test_envs") or []
    return {
        **{key: run.args.get(key) for key in _REPEATED},
        "test_environments": [names.get(i, f"env{i}") for i in targets],
        "file": run.path.name,
        "wise_ft_alpha": run.alpha,
        "step": record.get("step", run.step),
        "accuracies": {
            names.get(i, f"env{i}"): {
                split: _number(record.get(f"env{i}_{split}_acc")) for split in ("in", "out")
            }
            for i in range(count)
        },
        "data_edition": run.hparams.get("data_edition", ""),
        "prompts_digest": run.hparams.get("prompts_digest", ""),
        "hparams": dict(run.hparams),
        "versions": _versions(run),
        # Where its data is, and its output goes, is another matter.
        "command": train_command.line({k: run.args.get(k) for k in (*_REPEATED, "hparams")}),
    }


def _record(run: Run) -> Mapping[str, Any]:
    """The record of the step at which the weights were saved; empty if there is none."""
    if run.alpha is not None:  # no record is of weights that nobody has trained
        return {}
    found, _ = records.whole_records(str(run.path.parent / job_folder.RECORDS))
    own = [r for r in found if all(r["args"].get(k) == run.args.get(k) for k in _REPEATED)]
    if run.step is not None:
        own = [record for record in own if record["step"] == run.step]
    return max(own, key=lambda record: record["step"], default={})


def _versions(run: Run) -> dict[str, str]:
    """Of the libraries that the run was trained with, as its ``out.txt`` tells them."""
    folder = run.path.parent
    there = {name for name in (job_folder.RECORDS, job_folder.OUTPUT) if (folder / name).exists()}
    runs = records.read(scan.Found(str(folder), frozenset(there))).runs
    said = runs[-1].setting if runs else {}
    (head,) = settings.KINDS["versions"]
    return {part[len(head) :]: said[part] for part in said if part.startswith(head)}


def _environment_names(run: Run, record: Mapping[str, Any], count: int) -> dict[int, str]:
    """Index -> name, where it is known: what the record tells, else the benchmark's folders."""
    told = record.get("environments")
    if isinstance(told, list) and len(told) == count:
        return dict(enumerate(map(str, told)))
    benchmark = benchmarks.BENCHMARKS.get(str(run.args.get("dataset")))
    if benchmark is None or count not in (0, len(benchmark.environments)):
        return {}
    return {index: e.folder for index, e in enumerate(benchmark.environments)}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """As JSON has it, which has no word for what is no number."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)


def _words(value: Any) -> str:
    """As plain text within Markdown, also between the bars of a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", " ".join(text.split()))
