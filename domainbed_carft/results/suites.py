"""Runs on whole test sets: a row for each algorithm's weights, from the jobs' suites.jsonl.

A run counts without the sets that it was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import published, selection
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import (
    DOMAINBED,
    NOT_DECLARED,
    PLUS_MINUS,
    Cell,
    ErrorKind,
    format_accuracy,
    mean_cell,
)
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite


def caption(error: ErrorKind = DOMAINBED) -> str:
    """The paragraph that explains tables of suites with this kind of error."""
    return (
        "Suites: accuracy in % on whole test sets (carft evaluate --suite), the mean over the "
        "classes where others report that, of the run that validation chose in each trial; mean "
        f"{PLUS_MINUS} {error.title} (n trials). *: a copy that is not complete, of which no mean "
        "is formed. Of runs that left environments out: the mean of each trial's runs, without the "
        "styles that a run was trained on."
    )


class SuiteRun(NamedTuple):
    """A run that validation chose, and the environments that it was trained on.

    ``trained_on``: their names, if the run left others out, else none: they say which sets of a
    suite cannot test the run.
    """

    selected: SelectedRun
    trained_on: frozenset[str]

    @property
    def folder(self) -> Path:
        """The folder of the run's job."""
        return Path(self.selected.run.folder)


def selected_runs(group: Group) -> list[SuiteRun]:
    """Each run of the group that validation chose, once."""
    labels = group.environments
    selected_of_folder = {
        selected.run.folder: selected
        for method in (selection.IN_DOMAIN, selection.TRAINING_DOMAIN)
        for selected in group.select(method)
    }
    suite_runs = []
    for selected in selected_of_folder.values():
        left_out = selected.run.test_envs
        trained_on = (
            label
            for number, label in enumerate(labels[selected.dataset])
            if left_out and number not in left_out
        )
        suite_runs.append(SuiteRun(selected, frozenset(trained_on)))
    return suite_runs


def selected_records(
    group: Group, warnings: list[RecordWarning]
) -> Iterator[tuple[SelectedRun, Mapping[str, Any]]]:
    """The suite records of the `selected_runs`, without sets of environments trained on.

    The means of a record are then over its other sets. What is wrong in the files is added to
    ``warnings``.
    """
    for suite_run in selected_runs(group):
        for record in records.read(suite_run.folder, warnings):
            if record["suite"] in catalogue.SUITES:
                yield suite_run.selected, _without_sets(record, suite_run.trained_on)


