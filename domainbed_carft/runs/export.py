"""Export a run as a CLIP checkpoint that other libraries load, with class head and model card.

The checkpoint is the original state dict with the fine-tuned image encoder: in OpenAI's format, or,
for runs that started from open_clip, as a folder for open_clip's ``local-dir:``, or as a folder for
transformers. No format has a place for a class head, so the head is a file of its own.
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

from domainbed_carft import jinja_templates
from domainbed_carft.arguments import FLAG, require_kind
from domainbed_carft.clips import backbone, open_clip, openai, transformers
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.files import require_folder, require_output, write_error
from domainbed_carft.files.weights import load_weights, sha256
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import HOST, PROTOCOLS
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import make_train_command
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.jobs.setting import read_printed_versions
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.results.formats import escape_markdown
from domainbed_carft.runs import EXPORT_FORMATS
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import (
    AnyRun,
    get_architecture,
    load_original_clip,
    load_run,
    require_clip_with_head,
)
from domainbed_carft.runs.soup_members import SHARED_ARGS, SOUP_HPARAMS
from domainbed_carft.version import __version__

SUFFIXES = (".pt", ".pth")

# The name of the weights in an export that is a folder, by its format in the card.
_FOLDER_WEIGHTS = {
    "open_clip folder": open_clip.WEIGHTS,
    "transformers folder": transformers.WEIGHTS,
}
_OPENAI_FORMAT = "OpenAI CLIP state dict"
_TEXT_ENCODER = "text."  # prefix of the weights of a trained text encoder

# The arguments that are needed to repeat a run, without the paths of its files.
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
_REPEATED_SOUP_ARGS = ("algorithm", *SHARED_ARGS, "task")

# Width of an attention head of the text encoder, in all CLIP models of OpenAI.
CLIP_HEAD_WIDTH = 64


@dataclass(frozen=True)
class ExportedFiles:
    """Paths of the files of an export.

    Attributes:
        weights: the CLIP checkpoint.
        head: the class head.
        card: the model card for programs, in JSON.
        readme: the model card for people, in Markdown.
    """

    weights: Path
    head: Path
    card: Path
    readme: Path

    @classmethod
    def named_after(cls, weights: Path) -> ExportedFiles:
        """Return the paths of an export in OpenAI's format, next to the weights file."""
        return cls(
            weights=weights,
            head=weights.with_suffix(".head.pt"),
            card=weights.with_suffix(".json"),
            readme=weights.with_suffix(".md"),
        )

    @classmethod
    def in_folder(cls, folder: Path, weights: str) -> ExportedFiles:
        """Return the paths of an export that is a folder; ``weights`` is a file name."""
        return cls(
            weights=folder / weights,
            head=folder / "head.pt",
            card=folder / "card.json",
            readme=folder / "README.md",
        )

    @property
    def paths(self) -> list[Path]:
        """The paths of all four files."""
        return [self.weights, self.head, self.card, self.readme]

    def as_dict(self) -> dict[str, str]:
        """Return the paths as text, by the names of the attributes."""
        return {name: str(path) for name, path in vars(self).items()}


