"""A batch, or this process's slice of it, split into micro-batches that fit into memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.encoders import Encoding, FrozenOriginal, Places, encode

DROPOUT_RATES = ("p", "prob", "drop_prob")  # attributes in torch, open_clip and timm


def require_minibatches(minibatches: Sequence[Any], class_count: int) -> None:
    """Raise a CarftError unless ``minibatches`` is a list of pairs (x, y) for `update`.

    Floating-point labels are not checked here: torch accepts class probabilities.
    """
    pairs = "expected update(minibatches) with a list of pairs (x, y), one for each environment"
    if not minibatches:
        raise CarftError(f"update got no minibatches, {pairs}")

    for number, pair in enumerate(minibatches):
        if (
            not isinstance(pair, (tuple, list))
            or len(pair) != 2
            or not all(isinstance(part, Tensor) for part in pair)
        ):
            raise CarftError(f"minibatch {number} is a {type(pair).__name__}, {pairs}")

        x, y = pair
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise CarftError(
                f"x of minibatch {number} is {x.dtype} of shape {tuple(x.shape)}, expected "
                "normalised floating-point images of shape (N, 3, H, W), as returned by "
                "algorithm.preprocess"
            )
        if y.is_floating_point():
            continue
        wrong = y[(y < 0) | (y >= class_count)]
        if y.shape != x.shape[:1] or y.dtype != torch.int64 or len(wrong):
            example = f" with {int(wrong[0])}" if len(wrong) else ""
            raise CarftError(
                f"y of minibatch {number} is {y.dtype} of shape {tuple(y.shape)}{example}, "
                f"expected torch.int64 of shape ({len(x)},) with labels from 0 to {class_count - 1}"
            )


@dataclass(frozen=True)
class MicroBatch:
    """Images of a batch that are computed at once."""

    labels: Tensor  # (n,)
    batch_labels: Tensor  # (N,), of the batch or of this process's slice of it
    positions: slice  # of the micro-batch in batch_labels
    batch_size: int  # images in the batch, over all processes
    # The step's random numbers by name. Sharing them makes each micro-batch use the same numbers
    # as an undivided batch.
    random_draws: dict[str, Tensor]


@dataclass(eq=False)
class Batch:
    """A micro-batch with its images and their encodings by the tuned and the original encoder.

    `tuned` and `original` are computed on first access, so that each encoder runs once for the
    loss, the penalties and the drift.

    Attributes:
        images: (n, 3, R, R), preprocessed for CLIP.
        part: the micro-batch of these images.
        encoder: the trained encoder.
        frozen: the original encoder, None if it was not built.
        bf16: True to compute in bfloat16.
        places: name -> function that returns the modules whose outputs are recorded.
    """

    images: Tensor
    part: MicroBatch
    encoder: nn.Module
    frozen: FrozenOriginal | None
    bf16: bool
    places: Mapping[str, Places]

    @functools.cached_property
    def tuned(self) -> Encoding:
        """Features (n, D) and activations of the trained encoder."""
        return encode(self.encoder, self.images, self.bf16, self.places)

    @functools.cached_property
    def original(self) -> Encoding:
        """Features (n, D) and activations of the original encoder, without gradients."""
        return self.original_encoder(self.images, self.places)

    @property
    def original_encoder(self) -> FrozenOriginal:
        """The original encoder. Raises CarftError if it was not built."""
        if self.frozen is None:
            raise CarftError(
                "the loss uses batch.original, which was not built; set uses_original = True in "
                "the class of the method"
            )
        return self.frozen

    @property
    def labels(self) -> Tensor:
        """The labels (n,) of the images."""
        return self.part.labels

    @property
    def batch_labels(self) -> Tensor:
        """The labels (N,) of all images in the batch, including the other micro-batches."""
        return self.part.batch_labels

    def draw_once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """Return random numbers shared by all micro-batches of a step.

        Args:
            name: key of the random numbers.
            draw: draws them, called by the first micro-batch.
        """
        draws = self.part.random_draws
        if name not in draws:
            draws[name] = draw()
        return draws[name]


def split_batch(labels: Tensor, size: int, process_group: Any = None) -> Iterator[MicroBatch]:
    """Yield micro-batches of at most ``size`` images (0: all) of the images with these ``labels``.

    With a ``process_group``, the ``labels`` are this process's slice of the batch.
    """
    batch_size = process_group.sum_over_processes(len(labels)) if process_group else len(labels)
    random_draws: dict[str, Tensor] = {}
    stride = size or len(labels)

    for start in range(0, len(labels), stride):
        positions = slice(start, start + stride)
        yield MicroBatch(labels[positions], labels, positions, batch_size, random_draws)


def accumulate_gradients(
    measure: Callable[[Tensor, MicroBatch], dict[str, Tensor]],
    images: Tensor,
    micro_batches: Iterable[MicroBatch],
) -> dict[str, Tensor]:
    """Accumulate the gradients of the micro-batches, each weighted by its share of the batch.

    Args:
        measure: returns the ``loss`` of a micro-batch and further scalars.
        images: (N, 3, H, W) of the batch.
        micro_batches: the parts of the batch.

    Returns:
        The scalars of the batch, detached.
    """
    totals: dict[str, Tensor] = {}
    for micro_batch in micro_batches:
        measurements = measure(images[micro_batch.positions], micro_batch)
        share = len(micro_batch.labels) / micro_batch.batch_size
        loss = measurements["loss"]
        if loss.requires_grad:
            (loss * share).backward()

        for name, value in measurements.items():
            weighted = value.detach() * share
            totals[name] = totals[name] + weighted if name in totals else weighted
    return totals


def all_reduce_gradients(module: nn.Module, process_group: Any) -> None:
    """Replace the gradients by their sums over the processes, if there are several."""
    if process_group:
        process_group.all_reduce([p.grad for p in module.parameters() if p.grad is not None])


def all_reduce_measurements(
    measurements: dict[str, Tensor], process_group: Any
) -> dict[str, Tensor]:
    """Return the measurements, summed over the processes if there are several."""
    if not process_group:
        return measurements

    values = torch.stack([*measurements.values()])
    process_group.all_reduce([values])
    return dict(zip(measurements, values))


def has_dropout(encoder: nn.Module) -> bool:
    """Return True if an encoder draws random numbers for each image in training."""
    dropouts = [module for module in encoder.modules() if "Drop" in type(module).__name__]
    return any(getattr(module, rate, 0) for module in dropouts for rate in DROPOUT_RATES)
