"""A batch, or this process's slice of it, in micro-batches that fit into memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.encoders import Encoding

DROPOUT_RATES = ("p", "prob", "drop_prob")  # of torch's modules, open_clip's and timm's


def require_minibatches(minibatches: Sequence[Any], class_count: int) -> None:
    """Raise a CarftError for what is not a list of pairs (x, y), as `update` takes them.

    Labels in floating point are left to torch: they may be the probabilities of the classes.
    """
    pairs = "expected update(minibatches) with a list of pairs (x, y), one for each environment"
    if not minibatches:
        raise CarftError(f"update got no minibatch, {pairs}")

    for number, pair in enumerate(minibatches):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(part, Tensor) for part in pair):
            raise CarftError(f"minibatch {number} is a {type(pair).__name__}, {pairs}")

        x, y = pair
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise CarftError(
                f"x of minibatch {number} is {x.dtype} of shape {tuple(x.shape)}, expected "
                "normalised images in floating point of shape (N, 3, H, W), as preprocess of the "
                "algorithm returns them"
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
    """Which images of a batch are computed at once.

    ``batch_labels`` (N,): the labels of the batch, or of this process's slice of it.
    ``positions``: which of them are the labels of this micro-batch.
    ``batch_size``: the number of images in the batch, over all processes.
    ``random_draws``: the random numbers of the step. Its micro-batches share them, so that each
    sees what the whole batch would.
    """

    batch_labels: Tensor
    positions: slice
    batch_size: int
    random_draws: dict[str, Tensor]

    @property
    def labels(self) -> Tensor:
        """The labels (n,) of the images in this micro-batch."""
        return self.batch_labels[self.positions]

    @property
    def share(self) -> float:
        """The share of the batch that is in this micro-batch, in (0, 1]."""
        return len(self.labels) / self.batch_size

    def draw_once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """The random numbers ``name`` of this step; ``draw`` is called by its first micro-batch."""
        if name not in self.random_draws:
            self.random_draws[name] = draw()
        return self.random_draws[name]


class Batch:
    """A micro-batch with its images, and what both image encoders make of them.

    ``images`` (n, 3, R, R) are as CLIP wants them. `tuned` and `original` are computed when they
    are first asked for, so that each encoder runs once, whoever asks: the loss, the penalties and
    the drift. ``original`` is without gradients.
    """

    def __init__(
        self,
        images: Tensor,
        part: MicroBatch,
        encode: Callable[[Tensor], Encoding],
        encode_original: Callable[[Tensor], Encoding],
    ) -> None:
        self.images = images
        self.part = part
        self._encode = encode
        self._encode_original = encode_original

    @functools.cached_property
    def tuned(self) -> Encoding:
        """Features and activations by the encoder that is trained."""
        return self._encode(self.images)

    @functools.cached_property
    def original(self) -> Encoding:
        """Features and activations by the original encoder, without gradients."""
        return self._encode_original(self.images)

    @property
    def labels(self) -> Tensor:
        """The labels (n,) of the images."""
        return self.part.labels

    @property
    def batch_labels(self) -> Tensor:
        """The labels (N,) of the whole batch, of which the micro-batch is a part."""
        return self.part.batch_labels

    def draw_once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """Random numbers that the micro-batches of a step share, as `MicroBatch.draw_once`."""
        return self.part.draw_once(name, draw)


def split_batch(labels: Tensor, size: int, process_group: Any = None) -> Iterator[MicroBatch]:
    """Micro-batches of at most ``size`` images (0: all) of a batch, or a slice, with ``labels``.

    ``process_group``: the processes that share the batch, if there are several.
    """
    batch_size = process_group.sum_of(len(labels)) if process_group else len(labels)
    random_draws: dict[str, Tensor] = {}
    stride = size or len(labels)

    for start in range(0, len(labels), stride):
        yield MicroBatch(labels, slice(start, start + stride), batch_size, random_draws)


def accumulate_gradients(
    measure: Callable[[Tensor, MicroBatch], dict[str, Tensor]],
    images: Tensor,
    micro_batches: Iterable[MicroBatch],
) -> dict[str, Tensor]:
    """Add up the gradients of the micro-batches, each weighted by its share of the batch.

    ``measure`` returns the ``loss`` of a micro-batch and other scalars. Returns these scalars for
    the whole batch, detached.
    """
    totals: dict[str, Tensor] = {}
    for micro_batch in micro_batches:
        measurements = measure(images[micro_batch.positions], micro_batch)
        share = micro_batch.share
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
    """The sums of the measurements over the processes, or they themselves in a single process."""
    if not process_group:
        return measurements

    values = torch.stack([*measurements.values()])
    process_group.all_reduce([values])
    return dict(zip(measurements, values))


def has_dropout(encoder: nn.Module) -> bool:
    """Whether an encoder draws random numbers for each image when it is trained."""
    dropouts = [module for module in encoder.modules() if "Drop" in type(module).__name__]
    return any(getattr(module, rate, 0) for module in dropouts for rate in DROPOUT_RATES)
