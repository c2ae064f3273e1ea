"""Plain text, in columns as wide as they need to be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from domainbed_carft.results.document import PLUS_MINUS, Document, Grid
from domainbed_carft.text import shown

WIDTH = 100


def render(document: Document) -> str:
    """Tables first, each with its notes, then the caption."""
    parts = ["\n".join(_lines(grid)) for grid in document.grids]
    parts += ["\n".join(textwrap.wrap(_plain(text), WIDTH)) for text in document.caption]
    return "\n\n".join(parts) + "\n"


def _lines(grid: Grid) -> Iterator[str]:
    yield _plain(grid.title)
    rows = [[_plain(cell) for cell in row] for row in (grid.header, *grid.rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for note in grid.notes:
        yield from textwrap.wrap(_plain(note), WIDTH, subsequent_indent="    ")


def _plain(text: str) -> str:
    return shown(text).replace(PLUS_MINUS, "+/-")
