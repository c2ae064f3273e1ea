"""What was wrong with what was read: never fatal, never silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from domainbed_carft.text import shown

SHOWN = 20  # of a kind


class Fault(NamedTuple):
    """What was wrong with what was read: its kind, for counting; where; what became of it."""

    kind: str
    path: str
    text: str


def lines(faults: Iterable[Fault]) -> Iterator[str]:
    """A line a fault, the same kinds together, of many of a kind the first and the number."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault)
    for kind, found in kinds.items():
        for fault in found[:SHOWN]:
            yield shown(f"{kind}: {fault.path}: {fault.text}")
        if len(found) > SHOWN:
            yield f"{kind}: ... and {len(found) - SHOWN} more (all of them: --format json)"
