"""A batch, or this process's slice of it, in pieces that fit into memory (``micro_batch``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MicroBatch(NamedTuple):
    """The pictures of a batch that are computed at once.

    ``labels`` (N,) are the whole batch's, ``place`` says which are this piece's. ``drawn`` holds
    what is random in the step, and is shared by its pieces: they see what the whole batch would.
    ``whole`` counts the pictures of the batch; in a slice of it are fewer labels.
    """

    labels: Tensor
    place: slice
    drawn: dict[str, Tensor]
    whole: int

    @property
    def own(self) -> Tensor:
        """The labels of this piece's pictures."""
        return self.labels[self.place]

    def once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """What ``draw`` gives, which only the step's first piece calls."""
        if name not in self.drawn:
            self.drawn[name] = draw()
        return self.drawn[name]


def split(labels: Tensor, size: int, process_group: Any = None) -> Iterator[MicroBatch]:
    """The pieces, of at most ``size`` pictures (0: all), of a batch or a slice with ``labels``."""
    whole = process_group.sum_of(len(labels)) if process_group else len(labels)
    drawn: dict[str, Tensor] = {}
    for first in range(0, len(labels), size or len(labels)):
        yield MicroBatch(labels, slice(first, first + (size or len(labels))), drawn, whole)


def accumulate_gradients(
    loss: Callable[[Tensor, MicroBatch], dict[str, Tensor]], x: Tensor, batch: Iterable[MicroBatch]
) -> dict[str, Tensor]:
    """Add up the gradients of a ``batch`` of pictures ``x``; the parts of its loss."""
    found: dict[str, Tensor] = {}
    for piece in batch:
        parts, share = loss(x[piece.place], piece), len(piece.own) / piece.whole
        if parts["loss"].requires_grad:
            (parts["loss"] * share).backward()
        shares = {name: part.detach() * share for name, part in parts.items()}
        found = {name: found[name] + s if name in found else s for name, s in shares.items()}
    return found


def all_reduce_gradients(module: nn.Module, process_group: Any) -> None:
    """Replace the gradients by their sums over the processes, if there are several."""
    if process_group:
        process_group.all_reduce([p.grad for p in module.parameters() if p.grad is not None])


def all_reduce_measures(parts: dict[str, Tensor], process_group: Any) -> dict[str, Tensor]:
    """The sums of the parts of the loss over the processes."""
    if process_group:
        process_group.all_reduce([values := torch.stack([*parts.values()])])
        parts = dict(zip(parts, values))
    return parts


def has_dropout(encoder: nn.Module) -> bool:
    """Whether training draws random numbers for each picture in an encoder."""
    rates = ("p", "prob", "drop_prob")  # torch's, open_clip's, timm's
    dropping = [one for one in encoder.modules() if "Drop" in type(one).__name__]
    return any(getattr(one, rate, 0) for one in dropping for rate in rates)
