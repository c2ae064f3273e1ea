"""Markdown with tables as GitHub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from domainbed_carft.results.document import Document, Grid
from domainbed_carft.text import shown

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&])")


def render(document: Document) -> str:
    """A heading a table."""
    lines = [f"# {_escaped(document.title)}"]
    for grid in document.grids:
        lines += ["", *_grid(grid)]
    for text in document.caption:
        lines += ["", _escaped(text)]
    return "\n".join(lines) + "\n"


def _grid(grid: Grid) -> Iterator[str]:
    yield f"## {_escaped(grid.title)}"
    yield ""
    yield _row(grid.header)
    yield "|---" * len(grid.header) + "|"
    for row in grid.rows:
        yield _row(row)
    if grid.notes:
        yield ""
    for note in grid.notes:
        yield f"- {_escaped(note)}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(shown(text).split()))
