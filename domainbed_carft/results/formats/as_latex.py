"""A LaTeX document of plain tables: it compiles with what the smallest TeX installation has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from domainbed_carft.results.document import PLUS_MINUS, Document, Grid

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        PLUS_MINUS: r"$\pm$",
        '"': "''",
        "-": r"{-}",  # two in a row would become a dash
        "[": "{[}",  # after a row's end it would be read as a length
        **{character: "\\" + character for character in "&%$#_{}"},
    }
)
# Shrinks a table that is wider than the page, and no other.
_PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{graphicx}
\newsavebox{\carftbox}
\newcommand{\fitted}{\ifdim\wd\carftbox>\linewidth
  \resizebox{\linewidth}{!}{\usebox{\carftbox}}\else\usebox{\carftbox}\fi}
\sloppy
\begin{document}"""


def render(document: Document) -> str:
    """A whole document, of which a table can be taken out together with the preamble."""
    lines = [_PREAMBLE, rf"\section*{{{_escaped(document.title)}}}"]
    for grid in document.grids:
        lines += ["", *_grid(grid)]
    for text in document.caption:
        lines += ["", r"\noindent " + _escaped(text)]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _grid(grid: Grid) -> Iterator[str]:
    yield rf"\subsection*{{{_escaped(grid.title)}}}"
    yield rf"\noindent\sbox{{\carftbox}}{{\begin{{tabular}}{{{'l' * len(grid.header)}}}"
    yield r"\hline"
    yield _row(rf"\textbf{{{_escaped(cell)}}}" for cell in grid.header)
    yield r"\hline"
    for row in grid.rows:
        yield _row(map(_escaped, row))
    yield r"\hline"
    yield r"\end{tabular}}\fitted\par\smallskip"
    for note in grid.notes:
        yield ""
        yield r"\noindent{\small " + _escaped(note) + r"\par}"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    """Text as LaTeX prints it; of what pdfLaTeX has no letter for, the code point."""
    known = (c if _has_letter(c) else f"(U+{ord(c):04X})" for c in text)
    return "".join(known).translate(_SPECIAL)


def _has_letter(character: str) -> bool:
    """ASCII, and what TeX's first font encoding makes of letters and accents."""
    accented = "\u00c0" <= character <= "\u00ff" and character not in "ÐÞðþ×÷"
    return " " <= character <= "~" or accented or character == PLUS_MINUS