def export(
    run: AnyRun,
    path: AnyPath,
    *,
    format: str = "original",
    original: AnyPath | None = None,
    half: bool = False,
    force: bool = False,
) -> ExportedFiles:
    """Export a run as a CLIP checkpoint for other libraries, with class head and model card.

    Either all files are written or none.

    Args:
        run: a `Run`, a job's folder, or a weights file.
        path: the file to write, ending in .pt; a folder if the run started from open_clip, and for
            transformers.
        format: "original" for the format of the CLIP checkpoint that the run started from, which
            clip or open_clip loads; "transformers" for `transformers.CLIPModel`.
        original: the CLIP checkpoint that the run started from; required unless it is a published
            one.
        half: save in half precision, like OpenAI's published weights.
        force: overwrite existing files.

    Returns:
        The paths of the files.

    Raises:
        CarftError: if a file exists or cannot be written, the original checkpoint is missing or
            differs from the run's, the weights are not finite, your own method predicts with more
            than the image encoder and the head, or transformers has no equal architecture.

    Examples:
        >>> files = export(job, folder / "clip.pt")
        >>> files.head.name, files.card.name
        ('clip.head.pt', 'clip.json')
    """
    require_kind(FLAG, half=half, force=force)
    if format not in EXPORT_FORMATS:
        raise CarftError(invalid("format", format, f"one of {', '.join(EXPORT_FORMATS)}"))
    run = run if isinstance(run, Run) else load_run(run, device="cpu")
    require_clip_with_head(run)
    output = as_path(path)
    original = as_text(original)

    layout = "open_clip folder" if get_architecture(run) else _OPENAI_FORMAT
    if format == "transformers":
        layout = "transformers folder"
    is_folder = layout in _FOLDER_WEIGHTS
    _require_fitting_name(run, output, layout, half)
    files = _output_files(output, layout)
    if is_folder:
        require_folder(output)

    # In an existing folder each file is replaced; a new folder appears with all of its files.
    is_new_folder = is_folder and not os.path.lexists(output)
    for path in [output] if is_new_folder else files.paths:
        require_output(path, (run.path, original))
        if os.path.lexists(path) and not force:
            raise CarftError(f"{path} already exists; choose another name, or add --force")

    clip = load_original_clip(run, original)
    require_output(output if is_new_folder else files.weights, (clip.path,))
    if format == "transformers":
        transformers.require_supported(get_model_config(clip), clip.name)
    state = _state_dict(run, clip, half)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".carft-export-") as temporary:
            staged = _output_files(Path(temporary, output.name), layout)
            _write(staged, run, clip, state, layout)

            staging_folder = staged.weights.parent
            staged_paths = [staging_folder] if is_new_folder else staging_folder.iterdir()
            target = output.parent if is_new_folder else files.weights.parent
            for path in staged_paths:
                os.replace(path, target / path.name)
    except (OSError, RuntimeError) as error:
        raise write_error(output, error) from error
    return files


def _output_files(output: Path, layout: str) -> ExportedFiles:
    if layout in _FOLDER_WEIGHTS:
        return ExportedFiles.in_folder(output, _FOLDER_WEIGHTS[layout])
    return ExportedFiles.named_after(output)


def _require_fitting_name(run: Run, output: Path, layout: str, half: bool) -> None:
    """Raise CarftError unless the output has the name of a folder or of a file, as exported."""
    has_suffix = output.suffix in SUFFIXES
    is_folder = layout in _FOLDER_WEIGHTS
    if is_folder and (half or has_suffix):
        raise CarftError(
            f"-o {output}: the format of this export is {layout!r}, so expected the name of a "
            "folder, without --half"
        )
    if not is_folder and not has_suffix:
        raise CarftError(
            f"-o {output}: expected a name that ends in {' or '.join(SUFFIXES)}, since this run "
            f"started from {run.hparams['clip_backbone']!r}; only runs that started from an "
            "open_clip checkpoint, and exports with --format transformers, are folders"
        )


def _write(
    files: ExportedFiles,
    run: Run,
    clip: backbone.Backbone,
    state: dict[str, Tensor],
    layout: str,
) -> None:
    """Write all files; raises OSError or RuntimeError if that fails."""
    folder = files.weights.parent
    if layout == _OPENAI_FORMAT:
        _save(files.weights, state)
    else:
        folder.mkdir()
    preprocessing = get_preprocessing(run, clip)
    if layout == "open_clip folder":
        open_clip.save(folder, state, clip.architecture, preprocessing, clip.tokenizer)
    if layout == "transformers folder":
        transformers.save(folder, state, get_model_config(clip), preprocessing)
    _save(files.head, _make_head(run))

    card = make_card(run, clip, state, layout=layout, weights=files.weights, head=files.head)
    files.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    page = render_readme(card, files.card.name)
    # "replace": file names need not be text.
    files.readme.write_text(page, encoding="utf-8", errors="replace")


