"""Tables as words, with numbered notes on incomplete cells, and the document of ``collect``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.results.tables import Cell, Row, Table

PLUS_MINUS = "±"
NO_VALUE = "X"
NOT_DECLARED = "-"

CAPTION = (
    "Accuracy in % on the in-split of the environment left out, which names the column, at the "
    "checkpoint and with the hyperparameters that the selection method chose in each trial; where "
    "nothing was left out, on each out-split at the last step. "
    f"Cells: mean {PLUS_MINUS} standard error (n, the number of trials).",
    "Standard error = s / sqrt(n), with s the standard deviation over the n trials, divisor n "
    "(numpy.std with ddof 0), as DomainBed computes it; for n = 1 it is meaningless. Avg: mean of "
    "the row's cells. Averages: over each trial's mean over the environments left out.",
    f"[k] marks an incomplete cell; note [k] says why. {NO_VALUE}: no trial has a value.",
)


def format_accuracy(
    value: float | None, standard_error: float | None = None, n: int | None = None
) -> str:
    """A percentage with its standard error and number of trials, as ``96.8 ± 0.4 (3)``.

    What is None (or ``n`` 0) is left out; without a value the text is empty.
    """
    if value is None:
        return ""

    text = f"{value:.1f}"
    if standard_error is not None:
        text += f" {PLUS_MINUS} {standard_error:.1f}"
    if n:
        text += f" ({n})"
    return text


class Grid(NamedTuple):
    """A table as words: rows are as long as the header, and begin with their label."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


class Document(NamedTuple):
    """What ``carft collect`` prints, before it is spelled in a format.

    ``caption``: paragraphs that explain the tables; ``grids``: the tables; ``sections``: name ->
    entries for JSON; ``records``: the rows of the one table for CSV, all with the same keys.
    """

    caption: Sequence[str]
    grids: Sequence[Grid]
    sections: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """The content of the format JSON; values that are missing are None or nan."""
        return {"caption": list(self.caption), **self.sections}


def table_grid(table: Table) -> Grid:
    """A table's cells as words, with numbered notes on incomplete ones."""
    note_numbers: dict[tuple[str, ...], int] = {}
    rows = []
    for row in table.rows:
        cells = [_cell_text(cell, note_numbers) for cell in row.cells]
        rows.append([row.algorithm, *cells, format_accuracy(row.average) or NO_VALUE])

    notes = [f"[{number}] {'. '.join(missing)}." for missing, number in note_numbers.items()]
    notes += table.notes
    return Grid(table.title, ["Algorithm", *table.headers, "Avg"], rows, notes)


def _cell_text(cell: Cell, note_numbers: dict[tuple[str, ...], int]) -> str:
    """A cell's text; a new reason for gaps gets the next of ``note_numbers``."""
    text = format_accuracy(cell.mean, cell.standard_error, cell.n)
    if not cell.missing:
        return text or NOT_DECLARED

    number = note_numbers.setdefault(cell.missing, len(note_numbers) + 1)
    return f"{text or NO_VALUE} [{number}]"


def table_entry(table: Table) -> dict[str, Any]:
    """A table for JSON, with every trial's accuracy in percent."""
    return {
        "setting": table.setting,
        "selection": table.method,
        "dataset": None if table.averages else table.dataset,
        "title": table.title,
        "columns": list(table.columns),
        "rows": [_row_entry(row, table.columns) for row in table.rows],
        "notes": list(table.notes),
    }


def _row_entry(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    cells = [
        {
            "column": column,
            "mean": cell.mean,
            "standard_error": cell.standard_error,
            "n": cell.n,
            "trials": {str(trial): 100 * value for trial, value in cell.accuracies.items()},
            "missing": list(cell.missing),
        }
        for column, cell in zip(columns, row.cells, strict=True)
    ]
    return {"algorithm": row.algorithm, "cells": cells, "average": row.average}


def cell_records(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell of the tables of `table_entry`, for CSV.

    The cells of a table of averages have the environment "average".
    """
    return [
        {
            "setting": entry["setting"],
            "selection": entry["selection"],
            "dataset": entry["dataset"] or cell["column"],
            "environment": cell["column"] if entry["dataset"] else "average",
            "algorithm": row["algorithm"],
            "mean": cell["mean"],
            "standard_error": cell["standard_error"],
            "n": cell["n"],
            "missing": ". ".join(cell["missing"]),
        }
        for entry in entries
        for row in entry["rows"]
        for cell in row["cells"]
    ]
