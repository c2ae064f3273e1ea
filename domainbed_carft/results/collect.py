"""``carft collect`` as a function: the tables of some folders, their document and data frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import (
    against_one,
    divisions,
    published,
    suites,
    table_options,
    tables,
)
from domainbed_carft.results import power as power_of_tests
from domainbed_carft.results.against_one import Comparison
from domainbed_carft.results.cells import DOMAINBED
from domainbed_carft.results.collection import Collection, Sweeps, gathered
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.results.document import Document
from domainbed_carft.results.document_maker import make_document
from domainbed_carft.results.power import Power
from domainbed_carft.results.published import GroupComparison
from domainbed_carft.results.suites import Scores
from domainbed_carft.results.table_options import DEFAULT_OPTIONS, TableOptions
from domainbed_carft.results.tables import Table

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
    ``differences``: between these, for each group, method and unit. ``comparisons_against``: every
    algorithm against one, and ``powers``: what a difference from it needs to be found, if these
    were asked for. ``document``: all of these as words, and as entries for JSON.
    ``tables_of_sources``: where several targets were left out together, the tables of all sources,
    in which those of the groups stand side by side.
    """

    collection: Collection
    tables_of_groups: Sequence[Sequence[Table]]
    tables_of_sources: Sequence[Table]
    suite_scores: Sequence[Scores]
    comparisons: Sequence[GroupComparison]
    pair: tuple[str, str] | None
    differences: Sequence[Comparison]
    comparisons_against: Sequence[Comparison]
    powers: Sequence[Power]
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
    def against(self) -> pd.DataFrame:
        """A row for each of ``comparisons_against``, with its fields as columns; empty if none."""
        from domainbed_carft.results import frames

        return frames.entry_frame(self.comparisons_against, Comparison)

    @cached_property
    def power(self) -> pd.DataFrame:
        """A row for each of ``powers``, with its fields as columns; empty if none."""
        from domainbed_carft.results import frames

        return frames.entry_frame(self.powers, Power)

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
    sweeps: Sweeps,
    *,
    pair: tuple[str, str] | None = None,
    compare_published: bool = False,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    error: str = DOMAINBED.name,
    one_setting: bool = False,
    against: str | None = None,
    power: float | None = None,
    **reading: Any,
) -> Results:
    """Read the records of sweeps and make their tables, as ``carft collect`` does.

    ``sweeps``: one output folder of a sweep, several, or the collection that `gather` read of them;
    ``reading``: the options of `gather`, such as ``methods``. ``pair``: two
    algorithms to compare over the trials that both have. ``compare_published``: whether to add
    published accuracies. ``columns``: what the tables show, names of ``measures.NAMES``. ``error``:
    what stands behind a mean, "domainbed", "sample" or "std". ``one_setting``: whether to add
    tables of one choice of hyperparameters for all targets. ``against``: an algorithm to
    compare all others with; ``power``: a difference from it in points, to say what it needs to be
    found.

    Raises CarftError for what `gather` does, if no column or kind of error has the name, if no
    algorithm shares a trial with another of ``pair`` or with ``against``, or if ``power`` is not
    above 0 or without ``against``.
    """
    options = table_options.by_name(columns, error, one_setting)
    if power is not None:
        power_of_tests.require_difference(power, against)

    collection = gathered(sweeps, **reading)
    results = build(
        collection,
        pair,
        compare_published,
        options,
        against=against,
        power_difference=power,
    )
    if pair and not results.differences:
        raise CarftError(
            f"{pair[0]} and {pair[1]} share no (data set, environment, trial) under the same "
            f"settings by {', '.join(collection.methods)}; expected two different algorithms of "
            f"{against_one.available_algorithms(collection.groups)}"
        )
    return results


def build(
    collection: Collection,
    pair: tuple[str, str] | None = None,
    compare_published: bool = False,
    options: TableOptions = DEFAULT_OPTIONS,
    *,
    against: str | None = None,
    power_difference: float | None = None,
) -> Results:
    """The results of ``collection``, with the options of `collect`.

    ``power_difference`` is in points, and counts with ``against`` only. Without a shared trial of
    the ``pair`` there are no ``differences``.
    """
    tables_of_groups = [
        tables.build(group, collection.methods, options) for group in collection.groups
    ]
    tables_of_sources = divisions.tables(collection.groups, tables_of_groups)
    suite_warnings: list[RecordWarning] = []
    scores = [
        row
        for group in collection.groups
        for row in suites.scores(group, suite_warnings, options.error)
    ]
    collection = replace(collection, warnings=[*collection.warnings, *suite_warnings])

    comparisons = None
    if compare_published:
        comparisons = _compare_published(collection, tables_of_groups)
    differences = _compare_pair(collection, pair) if pair else []

    comparisons_against: list[Comparison] = []
    powers: list[Power] = []
    if against:
        comparisons_against = _compare_against(collection, against, options)
        powers = _powers(collection, against, power_difference)

    return Results(
        collection=collection,
        tables_of_groups=tables_of_groups,
        tables_of_sources=tables_of_sources,
        suite_scores=scores,
        comparisons=comparisons or [],
        pair=pair,
        differences=differences,
        comparisons_against=comparisons_against,
        powers=powers,
        document=make_document(
            collection,
            options,
            tables_of_groups=tables_of_groups,
            tables_of_sources=tables_of_sources,
            scores=scores,
            published_comparisons=comparisons,
            differences=differences,
            comparisons_against=comparisons_against,
            powers=powers,
        ),
    )


def _compare_published(
    collection: Collection, tables_of_groups: Sequence[Sequence[Table]]
) -> list[GroupComparison]:
    """Each group's accuracies beside published ones, by a choice for each target."""
    return [
        published.compare(group, [table for table in group_tables if not table.one_setting])
        for group, group_tables in zip(collection.groups, tables_of_groups, strict=True)
    ]


def _compare_pair(collection: Collection, pair: tuple[str, str]) -> list[Comparison]:
    """The first algorithm of a pair minus the second."""
    first, second = pair
    return against_one.compare(collection.groups, collection.methods, second, algorithm=first)


def _compare_against(
    collection: Collection, against: str, options: TableOptions
) -> list[Comparison]:
    """Every algorithm against one, in-domain, too, if the tables show that.

    Raises CarftError, which names the algorithms, if no other shares a pair with it.
    """
    tested = [against_one.ACCURACY]
    if against_one.IN_DOMAIN in options.columns:
        tested.append(against_one.IN_DOMAIN)
    comparisons = against_one.compare(
        collection.groups, collection.methods, against, measures=tested
    )

    if not comparisons:
        raise CarftError(
            f"--against {against}: no other algorithm shares a (data set, environment, trial) with "
            f"it; expected one of {against_one.available_algorithms(collection.groups)}"
        )
    return comparisons


def _powers(collection: Collection, against: str, difference: float | None) -> list[Power]:
    """What a difference in points needs to be found; empty without one."""
    if difference is None:
        return []
    return power_of_tests.powers(collection.groups, collection.methods, against, difference)
