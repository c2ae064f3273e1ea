"""Predict the images of splits and test sets, batch by batch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from domainbed_carft import machine
from domainbed_carft.arguments import BATCH, WORKERS, require_kind
from domainbed_carft.errors import CarftError
from domainbed_carft.images import stages
from domainbed_carft.images.squares import ImageMemory, Squares
from domainbed_carft.progress_bar import progress
from domainbed_carft.results.metrics import PREDICTION, PROBABILITIES, PredictionArray
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs.run import Run, require_finite
from domainbed_carft.runs.splits import ImageSet

MIN_IMAGES_FOR_WORKERS = 5000  # for fewer images, starting processes takes longer than it saves
MAX_DEFAULT_WORKERS = 8

# From images (N, 3, R, R) to logits (N, K), once for each variant of the weights.
Predictor = Callable[[Tensor], Iterable[Tensor]]
# From logits (N, K) and labels (N,) to predictions (N,).
PredictionMaker = Callable[[Tensor, Tensor], PredictionArray]


@dataclass(frozen=True)
class LoadingOptions:
    """Options for loading and predicting images.

    Attributes:
        device: device of the model.
        batch_size: images per batch.
        workers: number of processes that load images; None for one per core if there are many
            images.
        data_dir: folder of the data; None for the recorded one.
        memory: keeps decoded images for the next pass over them; None to keep none.
    """

    device: torch.device
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    memory: ImageMemory | None = None


def check_loading(batch_size: Any, workers: Any) -> None:
    """Raise CarftError if one of these arguments of the Python API has a wrong type."""
    require_kind(BATCH, batch_size=batch_size)
    require_kind(WORKERS, is_optional=True, workers=workers)


def worker_count(workers: int | None, has_many_images: bool) -> int:
    """Return the number of loading processes.

    By default it is one per core, or per core of the slot of `pool`, if there are many images.
    """
    if workers is not None:
        return workers
    return min(MAX_DEFAULT_WORKERS, machine.job_cores()) if has_many_images else 0


def load_batches(
    image_sets: Sequence[ImageSet], options: LoadingOptions
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Iterate over all images of all sets, in order, in batches of a single set each.

    Returns:
        For each batch the index of its set, the images (N, 3, H, W) and the labels (N,), on the
        device of the model.

    Raises:
        CarftError: with the name of the set, if an image cannot be read.
    """
    total = sum(map(len, image_sets))
    workers = worker_count(options.workers, total >= MIN_IMAGES_FOR_WORKERS)

    with progress(total=total, unit="image", description="evaluating", delay=2) as bar:
        for position, image_set in enumerate(image_sets):
            batches: Iterable[tuple[Tensor, Tensor]]
            if image_set.squares is None:
                batches = DataLoader(image_set.items, options.batch_size, num_workers=workers)
            else:
                batches = _load_squares(image_set.squares, options, workers)
            try:
                for images, labels in batches:
                    device = options.device
                    yield position, images.to(device), labels.to(device)
                    bar.update(len(images))
            # From Pillow or the harness; a worker's error contains its traceback.
            except (OSError, CarftError) as error:
                last_line = str(error).rstrip().rpartition("\n")[2]
                reason = re.sub(r"^[\w.]+Error: ", "", last_line)
                raise CarftError(
                    f"an image of {image_set.environment} ({image_set.name}): {reason}"
                ) from error


def _load_squares(
    squares: Squares, options: LoadingOptions, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images without random steps, taken from the memory or decoded."""
    memory = options.memory or ImageMemory(limit=0)
    keys = squares.get_keys()
    kept = [memory.get(key) for key in keys]
    missing = [position for position, square in enumerate(kept) if square is None]
    loader = DataLoader(Subset(squares, missing), options.batch_size, num_workers=workers)
    decoded = itertools.chain.from_iterable(loader)

    for begin in range(0, len(keys), options.batch_size):
        batch = []
        for position in range(begin, min(begin + options.batch_size, len(keys))):
            square = kept[position]
            if square is None:
                square = next(decoded)
                memory.keep(keys[position], square)
            batch.append(square)

        labels = [label for _, label in squares.samples[begin : begin + len(batch)]]
        pixels = torch.stack(batch).to(options.device)
        no_draws = stages.draw_choices(squares.plan).expand(len(batch), -1)
        yield stages.second_stage(squares.plan, pixels, no_draws), torch.tensor(labels)


@torch.no_grad()
def predict_image_sets(
    image_sets: Sequence[ImageSet],
    predict: Predictor,
    options: LoadingOptions,
    variants: int = 1,
    make_predictions: PredictionMaker | None = None,
) -> list[list[PredictionArray]]:
    """Predict all images of the sets with each variant of the weights, in one pass.

    Args:
        image_sets: the splits or test sets to predict.
        predict: returns the logits of a batch for each variant.
        options: how to load the images.
        variants: number of variants that ``predict`` returns.
        make_predictions: makes the predictions of a batch from its logits and labels. Default:
            `make_image_predictions`.

    Returns:
        For each variant, the predictions of each set.
    """
    make_predictions = make_predictions or make_image_predictions
    parts: list[list[list[PredictionArray]]] = [[[] for _ in image_sets] for _ in range(variants)]
    for position, images, labels in load_batches(image_sets, options):
        for parts_of_variant, logits in zip(parts, predict(images)):
            parts_of_variant[position].append(make_predictions(logits, labels))
    return [
        [np.concatenate(part) if part else np.empty(0, PREDICTION) for part in parts_of_variant]
        for parts_of_variant in parts
    ]


def make_image_predictions(logits: Tensor, labels: Tensor) -> PredictionArray:
    """Return the predictions of a batch from its logits (N, K) and labels (N,)."""
    log_probabilities = logits.double().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    columns = torch.stack(
        [
            probabilities.amax(dim=1),
            log_probabilities.gather(1, labels[:, None]).squeeze(1),
            (probabilities**2).sum(dim=1),
        ]
    )
    columns = columns.cpu()
    require_finite(columns[0])

    predictions = np.empty(len(labels), PREDICTION)
    predictions["label"] = labels.cpu().numpy()
    predictions["predicted"] = logits.argmax(dim=1).cpu().numpy()
    for name, column in zip(PROBABILITIES, columns.numpy()):
        predictions[name] = column
    return predictions


def make_predictor(run: Run, device: torch.device) -> Predictor:
    """Return a predictor that uses the run's current weights; moves the run to ``device``."""
    algorithm = run.algorithm.to(device)
    return lambda images: [algorithm.predict(images)]
