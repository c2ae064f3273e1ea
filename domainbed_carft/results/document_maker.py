"""The document of ``carft collect``: all tables as words, and as entries for JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainbed_carft.results import (
    against_one,
    choices,
    document,
    measures,
    power,
    published,
    suites,
)
from domainbed_carft.results.against_one import Comparison
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.results.document import Document, Grid
from domainbed_carft.results.power import Power
from domainbed_carft.results.published import GroupComparison
from domainbed_carft.results.suites import Scores
from domainbed_carft.results.table_options import TableOptions
from domainbed_carft.results.tables import Table


def make_document(
    collection: Collection,
    options: TableOptions,
    *,
    tables_of_groups: Sequence[Sequence[Table]],
    tables_of_sources: Sequence[Table],
    scores: Sequence[Scores],
    published_comparisons: Sequence[GroupComparison] | None,
    differences: Sequence[Comparison],
    comparisons_against: Sequence[Comparison],
    powers: Sequence[Power],
) -> Document:
    """The document of these parts; what is empty or None is left out."""
    maker = _DocumentMaker(collection, tables_of_groups, tables_of_sources, options)
    if scores:
        maker.add_suites(scores)
    if published_comparisons is not None:
        maker.add_published(published_comparisons, scores)
    if differences:
        maker.add_differences(differences)
    if comparisons_against:
        maker.add_against(comparisons_against)
    if powers:
        maker.add_power(powers)
    return maker.document()


class _DocumentMaker:
    """Makes a document part by part; the last part with CSV rows has them."""

    def __init__(
        self,
        collection: Collection,
        tables_of_groups: Sequence[Sequence[Table]],
        tables_of_sources: Sequence[Table],
        options: TableOptions,
    ) -> None:
        self._collection = collection
        self._error = options.error
        has_default_columns = tuple(options.columns) == DEFAULT_COLUMNS
        all_tables = [table for group_tables in tables_of_groups for table in group_tables]
        entries = [document.table_entry(table) for table in all_tables]

        columns = [column for table in all_tables for column in table.shown]
        self._remarks = document.remarks(collection.runs)
        self._caption = [
            *document.caption(options.error),
            *self._remarks,
            *measures.explanations(columns),
        ]
        self._notes = [note for group in collection.groups for note in group.notes]
        self._sections: dict[str, Any] = {"tables": entries, "notes": self._notes}
        self._grids: list[Grid] = []
        self._add_tables(
            [
                *(
                    table
                    for group, group_tables in zip(collection.groups, tables_of_groups, strict=True)
                    for table in group_tables
                    if not (group.source and has_default_columns)
                ),
                *tables_of_sources,
            ]
        )
        if tables_of_sources:
            self._sections["sources"] = [document.table_entry(table) for table in tables_of_sources]

        self._csv_rows = document.cell_records(entries)
        if not has_default_columns:
            self._csv_rows = document.column_records(all_tables)
        self._summary = _summary(collection, all_tables)

    def _add_tables(self, tables: Sequence[Table]) -> None:
        """Add tables of accuracies, each with that of the values that a search chose."""
        chosen_grids = [choices.grid(table) for table in tables]
        for table, chosen in zip(tables, chosen_grids, strict=True):
            self._grids.append(document.table_grid(table))
            if chosen:
                self._grids.append(chosen)
        if any(chosen_grids):
            self._caption += choices.CAPTION

    def add_suites(self, scores: Sequence[Scores]) -> None:
        """Add the tables of suites."""
        self._grids += [suites.grid(rows) for rows in suites.rows_by_table(scores)]
        self._caption.append(suites.caption(self._error))
        self._sections["suites"] = [row.entry() for row in scores]

    def add_published(
        self, comparisons: Sequence[GroupComparison], scores: Sequence[Scores]
    ) -> None:
        """Add published figures: beside ours, all of them, and those of suites."""
        methods = self._collection.compare_with
        self._csv_rows = []
        for comparison in comparisons:
            self._grids.append(published.grid(comparison.entries, comparison.remarks))
            self._csv_rows += comparison.entries
            self._notes += comparison.remarks

        self._grids.append(published.overview(methods))
        self._grids += suites.grids_with_published(scores)
        self._caption += published.CAPTION
        self._sections["published"] = {
            "comparisons": self._csv_rows,
            "figures": published.figures(methods),
        }

    def add_differences(self, differences: Sequence[Comparison]) -> None:
        """Add the tables of two algorithms' differences."""
        self._csv_rows = [_paired_entry(entry) for entry in differences]
        self._sections["paired"] = self._csv_rows
        self._add_comparisons(differences)

    def add_against(self, comparisons: Sequence[Comparison]) -> None:
        """Add the tables of every algorithm's differences from one of them."""
        self._csv_rows = [entry.as_dict() for entry in comparisons]
        self._sections["against"] = self._csv_rows
        self._add_comparisons(comparisons)

    def _add_comparisons(self, comparisons: Sequence[Comparison]) -> None:
        self._grids += against_one.grids(comparisons)
        self._caption += [text for text in against_one.CAPTION if text not in self._caption]

    def add_power(self, powers: Sequence[Power]) -> None:
        """Add the tables of how many trials a difference needs."""
        self._csv_rows = [entry.as_dict() for entry in powers]
        self._sections["power"] = self._csv_rows
        self._grids += power.grids(powers)
        self._caption += power.CAPTION

    def document(self) -> Document:
        """The document of the parts that were added."""
        return Document(
            caption=[*self._caption, *self._notes],
            grids=self._grids,
            sections={**self._sections, "summary": self._summary},
            records=self._csv_rows,
            legend=[text for text in self._caption if text not in self._remarks],
        )


def _paired_entry(entry: Comparison) -> dict[str, Any]:
    """A comparison for JSON and CSV, with the keys that ``--paired`` has had since 0.1.0."""
    names = {"a": entry.algorithm, "b": entry.against, "targets": entry.environments}
    return names | entry.as_dict()


def _summary(collection: Collection, all_tables: Sequence[Table]) -> dict[str, Any]:
    """How many records, jobs and cells there are, and the warnings, for JSON."""
    runs = collection.runs
    return {
        "records": sum(len(run.steps) for run in runs),
        "jobs": len(runs),
        "incomplete_cells": sum(table.n_incomplete for table in all_tables),
        "cells": sum(cell.is_expected for table in all_tables for cell in table.cells),
        "faults": [warning._asdict() for warning in collection.warnings],
    }
