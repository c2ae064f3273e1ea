"""Predict the images of splits, batch by batch, to one row per image."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from domainbed_carft import machine
from domainbed_carft.arguments import COUNT, NATURAL, TEXT, check
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.results.evaluations import ImageRows
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs.run import Run, require_finite
from domainbed_carft.runs.splits import Split
from domainbed_carft.text import progress

MIN_IMAGES_FOR_WORKERS = 5000  # for fewer images, starting processes takes longer than it saves
MAX_WORKERS = 8  # unless --workers is given

# From images (N, 3, R, R) to logits (N, K), once for each variant of the weights.
Predictor = Callable[[Tensor], Iterable[Tensor]]


@dataclass(frozen=True)
class LoadingOptions:
    """Options for loading and predicting images.

    Attributes:
        device: device of the model.
        batch_size: images per batch.
        workers: number of processes that load images; None for one per core if there are many
            images.
        data_dir: folder of the data; None for the recorded one.
    """

    device: torch.device
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None


def check_loading(suite: Any, batch_size: Any, workers: Any) -> None:
    """Raise CarftError if one of these arguments of the Python API has a wrong type."""
    check(TEXT, is_optional=True, suite=suite)
    check(COUNT, batch_size=batch_size)
    check(NATURAL, is_optional=True, workers=workers)


def choose_device(name: str | None) -> torch.device:
    """Return the device called ``name``, such as "cuda:1", or the default device for None.

    Makes convolutions deterministic, as DomainBed's train does. Raises CarftError if the device is
    not available.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

    name = name or str(devices.default_device())
    try:
        device = torch.device(name)
        reason = devices.describe_unsupported(device)
        if not reason:
            device = torch.empty(1, device=device).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise CarftError(
            f"--device {name} cannot be used ({reason}); expected cpu, cuda or cuda:N of this "
            "machine"
        )

    if not devices.is_gpu(device):
        machine.keep_freed_memory()
    return device


def worker_count(workers: int | None, has_many_images: bool) -> int:
    """Return the number of loading processes; by default one per core if there are many images."""
    if workers is not None:
        return workers
    return min(MAX_WORKERS, machine.cores()) if has_many_images else 0


class SplitBatch(NamedTuple):
    """A batch of images of one split."""

    position: int  # index of the split in the list of splits
    images: Tensor  # (N, 3, H, W)
    labels: Tensor  # (N,)


def split_batches(
    splits: Sequence[Split], batch_size: int, workers: int | None
) -> Iterator[SplitBatch]:
    """Iterate over all images of all splits, in order, in batches of a single split each.

    Raises CarftError, with the split's name, if an image cannot be read.
    """
    total = sum(map(len, splits))
    processes = worker_count(workers, total >= MIN_IMAGES_FOR_WORKERS)

    with progress(total=total, unit="image", description="evaluating", delay=2) as bar:
        for position, split in enumerate(splits):
            try:
                for images, labels in DataLoader(split.items, batch_size, num_workers=processes):
                    yield SplitBatch(position, images, labels)
                    bar.update(len(images))
            # From Pillow or the harness; a worker's error contains its traceback.
            except (OSError, CarftError) as error:
                last_line = str(error).rstrip().rpartition("\n")[2]
                reason = re.sub(r"^[\w.]+Error: ", "", last_line)
                raise CarftError(
                    f"an image of {split.environment} ({split.name}): {reason}"
                ) from error


@torch.no_grad()
def predict_rows(
    splits: Sequence[Split], predict: Predictor, options: LoadingOptions, variants: int = 1
) -> list[list[ImageRows]]:
    """Predict all images of the splits with each variant of the weights, in one pass.

    Args:
        splits: the splits to predict.
        predict: returns the logits of a batch for each variant.
        options: how to load the images.
        variants: number of variants that ``predict`` returns.

    Returns:
        For each variant, the rows of each split.
    """
    batches: list[list[list[ImageRows]]] = [[[] for _ in splits] for _ in range(variants)]
    for batch in split_batches(splits, options.batch_size, options.workers):
        variant_logits = predict(batch.images.to(options.device))
        labels = batch.labels.to(options.device)
        for batches_of_variant, logits in zip(batches, variant_logits):
            batches_of_variant[batch.position].append(_make_rows(logits, labels))
    return [[ImageRows.concatenate(parts) for parts in variant] for variant in batches]


def _make_rows(logits: Tensor, labels: Tensor) -> ImageRows:
    """Return the rows of a batch from its logits (N, K) and labels (N,)."""
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
    top, log_true, sum_of_squares = columns.numpy()
    return ImageRows(
        label=labels.cpu().numpy().astype(np.uint16),
        predicted=logits.argmax(dim=1).cpu().numpy().astype(np.uint16),
        top=top,
        log_true=log_true,
        sum_of_squares=sum_of_squares,
    )


def make_predictor(run: Run, device: torch.device) -> Predictor:
    """Return a predictor that uses the run's current weights; moves the run to ``device``."""
    algorithm = run.algorithm.to(device)
    return lambda images: [algorithm.predict(images)]


@dataclass(frozen=True)
class SplitAccuracies:
    """Accuracies as shares of 1, or None if there is no image.

    Attributes:
        in_domain: mean over the out-splits of the training environments.
        out_of_domain: mean over the in-splits of the test environments.
        splits: accuracy by the split's name.
    """

    in_domain: float | None
    out_of_domain: float | None
    splits: dict[str, float | None]


def compute_accuracies(splits: Sequence[Split], rows: Sequence[ImageRows]) -> SplitAccuracies:
    """Return the accuracies of one variant of the weights on the splits, and their two means."""
    accuracies = {
        split.name: int(part.is_correct.sum()) / len(part.label) if len(part.label) else None
        for split, part in zip(splits, rows)
    }
    in_domain = [
        accuracies[split.name]
        for split in splits
        if not split.is_target and split.name.endswith("_out")
    ]
    out_of_domain = [
        accuracies[split.name] for split in splits if split.is_target and split.name.endswith("_in")
    ]
    return SplitAccuracies(_mean(in_domain), _mean(out_of_domain), accuracies)


def _mean(accuracies: Sequence[float | None]) -> float | None:
    measured = [accuracy for accuracy in accuracies if accuracy is not None]
    return float(np.mean(measured)) if measured else None