def _save(path: Path, content: Any) -> None:
    with path.open("wb") as file:  # a file object: the name then changes no byte
        torch.save(content, file)


def _state_dict(run: Run, clip: backbone.Backbone, half: bool) -> dict[str, Tensor]:
    """Return the original state dict with the weights that the run trained."""
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
        raise CarftError(f"{not_finite[0]} has non-finite values{reason}")
    return state


def _load_text_encoder(model: Any, run_state: dict[str, Tensor]) -> None:
    """Load the text encoder and the logit scale that the run has trained into a CLIP model."""
    state = {
        name.removeprefix(_TEXT_ENCODER).removeprefix("model."): tensor
        for name, tensor in run_state.items()
        if name.startswith(_TEXT_ENCODER)
    }
    state["logit_scale"] = run_state["log_scale"].reshape(model.logit_scale.shape)
    model.load_state_dict(state, strict=False)


def _make_head(run: Run) -> dict[str, Any]:
    """Return the content of the head's file.

    Class logits are ``logit_scale * features @ weight.T + bias`` and context logits
    ``context_scale * features @ context_weights.T``, of features of length 1.
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


def make_card(
    run: Run,
    clip: backbone.Backbone,
    state: Mapping[str, Tensor],
    *,
    layout: str,
    weights: Path,
    head: Path,
) -> dict[str, Any]:
    """Return the model card for JSON.

    Args:
        run: the exported run.
        clip: the CLIP model that the run started from.
        state: the exported state dict.
        layout: the format of the exported weights.
        weights: path of the exported weights.
        head: path of the exported head.
    """
    protocol = run.hparams["protocol"]
    config = get_model_config(clip)
    dtypes = {tensor.dtype for tensor in state.values()}
    card = {
        "format": layout,
        "quick_gelu": bool(config.get("quick_gelu")),
        "precision": "fp16" if torch.float16 in dtypes else "fp32",
        "open_clip_name": open_clip_name(clip.name),
        "open_clip_config": config,
        "weights": _describe_file(weights),
        "head": _describe_file(head),
        "original": {"name": run.hparams["clip_backbone"], "sha256": clip.digest},
        "text_encoder": describe_text_encoder(run),
        "run": describe_run(run),
        "classes": run.classes,
        "contexts": run.contexts,
        "images": {  # side lengths in pixels, mean and deviation of [0, 1]
            **get_preprocessing(run, clip)._asdict(),
            "protocol": protocol,
            "means": PROTOCOLS[protocol],
            "dataset_size": run.content["model_input_shape"][-1],
            "model_interpolation": clip.preprocessing.interpolation,
        },
        "versions": {"domainbed_carft": __version__, "torch": torch.__version__},
    }
    # JSON has neither NaN nor infinity.
    serialised = json.dumps(card, default=str)
    return dict(json.loads(serialised, parse_constant=lambda name: None))


def _describe_file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}


def get_preprocessing(run: Run, clip: backbone.Backbone) -> Preprocessing:
    """Return the run's transform of test images, with the size and normalisation of its CLIP model.

    A run whose dataset has images of another size resizes twice, this once.
    """
    plan = run.image_plan
    return clip.preprocessing._replace(interpolation=plan.interpolation, resize=plan.resize)


def describe_unknown_transforms(run: Run) -> list[str]:
    """Return a sentence for a run that has not recorded its transforms, none for other runs."""
    if run.hparams["protocol"] != HOST:
        return []
    return [
        "The export does not contain the transforms of the run's DomainBed, because the run has "
        "not recorded them: it squeezes images to a square, like carft predict"
    ]


def get_model_config(clip: backbone.Backbone) -> dict[str, Any]:
    """Return the ``model_cfg`` of the open_clip configuration of any CLIP model."""
    if not clip.architecture:
        return open_clip_config(clip.model)
    model_config: dict[str, Any] = json.loads(clip.architecture)["model_cfg"]
    return model_config


def open_clip_config(model: Any) -> dict[str, Any]:
    """Return the architecture of a ``clip.model.CLIP`` as an open_clip configuration."""
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
    """Return open_clip's name of a CLIP checkpoint of OpenAI with QuickGELU; None for others."""
    if name not in openai.OPENAI_WEIGHTS:
        return None
    return name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def describe_text_encoder(run: Run) -> dict[str, str]:
    """Return "original" or "fine-tuned" for each part of the export made by a text encoder.

    Context weights and their scale are always the original ones, as in the run's predictions.
    """
    state = "fine-tuned" if run.algorithm.trains_text else "original"
    return {
        "weights": state,
        "logit_scale": state,
        "class_head": state,
        "context_head": "original",
    }


