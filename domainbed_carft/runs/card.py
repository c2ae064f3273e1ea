"""The cards of an export: what it is, what made it, and how it is loaded."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from domainbed_carft import __version__, files, text
from domainbed_carft.data import benchmarks
from domainbed_carft.jobs import folder as job_folder  # fmt: skip
from domainbed_carft.jobs import records, train_command
from domainbed_carft.method import backbone, pictures
from domainbed_carft.results import settings

if TYPE_CHECKING:
    from domainbed_carft.runs.export import Files
    from domainbed_carft.runs.saved import Run

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
    return {"file": path.name, "sha256": files.sha256(path), "bytes": path.stat().st_size}


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
    found, _ = records.whole(run.path.parent / job_folder.RECORDS)
    own = [r for r in found if all(r["args"].get(k) == run.args.get(k) for k in _REPEATED)]
    if run.step is not None:
        own = [record for record in own if record["step"] == run.step]
    return max(own, key=lambda record: record["step"], default={})


def _versions(run: Run) -> dict[str, str]:
    """Of the libraries that the run was trained with, as its ``out.txt`` tells them."""
    runs = records.runs_in(run.path.parent)
    said = runs[-1].setting if runs else {}
    head = settings.KINDS["versions"]
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
