"""Tables as words, with numbered notes on incomplete cells, and the document of ``collect``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.jobs.records import Run
from domainbed_carft.results.cells import DOMAINBED, PLUS_MINUS, ErrorKind
from domainbed_carft.results.cells import format_accuracy as format_accuracy
from domainbed_carft.results.columns import DEFAULT_COLUMNS, ENVIRONMENTS, NO_VALUE
from domainbed_carft.results.selection import Selected, counts_last_record
from domainbed_carft.results.tables import Row, Table

_ACCURACY_CAPTION = (
    "Accuracy in % on the in-split of the environment left out, which names the column, at the "
    "checkpoint and with the hyperparameters that the selection method chose in each trial; where "
    "nothing was left out, on each out-split at the last step. "
    f"Cells: mean {PLUS_MINUS} {{error}} (n, the number of trials)."
)
_AVERAGES_CAPTION = (
    "Avg: mean of the row's cells. Averages: over each trial's mean over the environments left out."
)
_SWAD_CAPTION = (
    "Jobs with the hparam average 'swad' count at their last checkpoint under every selection "
    "method: SWAD itself chooses the weights that predict there."
)
_NOTES_CAPTION = (
    f"[k] marks an incomplete cell; note [k] says why. {NO_VALUE}: no trial has a value."
)


def caption(error: ErrorKind = DOMAINBED) -> list[str]:
    """The paragraphs that explain tables with this kind of error."""
    return [
        _ACCURACY_CAPTION.format(error=error.title),
        f"{error.definition}; a single trial has no error. {_AVERAGES_CAPTION}",
        _NOTES_CAPTION,
    ]


def remarks(runs: Iterable[Run]) -> list[str]:
    """The paragraphs that explain tables of these runs beside the `caption`."""
    return [_SWAD_CAPTION] if any(counts_last_record(run) for run in runs) else []


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
    ``legend``: those paragraphs of the caption that are the same for every sweep.
    """

    caption: Sequence[str]
    grids: Sequence[Grid]
    sections: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    legend: Sequence[str] = ()

    def with_short_legend(self, error: ErrorKind) -> Document:
        """The document with one line for the legend; the rest of the caption stays."""
        further = [paragraph for paragraph in self.caption if paragraph not in self.legend]
        line = f"Cells: mean {PLUS_MINUS} {error.title} (n trials). More: --legend, docs/collect.md"
        return self._replace(caption=[line, *further])

    def as_dict(self) -> dict[str, Any]:
        """The content of the format JSON; values that are missing are None or nan."""
        return {"caption": list(self.caption), **self.sections}


def table_grid(table: Table) -> Grid:
    """A table's cells as words, with numbered notes on incomplete ones."""
    note_numbers: dict[tuple[str, ...], int] = {}
    rows = []
    for row in table.rows:
        texts = [row.algorithm]
        for column, cell in zip(table.shown, row.shown, strict=True):
            note_number = None
            if cell.missing:  # a new reason gets the next number
                note_number = note_numbers.setdefault(cell.missing, len(note_numbers) + 1)
            texts.append(column.text(cell, note_number))
        rows.append(texts)

    header = ["Algorithm", *(column.title for column in table.shown)]
    notes = [f"[{number}] {'. '.join(missing)}." for missing, number in note_numbers.items()]
    return Grid(table.title, header, rows, [*notes, *table.notes])


def table_entry(table: Table) -> dict[str, Any]:
    """A table for JSON, with every trial's accuracy in percent.

    "measures" are the shown columns beside the accuracies of environments and their average.
    """
    measures = [column for column in table.shown if column.name not in DEFAULT_COLUMNS]
    entry = {
        "setting": table.setting,
        "selection": table.method,
        "dataset": None if table.averages else table.dataset,
        "title": table.title,
        "error": table.error.name,
        "one_setting": table.one_setting,
        "columns": list(table.columns),
        "rows": [_row_entry(row, table) for row in table.rows],
        "notes": list(table.notes),
    }
    if measures:
        entry["measures"] = [
            {
                "name": column.name,
                "title": column.title,
                "unit": column.unit,
                "device": column.device,
            }
            for column in measures
        ]
    return entry


def _row_entry(row: Row, table: Table) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {
            "column": column,
            "mean": cell.mean,
            "standard_error": cell.standard_error,
            "n": cell.n,
            "trials": {str(trial): 100 * value for trial, value in cell.accuracies.items()},
            "missing": list(cell.missing),
        }
        for column, cell in zip(table.columns, row.cells, strict=True)
    ]
    for target, cell_entry in enumerate(cells):
        chosen = row.chosen(target)
        if chosen:
            cell_entry["chosen"] = [_chosen_entry(selected) for selected in chosen]
    entry = {"algorithm": row.algorithm, "cells": cells, "average": row.average}

    measures = [
        {
            "name": column.name,
            "device": column.device,
            "mean": cell.mean,
            "standard_error": cell.standard_error,
            "n": cell.n,
            "label": cell.label,
            "missing": list(cell.missing),
        }
        for column, cell in zip(table.shown, row.shown, strict=True)
        if column.name not in DEFAULT_COLUMNS
    ]
    return entry | {"measures": measures} if measures else entry


def _chosen_entry(selected: Selected) -> dict[str, Any]:
    """What a search chose for one cell in one trial."""
    outcome = selected.outcome
    return {
        "trial": selected.trial,
        "values": dict(outcome.values),
        "hparams_seed": outcome.hparams_seed,
        "members": outcome.members,
    }


def cell_records(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell of the tables of `table_entry`, for CSV.

    The cells of a table of averages have the environment "average". "one_setting" is a key only if
    a table shows one setting.
    """
    entries = list(entries)
    has_one_setting = any(entry["one_setting"] for entry in entries)

    records = []
    for entry in entries:
        table = {"setting": entry["setting"], "selection": entry["selection"]}
        if has_one_setting:
            table["one_setting"] = entry["one_setting"]
        for row in entry["rows"]:
            for cell in row["cells"]:
                record = {
                    **table,
                    "dataset": entry["dataset"] or cell["column"],
                    "environment": cell["column"] if entry["dataset"] else "average",
                    "algorithm": row["algorithm"],
                    "mean": cell["mean"],
                    "standard_error": cell["standard_error"],
                    "n": cell["n"],
                    "missing": ". ".join(cell["missing"]),
                }
                records.append(record)
    return records


def column_records(all_tables: Iterable[Table]) -> list[dict[str, Any]]:
    """A row for each shown column of each row of the tables but the averages, for CSV."""
    return [
        {
            "setting": table.setting,
            "selection": table.method,
            "dataset": table.dataset,
            "one_setting": table.one_setting,
            "algorithm": row.algorithm,
            "column": column.name,
            "of": column.title if column.name == ENVIRONMENTS else cell.label,
            "device": column.device,
            "unit": column.unit,
            "mean": cell.mean,
            "standard_error": cell.standard_error,
            "n": cell.n,
            "missing": ". ".join(cell.missing),
        }
        for table in all_tables
        if not table.averages
        for row in table.rows
        for column, cell in zip(table.shown, row.shown, strict=True)
    ]
