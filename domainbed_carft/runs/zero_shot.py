"""Cached zero-shot predictions of the original CLIP for a run's images, with alignment scores.

All runs of a sweep that share the CLIP checkpoint, the prompts and the images need the same
predictions. So they are computed for all images of an environment or of a test set, independently
of a run's split, trial and weights, and stored in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.files import arrays
from domainbed_carft.method import objective, prompts
from domainbed_carft.results.metrics import ZERO_SHOT_PREDICTION, PredictionArray
from domainbed_carft.runs import saved
from domainbed_carft.runs.predictions import LoadingOptions, Predictor, predict_image_sets
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.splits import (
    ImageSet,
    JobData,
    get_environment_positions,
    hash_images,
)
from domainbed_carft.runs.suites import group_predictor

FORMAT = 1
# A split with at least this share of its environment has the complete environment predicted,
# because other runs need the other images.
MIN_SHARE = 0.5


def predict_zero_shot(
    run: Run, data: JobData, split: ImageSet, options: LoadingOptions, original: str | None
) -> PredictionArray:
    """Return the original CLIP's predictions for the images of a split, from the cache if possible.

    Args:
        run: the run, whose prompts are used.
        data: the data of the run.
        split: the split.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`;
            loaded only if the predictions are not cached.

    Returns:
        Predictions with the fields of ZERO_SHOT_PREDICTION.
    """
    environment = data.dataset[split.number]
    positions = get_environment_positions(split)
    scored_positions: Sequence[int] = positions
    if len(positions) >= MIN_SHARE * len(environment):
        scored_positions = range(len(environment))

    environment_key = {
        "folder": os.path.realpath(getattr(environment, "root", "")),
        "images": hash_images(environment, scored_positions),
        "transform": repr(getattr(environment, "transform", None)),
        "plan": data.plan.as_json() if data.plan else None,
    }
    predictions = _predict_cached(
        _make_cache_key(run, environment_key),
        len(scored_positions),
        lambda: data.select(split, scored_positions),
        lambda: _make_predictor(run, options.device, original),
        options,
    )
    index_of = {position: index for index, position in enumerate(scored_positions)}
    return predictions[[index_of[position] for position in positions]]


def predict_test_set_zero_shot(
    run: Run, image_set: ImageSet, digest: str, options: LoadingOptions, original: str | None
) -> PredictionArray:
    """Return the original CLIP's predictions for a test set, from the cache if possible.

    Args:
        run: the run, whose prompts are used.
        image_set: the test set; the largest cosine of a group is the one of its class.
        digest: SHA-256 of its images and groups.
        options: how to load the images.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.

    Returns:
        Predictions with the fields of ZERO_SHOT_PREDICTION.
    """
    squares = image_set.squares
    assert squares is not None  # of every test set
    test_set_key = {
        "images": digest,
        "plan": squares.plan.as_json(),
        "border": squares.border,
        "is_resized_by_pillow": squares.is_resized_by_pillow,
    }
    return _predict_cached(
        _make_cache_key(run, test_set_key),
        len(squares),
        lambda: image_set,
        lambda: group_predictor(_make_predictor(run, options.device, original), image_set.groups),
        options,
    )


def _predict_cached(
    key: str,
    length: int,
    select: Callable[[], ImageSet],
    make_predictor: Callable[[], Predictor],
    options: LoadingOptions,
) -> PredictionArray:
    """Return the cached predictions with a key, or predict and cache them.

    Args:
        key: digest of everything that the predictions depend on.
        length: number of images.
        select: returns the images.
        make_predictor: returns the predictor of their cosines.
        options: how to load the images.
    """
    path = files.cache_folder() / "zero_shot" / f"{key}.npz"
    predictions = _load_cached(path, length)
    if predictions is None:
        ((predictions,),) = predict_image_sets(
            [select()], make_predictor(), options, make_predictions=_make_predictions
        )
        with contextlib.suppress(CarftError):  # without space for the cache, later runs predict
            arrays.save_arrays(
                path, {"predictions": predictions}, {"format": FORMAT, "images": len(predictions)}
            )
    return predictions


def _make_cache_key(run: Run, images: Mapping[str, Any]) -> str:
    """Return a digest of everything that the predictions of some ``images`` depend on."""
    parts = {
        "format": FORMAT,
        "clip": run.hparams["clip_digest"],
        "architecture": saved.get_architecture(run),
        "prompts": prompts.as_json(run.contexts, run.classes),
        "size": list(run.content["model_input_shape"]),
        "input": [buffer.flatten().tolist() for buffer in run.algorithm.input.buffers()],
        "preprocessing": run.hparams["preprocessing"],
        "device": run.algorithm.context_weights.device.type,
        "torch": torch.__version__,
        **images,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load_cached(path: Path, length: int) -> PredictionArray | None:
    """Return the cached predictions for ``length`` images, or None if missing or damaged."""
    with contextlib.suppress(CarftError):
        facts, columns = arrays.load_arrays(path, {"predictions": ZERO_SHOT_PREDICTION}, "images")
        if facts.get("format") == FORMAT and facts["images"] == length:
            return columns["predictions"]
    return None


def _make_predictor(run: Run, device: torch.device, original: str | None) -> Predictor:
    """Return a predictor of cosines, in float32 even if the run predicts in bf16."""
    clip = saved.load_original_clip(run, original)
    run_prompts = prompts.fill_templates(run.contexts, run.classes)
    text_features = backbone.encode_prompts(clip, run_prompts)
    class_weights = objective.zero_shot_weights(text_features).classes.to(device)
    encoder = clip.model.visual.to(device)

    def predict(images: Tensor) -> list[Tensor]:
        features = F.normalize(encoder(run.algorithm.input(images)).float(), dim=-1)
        return [features @ class_weights.T]

    return predict


def _make_predictions(cosines: Tensor, labels: Tensor) -> PredictionArray:
    predictions = np.empty(len(labels), ZERO_SHOT_PREDICTION)
    predictions["zero_shot"] = cosines.argmax(dim=1).cpu().numpy()
    predictions["alignment"] = cosines.gather(1, labels[:, None]).squeeze(1).cpu().numpy()
    return predictions
