"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from domainbed_carft.escaping import printable

_EMPTY_CELLS = ("", "-", "?")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain table: numbers are aligned right, and empty columns are dropped."""
    from tabulate import tabulate

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
    lines = tabulate(rows, tablefmt="plain", colalign=alignments, disable_numparse=True)
    return "\n".join(line.rstrip() for line in lines.splitlines())
