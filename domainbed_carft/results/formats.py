"""Tables of text cells written as text, Markdown, CSV and JSON, with untrusted names escaped."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.escaping import printable
from domainbed_carft.results.cells import NOT_DECLARED, PLUS_MINUS
from domainbed_carft.text_tables import lay_out

FORMATS = ("text", "markdown", "csv", "json", "latex")
TEXT_WIDTH = 100
TABLE_WIDTH = 120

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~#&])")
_FORMULA_SIGNS = ("=", "+", "-", "@")


class Grid(NamedTuple):
    """A table of text cells; each row has the header's length and begins with its label."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def as_text(grids: Sequence[Grid], captions: Sequence[str]) -> str:
    """Write the tables as text, followed by their captions."""
    paragraphs = []
    for grid in grids:
        lines = [_plain(grid.title)]
        for number, part in enumerate(_split(grid)):
            lines += [""] if number else []
            lines += [line.rstrip() for line in _table(part, "plain", _plain).splitlines()]
        for note in grid.notes:
            lines += textwrap.wrap(_plain(note), TEXT_WIDTH, subsequent_indent="    ")
        paragraphs.append("\n".join(lines))

    for caption in captions:
        paragraphs.append("\n".join(textwrap.wrap(_plain(caption), TEXT_WIDTH)))
    return "\n\n".join(paragraphs) + "\n"


def _split(grid: Grid) -> list[Grid]:
    """Divide a table into parts of at most TABLE_WIDTH characters, each with the first column."""
    widths = [
        # tabulate separates columns by two spaces, and pads their titles by two more.
        2 + max(len(_plain(title)) + 2, *(len(_plain(row[index])) for row in grid.rows), 0)
        for index, title in enumerate(grid.header)
    ]
    parts: list[list[int]] = [[]]
    for index in range(1, len(widths)):
        width = widths[0] + sum(widths[column] for column in parts[-1])
        if parts[-1] and width + widths[index] > TABLE_WIDTH:
            parts.append([])
        parts[-1].append(index)
    return [_select(grid, [0, *columns]) for columns in parts]


def drop_empty_columns(grid: Grid, title: str) -> Grid:
    """Return a table without the columns with a title, on any device, that have no values."""
    columns = [
        index
        for index, header in enumerate(grid.header)
        if header.split(",")[0] != title or any(row[index] != NOT_DECLARED for row in grid.rows)
    ]
    return _select(grid, columns)


def _select(grid: Grid, columns: Sequence[int]) -> Grid:
    return grid._replace(
        header=[grid.header[index] for index in columns],
        rows=[[row[index] for index in columns] for row in grid.rows],
    )


def _plain(text: str) -> str:
    return printable(text).replace(PLUS_MINUS, "+/-")


def as_markdown(grids: Sequence[Grid], captions: Sequence[str]) -> str:
    """Write the tables as a Markdown page, followed by their captions."""
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
    """Escape text from a file or folder, so that Markdown and its tables show it literally."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", " ".join(printable(text).split()))


def _table(grid: Grid, style: str, escape: Callable[[str], str]) -> str:
    """Lay out the grid in a style of tabulate, with every cell passed through ``escape``."""
    header = [escape(cell) for cell in grid.header]
    empty_row = [""] * len(header)
    rows = [[escape(cell) for cell in row] for row in grid.rows or [empty_row]]

    return lay_out(header, rows, style, ["left"] * len(header))


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Write records with equal keys as CSV, with all digits, and empty cells for None."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(records[:1])  # iterating over a record yields its keys, the header
    for record in records:
        writer.writerow([escape_csv(value) for value in record.values()])
    return file.getvalue()


def escape_csv(value: Any) -> Any:
    """Return a value for a cell of CSV: a printable text that is no formula, or any number."""
    if not isinstance(value, str):
        return value

    # A spreadsheet would evaluate a text that looks like a formula.
    return f"'{printable(value)}" if value.startswith(_FORMULA_SIGNS) else printable(value)


def as_json(content: Any) -> str:
    """Write JSON as ASCII, with null for NaN and infinity, so that every program can read it."""
    finite_content = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(finite_content, indent=2) + "\n"
