"""Wording of messages: counts with their nouns, and long lists cut short."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def quantity(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun, such as "1 job" or "3,840 jobs"."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def limit_lines(lines: Sequence[str], limit: int = 20) -> list[str]:
    """Return the first lines, and a line with the number of the others."""
    excess = len(lines) - limit
    if excess <= 0:
        return list(lines)
    return [*lines[:limit], f"  ... and {excess:,} more"]


def shorten(value: object, limit: int = 10) -> str:
    """Return the repr of a value, cut after the first entries of a long list."""
    if not isinstance(value, (list, tuple)) or len(value) <= limit:
        return repr(value)
    return f"[{', '.join(map(repr, value[:limit]))} and {len(value) - limit:,} more]"


def trim_differences(before: object, now: object, limit: int = 10) -> tuple[str, str]:
    """Return the reprs of two values, cut to the entries that differ if they are long lists."""
    if isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > limit:
        pairs = list(itertools.zip_longest(before, now, fillvalue=None))
        before = [old for old, new in pairs if old != new and old is not None]
        now = [new for old, new in pairs if old != new and new is not None]
    return shorten(before, limit), shorten(now, limit)
