"""Tables as words, and how they are written: text, Markdown, CSV, JSON; foreign names escaped."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.results.columns import PLUS_MINUS
from domainbed_carft.text import printable

FORMATS = ("text", "markdown", "csv", "json", "latex")
TEXT_WIDTH = 100

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~#&])")
_FORMULA_SIGNS = ("=", "+", "-", "@")


class Grid(NamedTuple):
    """A table as words: rows are as long as the header, and begin with their label."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def as_text(grids: Sequence[Grid], captions: Sequence[str]) -> str:
    """The tables as text, then the captions, which explain them."""
    paragraphs = []
    for grid in grids:
        lines = [_plain(grid.title)]
        lines += [line.rstrip() for line in _table(grid, "plain", _plain).splitlines()]
        for note in grid.notes:
            lines += textwrap.wrap(_plain(note), TEXT_WIDTH, subsequent_indent="    ")
        paragraphs.append("\n".join(lines))

    for caption in captions:
        paragraphs.append("\n".join(textwrap.wrap(_plain(caption), TEXT_WIDTH)))
    return "\n\n".join(paragraphs) + "\n"


def _plain(text: str) -> str:
    return printable(text).replace(PLUS_MINUS, "+/-")


def as_markdown(grids: Sequence[Grid], captions: Sequence[str]) -> str:
    """The tables as a page in Markdown, then the captions, which explain them."""
    lines = ["# Results"]
    for grid in grids:
        table = _table(grid, "github", escape_markdown)
        lines += ["", f"## {escape_markdown(grid.title)}", "", table]
        if grid.notes:
            lines += ["", *(f"- {escape_markdown(note)}" for note in grid.notes)]

    for caption in captions:
        lines += ["", escape_markdown(caption)]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text from a file or a folder as plain words of Markdown, also between a table's bars."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", " ".join(printable(text).split()))


def _table(grid: Grid, style: str, escape: Callable[[str], str]) -> str:
    """The grid as one of tabulate's styles; every cell goes through ``escape``."""
    from tabulate import tabulate

    header = [escape(cell) for cell in grid.header]
    empty_row = [""] * len(header)
    rows = [[escape(cell) for cell in row] for row in grid.rows or [empty_row]]

    alignment = ["left"] * len(header)
    return tabulate(rows, header, style, colalign=alignment, disable_numparse=True)


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """One table of records with the same keys, with all digits; empty cells for missing values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(records[:1])  # iterating over a record gives its keys: the header
    for record in records:
        writer.writerow([_escape_csv(value) for value in record.values()])
    return file.getvalue()


def _escape_csv(value: Any) -> Any:
    if not isinstance(value, str):
        return value

    # A spreadsheet would compute a formula.
    return f"'{printable(value)}" if value.startswith(_FORMULA_SIGNS) else printable(value)


def as_json(content: Any) -> str:
    """JSON that every program reads, in any encoding: ASCII, and null for NaN and infinity."""
    without_nan = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(without_nan, indent=2) + "\n"
