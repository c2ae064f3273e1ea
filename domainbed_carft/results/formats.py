"""A document as text, Markdown, CSV, JSON or LaTeX, with foreign names escaped for each."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable
from typing import Any

from domainbed_carft.results.document import PLUS_MINUS, Document, Grid
from domainbed_carft.text import shown

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
