"""``carft collect`` as a function: the tables of some folders, their document and data frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import divisions, document, measures, paired, published, suites, tables
from domainbed_carft.results.cells import DOMAINBED, ERROR_KINDS
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.results.document import Document
from domainbed_carft.results.published import GroupComparison
from domainbed_carft.results.suites import Scores
from domainbed_carft.results.tables import DEFAULT_OPTIONS, Table, TableOptions
from domainbed_carft.text import unknown

if TYPE_CHECKING:
    import pandas as pd

# Kinds of warnings about files that may lack a cell's accuracies
_DEFECTS = ("no records", "no accuracies", "unreadable", "diverged")


@dataclass(frozen=True)
class Results:
    """The results of some sweeps, as `collect` returns them.

    ``collection``: the runs in groups that may be averaged. ``tables_of_groups``: for each group
    its tables, of each selection method one a data set, then that of the averages.
    ``suite_scores``: accuracies on whole test sets. ``comparisons``: for each group its accuracies
    beside published ones, if these were asked for. ``pair``: the two algorithms to compare, if any;
    ``differences``: between these, an entry for each group and method. ``document``: all of these
    as words, and as entries for JSON. ``tables_of_sources``: where several targets were left out
    together, the tables of all sources, in which those of the groups stand side by side.
    """

    collection: Collection
    tables_of_groups: Sequence[Sequence[Table]]
    tables_of_sources: Sequence[Table]
    suite_scores: Sequence[Scores]
    comparisons: Sequence[GroupComparison]
    pair: tuple[str, str] | None
    differences: Sequence[dict[str, Any]]
    document: Document

    @property
    def tables(self) -> list[Table]:
        """The tables of all groups."""
        return [table for group_tables in self.tables_of_groups for table in group_tables]

    @property
    def warnings(self) -> Sequence[RecordWarning]:
        """What is wrong in the files that were read."""
        return self.collection.warnings

    @property
    def notes(self) -> list[str]:
        """Remarks on how the runs differ from each other, and from published methods."""
        return list(self.document.sections["notes"])

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers of "records", "jobs", "cells" and "incomplete_cells", and the "faults"."""
        return dict(self.document.sections["summary"])

    @property
    def defects(self) -> dict[str, int]:
        """Kind -> number of what makes the tables incomplete, such as "incomplete cells"."""
        counts = Counter(warning.kind for warning in self.warnings)
        defects = {"incomplete cells": self.summary["incomplete_cells"]}
        defects |= {kind: counts[kind] for kind in _DEFECTS}
        return {kind: count for kind, count in defects.items() if count}

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for each cell of the tables, with the columns of ``--format csv``.

        ``setting``, ``selection`` (the method), ``dataset``, ``environment`` (``average`` for the
        mean over a data set's environments), ``algorithm``, ``mean`` and ``standard_error`` in
        percent, ``n`` (trials) and ``missing`` (why the cell is incomplete, else empty).
        """
        from domainbed_carft.results import frames

        return frames.cell_frame(self.document.sections["tables"])

    @cached_property
    def columns(self) -> pd.DataFrame:
        """A row for each row and shown column of the tables: what ``--columns`` adds, too.

        ``setting``, ``selection`` (the method), ``dataset``, ``algorithm``, ``column`` (its name),
        ``of`` (the environment, or what else the value is of), ``device`` (of a cost), ``unit``,
        ``mean``, ``standard_error``, ``n`` (trials or jobs) and ``missing`` (why there is no value,
        or it is incomplete; else empty).
        """
        from domainbed_carft.results import frames

        return frames.column_frame(self.tables)

    @cached_property
    def records(self) -> pd.DataFrame:
        """A row for each record (checkpoint) of the runs, each job once.

        ``setting`` (of the group), ``folder`` (of the job), ``dataset``, ``algorithm``,
        ``test_envs`` (a tuple), ``trial_seed``, ``hparams_seed``, ``step``, and accuracies in
        [0, 1] as in the records: ``env0_in_acc``, ``env0_out_acc``, and so on. Accuracies are nan
        where the record has none, and from the checkpoint on at which the training diverged.
        """
        from domainbed_carft.results import frames

        return frames.record_frame(self.collection.groups)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``carft collect --format json``."""
        return self.document.as_dict()


def collect(
    folders: Path | str | Iterable[Path | str],
    *,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    pair: tuple[str, str] | None = None,
    compare_published: bool = False,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    error: str = DOMAINBED.name,
    single_source: bool = False,
) -> Results:
    """Read the records of sweeps and make their tables, as ``carft collect`` does.

    ``folders``: one output folder of a sweep, or several. ``methods``: names of selection methods,
    by default those that the sweeps declare, else all that have jobs. ``ignored``: parts of a
    setting that may differ between runs that are averaged, as for ``--ignore``. ``pair``: two
    algorithms to compare over the trials that both have. ``compare_published``: whether to add
    published accuracies. ``columns``: what the tables show, names of ``measures.NAMES``. ``error``:
    what stands behind a mean, "domainbed", "sample" or "std". ``single_source``: whether jobs that
    leave out all environments but one have a single source, where no manifest says so.

    Raises CarftError if there is no record, if a method has no jobs, if no column or kind of error
    has the name, if the algorithms of ``pair`` share no trial, or if a job was run twice with
    different records.
    """
    measures.check_names(columns)
    if error not in ERROR_KINDS:
        raise CarftError(unknown("kind of error", error, ERROR_KINDS))

    if isinstance(folders, (str, os.PathLike)):
        folders = [folders]
    collection = collecting.gather(list(folders), methods, ignored, single_source=single_source)

    options = TableOptions(columns=columns, error=ERROR_KINDS[error])
    results = build(collection, pair, compare_published, options)
    if pair and not results.differences:
        raise paired.no_shared_trial(collection.groups, collection.methods, *pair)
    return results


def build(
    collection: Collection,
    pair: tuple[str, str] | None = None,
    compare_published: bool = False,
    options: TableOptions = DEFAULT_OPTIONS,
) -> Results:
    """The results of ``collection``, with the options of `collect`.

    Without a shared trial of the ``pair`` there are no ``differences``.
    """
    tables_of_groups = [
        tables.build(group, collection.methods, options) for group in collection.groups
    ]
    tables_of_sources = divisions.tables(collection.groups, tables_of_groups)
    scores = [row for group in collection.groups for row in suites.scores(group, options.error)]

    comparisons = []
    if compare_published:
        comparisons = [
            published.compare(group, group_tables)
            for group, group_tables in zip(collection.groups, tables_of_groups, strict=True)
        ]
    differences = []
    if pair:
        first, second = pair
        differences = paired.compare(collection.groups, collection.methods, first, second)

    maker = _DocumentMaker(collection, tables_of_groups, tables_of_sources, options)
    if scores:
        maker.add_suites(scores)
    if compare_published:
        maker.add_published(comparisons, scores)
    if differences:
        maker.add_differences(differences)
    return Results(
        collection=collection,
        tables_of_groups=tables_of_groups,
        tables_of_sources=tables_of_sources,
        suite_scores=scores,
        comparisons=comparisons,
        pair=pair,
        differences=differences,
        document=maker.document(),
    )


class _DocumentMaker:
    """Makes the document of `build`, part by part; the last part with CSV rows has them."""

    def __init__(
        self,
        collection: Collection,
        tables_of_groups: Sequence[Sequence[Table]],
        tables_of_sources: Sequence[Table],
        options: TableOptions,
    ) -> None:
        self._collection = collection
        self._error = options.error
        all_tables = [table for group_tables in tables_of_groups for table in group_tables]
        entries = [document.table_entry(table) for table in all_tables]

        shown = [column for table in all_tables for column in table.shown]
        self._caption = [*document.caption(options.error), *measures.explanations(shown)]
        self._notes = [note for group in collection.groups for note in group.notes]
        self._sections: dict[str, Any] = {"tables": entries, "notes": self._notes}
        self._grids = [
            document.table_grid(table)
            for group, group_tables in zip(collection.groups, tables_of_groups, strict=True)
            for table in group_tables
            if not group.source or not _has_default_columns(options)
        ]
        if tables_of_sources:
            self._grids += [document.table_grid(table) for table in tables_of_sources]
            self._sections["sources"] = [document.table_entry(table) for table in tables_of_sources]
        self._csv_rows = document.cell_records(entries)
        if not _has_default_columns(options):
            self._csv_rows = document.column_records(all_tables)
        self._summary = _summary(collection, all_tables)

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

    def add_differences(self, differences: list[dict[str, Any]]) -> None:
        """Add the table of two algorithms' differences."""
        self._csv_rows = differences
        self._sections["paired"] = differences
        self._grids.append(paired.grid(differences))
        self._caption.append(paired.CAPTION)

    def document(self) -> Document:
        """The document of the parts that were added."""
        return Document(
            caption=[*self._caption, *self._notes],
            grids=self._grids,
            sections={**self._sections, "summary": self._summary},
            records=self._csv_rows,
        )


def _has_default_columns(options: TableOptions) -> bool:
    return tuple(options.columns) == DEFAULT_COLUMNS


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