def _without_sets(record: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """The record without the sets called ``names``, and with the means of the others."""
    sets = {name: scores for name, scores in record["sets"].items() if name not in names}
    if len(sets) == len(record["sets"]):
        return record

    suite = catalogue.get(record["suite"]).without(names)
    complete = {name: scores["accuracy"] for name, scores in sets.items() if scores["complete"]}
    return {**record, "sets": sets, **suite.means(complete)}


class Scores(NamedTuple):
    """One algorithm's weights on a suite; ``alpha``: WiSE-FT's, None for the weights themselves.

    ``cells``: of sets, partial where a trial had no complete copy, and of means.
    """

    suite: str
    setting: str
    dataset: str
    algorithm: str
    weights: str
    alpha: float | None
    backbone: str
    cells: Mapping[str, Cell]

    @property
    def cell_texts(self) -> list[str]:
        """The cells of its row in the suite's table, as words."""
        texts = []
        for name in columns(catalogue.get(self.suite)):
            cell = self.cells.get(name, Cell())
            text = format_accuracy(cell.mean, cell.standard_error, cell.n) or NOT_DECLARED
            texts.append(f"{text}*" if cell.partial else text)
        return texts

    @property
    def label(self) -> str:
        """Algorithm, kind of its weights unless these are the last, and alpha."""
        kinds = {file: kind for kind, file in WEIGHTS.items()}
        kind = kinds.get(self.weights, self.weights)

        parts = [self.algorithm]
        if kind != "last":
            parts.append(kind)
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        return ", ".join(filter(None, parts))

    def entry(self) -> dict[str, Any]:
        """The row for JSON; "partial" lists the names of the cells that are."""
        cells = {
            name: {"mean": cell.mean, "standard_error": cell.standard_error, "n": cell.n}
            for name, cell in self.cells.items()
        }
        partial = sorted(name for name, cell in self.cells.items() if cell.partial)
        return {**self._asdict(), "cells": cells, "partial": partial}

    def _sorting_key(self, algorithms: Sequence[str]) -> tuple[str, str, int, str, float]:
        """The key for the tables' order, with the algorithms in that of ``algorithms``."""
        return (
            self.suite,
            self.dataset,
            algorithms.index(self.algorithm),
            self.weights,
            -1 if self.alpha is None else self.alpha,
        )


class _ScoresKey(NamedTuple):
    """What the trials of one `Scores` share."""

    dataset: str
    algorithm: str
    backbone: str
    suite: str
    weights: str
    alpha: float | None


def scores(
    group: Group, warnings: list[RecordWarning], error: ErrorKind = DOMAINBED
) -> list[Scores]:
    """All scores of one group, suite by suite, in the tables' order of algorithms.

    ``error``: what stands behind the means over trials. What is wrong in the files of the jobs is
    added to ``warnings``.
    """
    trials_by_key: dict[_ScoresKey, dict[int, list[Mapping[str, Any]]]] = {}
    for selected, record in selected_records(group, warnings):
        backbone = str(selected.outcome.run.recorded.get("clip_backbone", ""))
        suite, weights, alpha = (record[name] for name in records.KEY)
        key = _ScoresKey(selected.dataset, selected.row, backbone, suite, weights, alpha)
        trials_by_key.setdefault(key, {}).setdefault(selected.trial, []).append(record)

    rows = [
        Scores(
            suite=key.suite,
            setting=group.title,
            dataset=key.dataset,
            algorithm=key.algorithm,
            weights=key.weights,
            alpha=key.alpha,
            backbone=key.backbone,
            cells=_cells_over(trials, key.suite, error),
        )
        for key, trials in trials_by_key.items()
    ]
    algorithms = group.order_rows(key.algorithm for key in trials_by_key)
    return sorted(rows, key=lambda row: row._sorting_key(algorithms))


def _cells_over(
    trials: Mapping[int, Sequence[Mapping[str, Any]]], suite: str, error: ErrorKind
) -> dict[str, Cell]:
    """Name of a set or mean -> its cell, from the records of each trial's runs."""
    cells = {}
    for name in columns(catalogue.get(suite)):
        accuracies = {}
        partial = False
        for trial, run_records in trials.items():
            values = []
            for record in run_records:
                set_record = record["sets"].get(name)
                if set_record:
                    values.append(set_record.get("mean_per_class", set_record["accuracy"]))
                    partial |= not set_record["complete"]
                elif record.get(name) is not None:
                    values.append(record[name])
            if values:
                accuracies[trial] = float(np.mean(values))

        if accuracies:
            cells[name] = mean_cell(accuracies, missing=(), error=error)._replace(partial=partial)
    return cells


def rows_by_table(rows: Iterable[Scores]) -> list[list[Scores]]:
    """The rows of each table: of one suite, training set and setting."""
    by_table: dict[tuple[str, str, str], list[Scores]] = {}
    for row in rows:
        by_table.setdefault((row.suite, row.dataset, row.setting), []).append(row)
    return list(by_table.values())


def grid(rows: Sequence[Scores]) -> Grid:
    """The table of ``rows`` that share their suite, training set and setting."""
    first = rows[0]
    title = f"Suite {first.suite}"
    if first.dataset != first.suite:
        title += f", trained on {benchmarks.dataset_title(first.dataset)}"
    if first.setting:
        title += f"; {first.setting}"

    notes = []
    if any(row.alpha is not None for row in rows):
        notes.append("alpha: WiSE-FT's; 0 is the original CLIP, 1 the run.")

    header = ["Algorithm", *columns(catalogue.get(first.suite)).values()]
    return Grid(title, header, [[row.label, *row.cell_texts] for row in rows], notes)


def published_rows(suite: Suite) -> list[dict[str, Any]]:
    """Rows of others' figures by set or mean, in percent: zero-shot CLIPs, on imagenet more.

    A row has the keys "method", "backbone", "source", "note", and the names of `columns`.
    """
    if suite.name != "imagenet":
        zero_shot = {"method": "zero-shot CLIP", "source": suite.source, "note": ""}
        return [
            {**zero_shot, "backbone": backbone, **accuracies}
            for backbone, accuracies in suite.published.items()
        ]

    rows = published.read("suites/published.csv")
    return [
        row | {name: mean for name, mean in suite.means(row).items() if row[name] is None}
        for row in rows
    ]


def published_grids(rows: Sequence[Scores]) -> list[Grid]:
    """For each suite of ``rows`` a table of them, without WiSE-FT's curves, and the published."""
    grids = []
    for name in dict.fromkeys(row.suite for row in rows):
        suite = catalogue.get(name)
        names = columns(suite)
        published_entries = published_rows(suite)
        if not published_entries:
            continue

        cells = [
            [f"{row.label}, ours", row.backbone, *row.cell_texts]
            for row in rows
            if row.suite == name and row.alpha is None
        ]
        for row in published_entries:
            texts = [format_accuracy(row.get(key)) for key in names]
            cells.append([row["method"], row["backbone"], *texts])

        title = f"Suite {name}, beside published figures"
        header = ["Method", "CLIP", *names.values()]
        grids.append(Grid(title, header, cells, published.sources(published_entries)))
    return grids


def columns(suite: Suite) -> dict[str, str]:
    """The names in ``Scores.cells`` of a suite's table -> its headers."""
    headers = {}
    for test_set in suite.sets:
        headers[test_set.name] = test_set.name
        if len(suite.sets) > 1 and not test_set.is_shifted:
            headers[test_set.name] += ", in distribution"
    return headers | suite.mean_titles


def points(rows: Iterable[Scores]) -> list[tuple[str, float | None, float, float]]:
    """Algorithm, alpha, accuracy in distribution and mean of the shifts, of rows with both."""
    result = []
    weights_of = dict[str, str]()
    for row in rows:
        in_distribution_set = catalogue.get(row.suite).in_distribution
        in_distribution = row.cells.get(in_distribution_set, Cell()).mean
        shifted = row.cells.get("mean", Cell()).mean
        # A curve is between the CLIP and one file of weights.
        first_weights = weights_of.setdefault(row.algorithm, row.weights)
        is_on_curve = row.weights == first_weights
        if is_on_curve and in_distribution is not None and shifted is not None:
            result.append((row.algorithm, row.alpha, in_distribution, shifted))
    return result
