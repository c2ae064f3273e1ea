"""Tables as words, with numbered notes on incomplete cells, in every format.

Text, Markdown, CSV, JSON and LaTeX have foreign names escaped in the way of each.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.results.tables import Table
from domainbed_carft.text import shown

PLUS_MINUS = "±"
NOTHING = "X"

CAPTION = (
    "Accuracy in % on the in-split of the environment left out, which names the column, at the "
    "checkpoint and with the hyperparameters that the selection method chose in each trial; where "
    "nothing was left out, on each out-split at the last step. "
    f"Cells: mean {PLUS_MINUS} standard error (n, the number of trials).",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, divisor n "
    "(numpy.std with ddof 0), as DomainBed computes it; for n = 1 it is meaningless. Avg: mean of "
    "the row's cells. Averages: over each trial's mean over the environments left out.",
    f"[k] marks an incomplete cell; note [k] says why. {NOTHING}: no trial has a value.",
)
WIDTH = 100

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#&])")
# Not ASCII, nor what TeX's first font encoding makes of letters and accents.
_NO_LETTER = re.compile(f"[^ -~\u00c0-\u00ff{PLUS_MINUS}]|[ÐÞðþ×÷]")
_NAMES = ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar")
_LATEX = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        **{sign: rf"\text{name}{{}}" for sign, name in zip("\\~^<>|", _NAMES, strict=True)},
        PLUS_MINUS: r"$\pm$",
        '"': "''",
        "-": r"{-}",  # two in a row would become a dash
        "[": "{[}",  # after a row's end it would be read as a length
    }
)
_PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{graphicx}
\sloppy
\begin{document}
\section*{Results}"""
_OF_A_PAGE = 36  # rows: a table does not break, so what follows has the header again
# Shrinks a table that is wider than the page, and no other.
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"


def number(value: float | None, error: float | None = None, n: int | None = None) -> str:
    """A figure with what is known of it, as ``96.8 ± 0.4 (3)``; "" for None."""
    if value is None:
        return ""
    text = f"{value:.1f}" if error is None else f"{value:.1f} {PLUS_MINUS} {error:.1f}"
    return f"{text} ({n})" if n else text


class Grid(NamedTuple):
    """A table as words: rows are as long as the header, and begin with their label."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


class Document(NamedTuple):
    """``sections``: name -> entries for JSON; ``records``: entries of the one table for CSV."""

    caption: Sequence[str]
    grids: Sequence[Grid]
    sections: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


def grid(table: Table) -> Grid:
    """A table's cells as words, with numbered notes on incomplete ones."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = []
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = number(cell.mean, cell.error, cell.n) or (NOTHING if cell.missing else "-")
            if cell.missing:
                text += f" [{numbers.setdefault(cell.missing, len(numbers) + 1)}]"
            cells.append(text)
        rows.append([row.algorithm, *cells, number(row.average) or NOTHING])
    notes = [f"[{mark}] {'. '.join(missing)}." for missing, mark in numbers.items()]
    return Grid(table.title, ["Algorithm", *table.headers, "Avg"], rows, [*notes, *table.notes])


def table_entry(table: Table) -> dict[str, Any]:
    """A table for JSON."""
    return {
        "setting": table.setting,
        "selection": table.method,
        "dataset": None if table.averages else table.dataset,
        "title": table.title,
        "columns": list(table.columns),
        "rows": [
            {
                "algorithm": row.algorithm,
                "cells": [
                    {
                        "column": column,
                        "mean": cell.mean,
                        "standard_error": cell.error,
                        "n": cell.n,
                        "trials": {str(t): 100 * value for t, value in cell.accuracies.items()},
                        "missing": list(cell.missing),
                    }
                    for column, cell in zip(table.columns, row.cells, strict=True)
                ],
                "average": row.average,
            }
            for row in table.rows
        ],
        "notes": list(table.notes),
    }


def cell_records(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a cell for CSV; those of the averages have the environment "average"."""
    return [
        {
            "setting": entry["setting"],
            "selection": entry["selection"],
            "dataset": entry["dataset"] or cell["column"],
            "environment": cell["column"] if entry["dataset"] else "average",
            "algorithm": row["algorithm"],
            **{name: cell[name] for name in ("mean", "standard_error", "n")},
            "missing": ". ".join(cell["missing"]),
        }
        for entry in entries
        for row in entry["rows"]
        for cell in row["cells"]
    ]


def as_json(content: Any) -> str:
    """JSON that every program reads, in any encoding: ASCII, and null for NaN and infinity."""
    plain = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def _table(grid: Grid, style: str, word: Callable[[str], str]) -> str:
    from tabulate import tabulate

    header = [word(cell) for cell in grid.header]
    rows = [[word(cell) for cell in row] for row in grid.rows or [[""] * len(header)]]
    aligned = ["left"] * len(header)
    return tabulate(rows, header, style, colalign=aligned, disable_numparse=True)


def _text(document: Document) -> str:
    parts = []
    for grid in document.grids:
        lines = [_plain(grid.title)]
        lines += [line.rstrip() for line in _table(grid, "plain", _plain).splitlines()]
        for note in grid.notes:
            lines += textwrap.wrap(_plain(note), WIDTH, subsequent_indent="    ")
        parts.append("\n".join(lines))
    parts += ["\n".join(textwrap.wrap(_plain(text), WIDTH)) for text in document.caption]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return shown(text).replace(PLUS_MINUS, "+/-")


def _markdown(document: Document) -> str:
    lines = ["# Results"]
    for grid in document.grids:
        lines += ["", f"## {_in_markdown(grid.title)}", "", _table(grid, "github", _in_markdown)]
        lines += ["", *(f"- {_in_markdown(note)}" for note in grid.notes)] if grid.notes else []
    for text in document.caption:
        lines += ["", _in_markdown(text)]
    return "\n".join(lines) + "\n"


def _in_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(shown(text).split()))


def _csv(document: Document) -> str:
    """The one table of ``document.records``, with all digits; empty cells for missing values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(document.records[:1])  # the keys
    for record in document.records:
        writer.writerow([_in_csv(value) for value in record.values()])
    return file.getvalue()


def _in_csv(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    formula = "'" if value[:1] in tuple("=+-@") else ""  # a spreadsheet would compute it
    return formula + shown(value)


def _json(document: Document) -> str:
    return as_json({"caption": list(document.caption), **document.sections})


def _latex(document: Document) -> str:
    """A whole document, from which tables can be copied; they need graphicx."""
    lines = [_PREAMBLE]
    for grid in document.grids:
        lines += ["", rf"\subsection*{{{_in_latex(grid.title)}}}"]
        for start in range(0, len(grid.rows) or 1, _OF_A_PAGE):
            part = grid._replace(rows=grid.rows[start : start + _OF_A_PAGE])
            table = _table(part, "latex_raw", _in_latex)
            lines += [rf"\noindent{_FITTED}{{{table}}}\par\smallskip"]
        for note in grid.notes:
            lines += ["", r"\noindent{\small " + _in_latex(note) + r"\par}"]
    for text in document.caption:
        lines += ["", r"\noindent " + _in_latex(text)]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _in_latex(text: str) -> str:
    """Text as LaTeX prints it; of what pdfLaTeX has no letter for, the code point."""
    return _NO_LETTER.sub(lambda found: f"(U+{ord(found[0]):04X})", text).translate(_LATEX)


# Name -> what writes a document in this format
FORMATS = {"text": _text, "markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}
