"""Cached zero-shot predictions of the original CLIP for a run's images, with alignment scores.

All runs of a sweep that share the CLIP checkpoint, the prompts and the images need the same
predictions. So they are computed for all images of an environment, independently of a run's split,
trial and weights, and stored in the cache folder.
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
    get_environment_positions,
    hash_images,
)

FORMAT = 1
# A split with at least this share of its environment has the complete environment predicted,
# because other runs need the other images.
MIN_SHARE = 0.5

_DTYPES: dict[str, np.dtype[Any]] = {"predicted": np.dtype("<u2"), "alignment": np.dtype("<f4")}


@dataclass(frozen=True)
class ZeroShotColumns:
    """Zero-shot predictions for N images.

    Attributes:
        predicted: (N,), the class that the original CLIP predicts.
        alignment: (N,), cosine of the image feature with the zero-shot weight of the true class.
    """

    predicted: npt.NDArray[np.uint16]
    alignment: npt.NDArray[np.float32]


def get_zero_shot_columns(
    run: Run, data: RunData, split: Split, options: LoadingOptions, original: str | None
) -> ZeroShotColumns:
    """Return the original CLIP's predictions for the images of a split, from the cache if possible.

    Args:
        run: the run, whose prompts are used.
        data: the data of the run.
        split: the split.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`;
            loaded only if the predictions are not cached.
    """
    environment = data.dataset[split.number]
    positions = get_environment_positions(split)
    scored_positions: Sequence[int] = positions
    if len(positions) >= MIN_SHARE * len(environment):
        scored_positions = range(len(environment))

    key = _make_cache_key(run, data, split, scored_positions)
    path = files.cache_folder() / "zero_shot" / f"{key}.npz"
    columns = _load_cached(path, len(scored_positions))
    if columns is None:
        part = Split(
            name=split.name,
            environment=split.environment,
            is_target=split.is_target,
            items=data.select_items(split.number, scored_positions),
            number=split.number,
        )
        columns = _predict(run, part, options, original)
        with contextlib.suppress(CarftError):  # without space for the cache, later runs predict
            facts = {"format": FORMAT, "images": len(scored_positions)}
            arrays.save_arrays(path, vars(columns), facts)

    row_of_position = {position: row for row, position in enumerate(scored_positions)}
    rows = [row_of_position[position] for position in positions]
    return ZeroShotColumns(columns.predicted[rows], columns.alignment[rows])


def _make_cache_key(run: Run, data: RunData, split: Split, positions: Sequence[int]) -> str:
    """Return a digest of everything that the predictions depend on."""
    environment = data.dataset[split.number]
    parts = {
        "format": FORMAT,
        "clip": run.hparams["clip_digest"],
        "architecture": saved.get_architecture(run),
        "prompts": prompts.as_json(run.contexts, run.classes),
        "folder": os.path.realpath(getattr(environment, "root", "")),
        "images": hash_images(environment, positions),
        "transform": repr(getattr(environment, "transform", None)),
        "size": list(run.content["model_input_shape"]),
        "input": [buffer.flatten().tolist() for buffer in run.algorithm.input.buffers()],
        "preprocessing": run.hparams["preprocessing"],
        "plan": data.plan.as_json() if data.plan else None,
        "device": run.algorithm.context_weights.device.type,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load_cached(path: Path, length: int) -> ZeroShotColumns | None:
    """Return the cached predictions for ``length`` images, or None if missing or damaged."""
    with contextlib.suppress(CarftError):
        facts, columns = arrays.load_arrays(path, _DTYPES, "images")
        if facts.get("format") == FORMAT and facts["images"] == length:
            return ZeroShotColumns(**columns)
    return None


@torch.no_grad()
def _predict(
    run: Run, split: Split, options: LoadingOptions, original: str | None
) -> ZeroShotColumns:
    """Predict all images of a split, in float32 even if the run predicts in bf16."""
    clip = saved.load_original_clip(run, original)
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
