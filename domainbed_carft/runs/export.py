"""``carft export``: a run as a CLIP that other libraries read, its class head, and a card.

The weights are the original CLIP's whole state dict in OpenAI's format, with the fine-tuned image
encoder in place of the original's. The head has no place in that format and stands beside it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.method import backbone, objective, prompts
from domainbed_carft.method.algorithms import CLIPAlgorithm
from domainbed_carft.runs import card, output
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
        facts = card.facts(run, source, state, staged, command)
        staged.card.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        # "replace": file names need not be text.
        page = card.readme(facts, staged.card.name)
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
