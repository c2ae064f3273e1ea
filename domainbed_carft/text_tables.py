"""Tables of text, laid out by tabulate."""

from __future__ import annotations

from collections.abc import Sequence

from domainbed_carft.escaping import printable

_EMPTY_CELLS = ("", "-", "?")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain table: numbers are aligned right, and empty columns are dropped."""
    columns = [
        index for index in range(len(head)) if any(row[index] not in _EMPTY_CELLS for row in rows)
    ]
    body = [[printable(row[index]) for index in columns] for row in rows]
    alignments = [
        "right" if all(cell[:1].isdigit() or cell in _EMPTY_CELLS for cell in column) else "left"
        for column in zip(*body)
    ]

    # The head is passed as a row, because tabulate pads a head by two spaces.
    rows = [[head[index] for index in columns], *body]
    lines = lay_out((), rows, "plain", alignments)
    return "\n".join(line.rstrip() for line in lines.splitlines())


def lay_out(
    head: Sequence[str], rows: Sequence[Sequence[str]], style: str, alignments: Sequence[str]
) -> str:
    """Lay out a table in a style of tabulate, without reading its cells as numbers."""
    from tabulate import tabulate

    return tabulate(rows, head, style, colalign=alignments, disable_numparse=True)
