"""What the original CLIP says of a run's images: class and alignment, cached for other runs.

All runs of a sweep that share CLIP, prompts and images need the same answers. So they are given
for a whole environment at once, and kept in the cache folder: there nothing depends on a run's
split, trial or weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from domainbed_carft import files
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.files import arrays
from domainbed_carft.method import objective, prompts
from domainbed_carft.runs import saved
from domainbed_carft.runs.predictions import LoadingOptions, split_batches
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import (
    RunData,
    Split,
    digest_of_images,
    positions_in_environment,
)

FORMAT = 1
# From this share of an environment on, all of it is predicted: other runs need the rest.
WORTH_ALL = 0.5

_DTYPES: dict[str, np.dtype[Any]] = {"predicted": np.dtype("<u2"), "alignment": np.dtype("<f4")}


@dataclass(frozen=True)
class ZeroShotColumns:
    """Of N images the class that the original CLIP predicts, and the alignment score, (N,)."""

    predicted: npt.NDArray[np.uint16]
    alignment: npt.NDArray[np.float32]


def zero_shot_columns(
    run: Run, data: RunData, split: Split, options: LoadingOptions, original: str | None
) -> ZeroShotColumns:
    """The original CLIP on the images of a split, under the run's prompts.

    ``original``: the CLIP that the run started from, as in `saved.original_clip`, which is asked
    only if the answer is not cached. Raises CarftError as that does, and where an image cannot be
    read.
    """
    environment = data.dataset[split.number]
    positions = positions_in_environment(split)
    scored_positions: Sequence[int] = positions
    if len(positions) >= WORTH_ALL * len(environment):
        scored_positions = range(len(environment))

    path = files.cache_folder() / "zero_shot" / f"{_key(run, data, split, scored_positions)}.npz"
    columns = _load(path, len(scored_positions))
    if columns is None:
        part = Split(
            name=split.name,
            environment=split.environment,
            is_target=split.is_target,
            items=data.items(split.number, scored_positions),
            number=split.number,
        )
        columns = _predict(run, part, options, original)
        with contextlib.suppress(CarftError):  # a full cache costs time, never a result
            facts = {"format": FORMAT, "images": len(scored_positions)}
            arrays.save_arrays(path, vars(columns), facts)

    row_of_position = {position: row for row, position in enumerate(scored_positions)}
    rows = [row_of_position[position] for position in positions]
    return ZeroShotColumns(columns.predicted[rows], columns.alignment[rows])


def _key(run: Run, data: RunData, split: Split, positions: Sequence[int]) -> str:
    """A digest of all that the answer depends on: CLIP, prompts, images, how they are made."""
    environment = data.dataset[split.number]
    parts = {
        "format": FORMAT,
        "clip": run.hparams["clip_digest"],
        "architecture": saved.architecture_of(run),
        "prompts": prompts.as_json(run.contexts, run.classes),
        "folder": os.path.realpath(getattr(environment, "root", "")),
        "images": digest_of_images(environment, positions),
        "transform": repr(getattr(environment, "transform", None)),
        "size": list(run.content["model_input_shape"]),
        "input": [buffer.flatten().tolist() for buffer in run.algorithm.input.buffers()],
        "preprocessing": run.hparams["preprocessing"],
        "plan": run.image_plan.as_json() if data.images is not None else None,
        "device": run.algorithm.context_weights.device.type,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(path: Path, length: int) -> ZeroShotColumns | None:
    """The cached answer for so many images; None without: a damaged one is given anew."""
    with contextlib.suppress(CarftError):
        facts, columns = arrays.load_arrays(path, _DTYPES, "images")
        if facts.get("format") == FORMAT and facts["images"] == length:
            return ZeroShotColumns(**columns)
    return None


@torch.no_grad()
def _predict(
    run: Run, split: Split, options: LoadingOptions, original: str | None
) -> ZeroShotColumns:
    """The answer for all images of a split, in float32 even where the run predicts in bf16."""
    clip = saved.original_clip(run, original)
    run_prompts = prompts.fill_templates(run.contexts, run.classes)
    text_features = backbone.encode_prompts(clip, run_prompts)
    class_weights = objective.zero_shot_weights(text_features).classes.to(options.device)
    encoder = clip.model.visual.to(options.device)

    predicted = []
    alignment = []
    for batch in split_batches([split], options.batch_size, options.workers):
        images = run.algorithm.input(batch.images.to(options.device))
        features = F.normalize(encoder(images).float(), dim=-1)
        cosines = features @ class_weights.T
        labels = batch.labels.to(options.device)
        predicted.append(cosines.argmax(dim=1).cpu())
        alignment.append(cosines.gather(1, labels[:, None]).squeeze(1).cpu())
    return ZeroShotColumns(
        torch.cat(predicted).numpy().astype(np.uint16),
        torch.cat(alignment).numpy().astype(np.float32),
    )