def describe_run(run: Run) -> dict[str, Any]:
    """Return the run's part of the card: arguments, settings, accuracies, and command."""
    is_soup = run.soup is not None
    known_args = _REPEATED_SOUP_ARGS if is_soup else REPEATED_ARGS
    arguments = {name: run.args.get(name) if name in known_args else None for name in REPEATED_ARGS}
    record = {} if is_soup else _find_record(run, arguments)

    environments = _get_environment_names(arguments["dataset"], record)
    targets = [f"env{index}" for index in arguments["test_envs"] or ()]
    hparams = dict(run.hparams)
    if is_soup:  # its members can have other training hyperparameters
        hparams = {name: value for name, value in hparams.items() if name in SOUP_HPARAMS}

    return {
        "title": run.title,
        "soup": run.soup,
        **arguments,
        "test_environments": [environments.get(target, target) for target in targets],
        "file": run.path.name,
        "wise_ft_alpha": run.alpha,
        "step": record.get("step", None if is_soup else run.step),
        "accuracies": _get_accuracies(record, environments),
        "data_edition": run.hparams.get("data_edition", ""),
        "prompts_digest": run.hparams["prompts_digest"],
        "clip_digest": run.hparams["clip_digest"],
        "hparams": hparams,
        "versions": read_printed_versions(run.path.parent) if record else {},
        "command": None if is_soup else _make_command(run, arguments),
    }


def _find_record(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last record of these weights, or {} if there is no record."""
    if run.alpha is not None:  # records describe trained weights, not interpolated ones
        return {}

    matching = [
        record
        for record in records.read_file(run.path.parent / RECORDS)[0]
        if all(record["args"].get(name) == value for name, value in arguments.items())
        and run.step in (None, record["step"])
    ]
    return max(matching, key=lambda record: float(record["step"]), default={})


def _get_environment_names(dataset: Any, record: Mapping[str, Any]) -> dict[str, str]:
    """Map env0, env1, ... to names of environments, taken from the record or the benchmark."""
    names = record.get("environments")
    if not isinstance(names, list):
        benchmark = benchmarks.BENCHMARKS.get(str(dataset))
        names = [environment.folder for environment in getattr(benchmark, "environments", ())]
    return {f"env{index}": str(name) for index, name in enumerate(names)}


def _get_accuracies(
    record: Mapping[str, Any], environments: Mapping[str, str]
) -> dict[str, dict[str, float | None]]:
    """Return the recorded accuracies on in-split and out-split, by environment."""
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


def _make_command(run: Run, arguments: Mapping[str, Any]) -> str:
    """Return the command line that repeats the run, without the folders of data and output."""
    return shlex.join(make_train_command({**arguments, "hparams": run.args.get("hparams")}))


def render_readme(card: Mapping[str, Any], card_file: str) -> str:
    """Return the model card for people, in Markdown; ``card_file`` names the JSON file."""
    dataset = benchmarks.dataset_title(str(card["run"]["dataset"]))
    page: str = _load_template().render(card=card, card_file=card_file, dataset=dataset)
    return page


@functools.cache
def _load_template() -> Any:
    environment = jinja_templates.load_templates(autoescape=False)
    environment.filters["words"] = _format_markdown
    environment.filters["python"] = repr
    environment.filters["percent"] = _percent
    return environment.get_template("model_card.md.j2")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _format_markdown(value: Any) -> str:
    """Return a value as plain text that is safe in Markdown, including table cells."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape_markdown(plain)
