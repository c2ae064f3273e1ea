"""A batch in pieces, so that it needs the memory of one (the hparam ``micro_batch``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """The pictures of a batch that are computed at once.

    ``labels`` (N,) are the whole batch's, ``place`` says which are this piece's. ``drawn`` holds
    what is random in the step, and is shared by its pieces: they see what the whole batch would.
    """

    labels: Tensor
    place: slice
    drawn: dict[str, Tensor]

    @property
    def own(self) -> Tensor:
        """The labels of this piece's pictures."""
        return self.labels[self.place]

    @property
    def share(self) -> float:
        """The piece's pictures over the batch's: its weight in a mean over pictures."""
        return (self.place.stop - self.place.start) / len(self.labels)

    def once(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """What ``draw`` gives, which only the step's first piece calls."""
        if name not in self.drawn:
            self.drawn[name] = draw()
        return self.drawn[name]


def split(labels: Tensor, size: int) -> Iterator[Piece]:
    """The pieces, of at most ``size`` pictures, of a batch with these ``labels``; 0: the whole."""
    drawn: dict[str, Tensor] = {}
    for first in range(0, len(labels), size or len(labels)):
        last = min(first + (size or len(labels)), len(labels))
        yield Piece(labels, slice(first, last), drawn)


def accumulated(
    loss: Callable[[Tensor, Piece], dict[str, Tensor]], x: Tensor, batch: Iterable[Piece]
) -> dict[str, Tensor]:
    """Add up the gradients of a ``batch`` of pictures ``x`` piece by piece; the parts of its loss."""
    found: dict[str, Tensor] = {}
    for piece in batch:
        parts = loss(x[piece.place], piece)
        if parts["loss"].requires_grad:
            (parts["loss"] * piece.share).backward()
        shares = {name: part.detach() * piece.share for name, part in parts.items()}
        found = {name: found[name] + s if name in found else s for name, s in shares.items()}
    return found
