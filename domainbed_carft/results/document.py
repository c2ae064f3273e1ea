"""Tables as words, with numbered notes on incomplete cells, and the document of ``collect``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.results.tables import Table

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
    return Grid(table.title, ["Algorithm", *table.columns, "Avg"], rows, [*notes, *table.notes])


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
