"""One HTML page that needs nothing from anywhere else."""

from __future__ import annotations

import html
from collections.abc import Iterator

from domainbed_carft.collect.document import Document, Grid
from domainbed_carft.printable import shown

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:1rem auto;max-width:72rem;padding:0 1rem}"
    ".wide{overflow-x:auto}table{border-collapse:collapse}"
    "caption{text-align:left;font-weight:bold;padding:.5rem 0}"
    "th,td{padding:.25rem .75rem;text-align:left;white-space:nowrap;border-bottom:1px solid #8888}"
    "ul{margin:.25rem 0 1.5rem}"
)


def render(document: Document) -> str:
    """Tables with headers for screen readers, notes below."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_escaped(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{_escaped(document.title)}</h1>",
    ]
    for grid in document.grids:
        parts += _grid(grid)
    parts += [f"<p>{_escaped(text)}</p>" for text in document.caption]
    return "\n".join([*parts, "</body>\n</html>"]) + "\n"


def _grid(grid: Grid) -> Iterator[str]:
    # A region that scrolls has to be reached by keyboard.
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{_escaped(grid.title)}">'
    yield f"<table>\n<caption>{_escaped(grid.title)}</caption>\n<thead>"
    headings = "".join(f'<th scope="col">{_escaped(cell)}</th>' for cell in grid.header)
    yield f"<tr>{headings}</tr>\n</thead>\n<tbody>"
    for label, *cells in grid.rows:
        row = "".join(f"<td>{_escaped(cell)}</td>" for cell in cells)
        yield f'<tr><th scope="row">{_escaped(label)}</th>{row}</tr>'
    yield "</tbody>\n</table>\n</div>"
    if grid.notes:
        yield "<ul>"
        for note in grid.notes:
            yield f"<li>{_escaped(note)}</li>"
        yield "</ul>"


def _escaped(text: str) -> str:
    return html.escape(shown(text))
