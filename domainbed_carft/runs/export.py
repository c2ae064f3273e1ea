"""A run exported as a CLIP that other libraries read, its class head, and a card.

The CLIP is the original's state dict with the fine-tuned image encoder, in OpenAI's format, or for
open_clip's checkpoints a folder that its ``local-dir:`` loads. Neither has a place for a head.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.clips import backbone, open_clip
from domainbed_carft.errors import CarftError
from domainbed_carft.files import not_written, require_output
from domainbed_carft.files.weights import load_weights
from domainbed_carft.runs import model_card
from domainbed_carft.runs.saved import TrainedRun, architecture_of, original_clip

SUFFIXES = (".pt", ".pth")
_TEXT_ENCODER = "text."  # how the names of a trained text encoder begin


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
    run: TrainedRun,
    output: Path,
    *,
    original: str | None = None,
    half: bool = False,
    force: bool = False,
) -> ExportedFiles:
    """Write a run's weights, head and cards, all of them or none.

    ``output``: the weights file, for one of open_clip's checkpoints a folder; ``original``: the
    name of the CLIP that the run started from, needed unless that is a published one; ``half``: in
    half precision as OpenAI publishes its weights, else in float32; ``force``: overwrite.

    Raises CarftError if a file already exists or cannot be written, if the original is missing or
    not the run's, and for weights that are not finite.
    """
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
        raise not_written(output, error) from error
    return files


def _files_of(output: Path, is_folder: bool) -> ExportedFiles:
    return ExportedFiles.inside(output) if is_folder else ExportedFiles.named_after(output)


def _require_fitting_name(run: TrainedRun, output: Path, is_folder: bool, half: bool) -> None:
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
    run: TrainedRun,
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

    card = model_card.card_of(run, clip, state, weights=files.weights, head=files.head)
    files.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    page = model_card.readme(card, files.card.name)
    # "replace": file names need not be text.
    files.readme.write_text(page, encoding="utf-8", errors="replace")


def _save(path: Path, content: Any) -> None:
    with path.open("wb") as file:  # a file object: the name then changes no byte
        torch.save(content, file)


def _state_dict(run: TrainedRun, clip: backbone.Backbone, half: bool) -> dict[str, Tensor]:
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


def _head(run: TrainedRun) -> dict[str, Any]:
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
