"""A document as text, Markdown, CSV, JSON or LaTeX, with foreign names escaped for each."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable
from typing import Any

from domainbed_carft.results.cells import PLUS_MINUS
from domainbed_carft.results.document import Document, Grid
from domainbed_carft.text import printable

TEXT_WIDTH = 100

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~#&])")
# Not ASCII, nor what TeX's first font encoding makes of letters and accents.
_NOT_IN_LATEX_FONT = re.compile(f"[^ -~\u00c0-\u00ff{PLUS_MINUS}]|[ÐÞðþ×÷]")
_LATEX_SIGN_NAMES = {
    "\\": "backslash",
    "~": "asciitilde",
    "^": "asciicircum",
    "<": "less",
    ">": "greater",
    "|": "bar",
}
_LATEX = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        **{sign: rf"\text{name}{{}}" for sign, name in _LATEX_SIGN_NAMES.items()},
        PLUS_MINUS: r"$\pm$",
        '"': "''",
        "-": r"{-}",  # two in a row would become a dash
        "[": "{[}",  # after a row's end it would be read as a length
    }
)
_LATEX_PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{graphicx}
\sloppy
\begin{document}
\section*{Results}"""
# A LaTeX table does not break across pages, so a longer one is split and gets its header again.
_LATEX_ROWS_PER_TABLE = 36
# Shrinks a table that is wider than the page, and no other.
_LATEX_FIT_TO_PAGE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"

_FORMULA_SIGNS = ("=", "+", "-", "@")


def as_json(content: Any) -> str:
    """JSON that every program reads, in any encoding: ASCII, and null for NaN and infinity."""
    without_nan = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(without_nan, indent=2, allow_nan=False) + "\n"


def _table(grid: Grid, style: str, escape: Callable[[str], str]) -> str:
    """The grid as one of tabulate's styles; every cell goes through ``escape``."""
    from tabulate import tabulate

    header = [escape(cell) for cell in grid.header]
    empty_row = [""] * len(header)
    rows = [[escape(cell) for cell in row] for row in grid.rows or [empty_row]]

    alignment = ["left"] * len(header)
    return tabulate(rows, header, style, colalign=alignment, disable_numparse=True)


def _text(document: Document) -> str:
    paragraphs = []
    for grid in document.grids:
        lines = [_plain(grid.title)]
        lines += [line.rstrip() for line in _table(grid, "plain", _plain).splitlines()]
        for note in grid.notes:
            lines += textwrap.wrap(_plain(note), TEXT_WIDTH, subsequent_indent="    ")
        paragraphs.append("\n".join(lines))

    for caption in document.caption:
        paragraphs.append("\n".join(textwrap.wrap(_plain(caption), TEXT_WIDTH)))
    return "\n\n".join(paragraphs) + "\n"


def _plain(text: str) -> str:
    return printable(text).replace(PLUS_MINUS, "+/-")


def _markdown(document: Document) -> str:
    lines = ["# Results"]
    for grid in document.grids:
        table = _table(grid, "github", escape_markdown)
        lines += ["", f"## {escape_markdown(grid.title)}", "", table]
        if grid.notes:
            lines += ["", *(f"- {escape_markdown(note)}" for note in grid.notes)]

    for caption in document.caption:
        lines += ["", escape_markdown(caption)]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text from a file or a folder as plain words of Markdown, also between a table's bars."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", " ".join(printable(text).split()))


def _csv(document: Document) -> str:
    """The one table of ``document.records``, with all digits; empty cells for missing values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(document.records[:1])  # iterating over a record gives its keys: the header
    for record in document.records:
        writer.writerow([_escape_csv(value) for value in record.values()])
    return file.getvalue()


def _escape_csv(value: Any) -> Any:
    if not isinstance(value, str):
        return value

    # A spreadsheet would compute a formula.
    return f"'{printable(value)}" if value.startswith(_FORMULA_SIGNS) else printable(value)


def _json(document: Document) -> str:
    return as_json(document.as_dict())


def _latex(document: Document) -> str:
    """A whole LaTeX document, from which tables can be copied; they need graphicx."""
    lines = [_LATEX_PREAMBLE]
    for grid in document.grids:
        lines += ["", rf"\subsection*{{{escape_latex(grid.title)}}}"]

        for start in range(0, len(grid.rows) or 1, _LATEX_ROWS_PER_TABLE):
            page = grid._replace(rows=grid.rows[start : start + _LATEX_ROWS_PER_TABLE])
            table = _table(page, "latex_raw", escape_latex)
            lines += [rf"\noindent{_LATEX_FIT_TO_PAGE}{{{table}}}\par\smallskip"]

        for note in grid.notes:
            lines += ["", r"\noindent{\small " + escape_latex(note) + r"\par}"]

    for caption in document.caption:
        lines += ["", r"\noindent " + escape_latex(caption)]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; of what pdfLaTeX has no letter for, the code point."""

    def code_point(match: re.Match[str]) -> str:
        return f"(U+{ord(match[0]):04X})"

    return _NOT_IN_LATEX_FONT.sub(code_point, text).translate(_LATEX)


# Name -> what writes a document in this format
FORMATS = {"text": _text, "markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}
