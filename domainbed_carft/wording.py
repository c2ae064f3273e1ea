"""Numbers with the words that depend on them."""

from __future__ import annotations


def inflected(count: int, one: str, many: str = "") -> str:
    """``one`` after a count of 1, else ``many``, which is ``one`` with an s if it is left out."""
    return one if count == 1 else many or f"{one}s"


def counted(count: int, one: str, many: str = "") -> str:
    """The number and what it counts: 1 job, 3,840 jobs."""
    return f"{count:,} {inflected(count, one, many)}"
