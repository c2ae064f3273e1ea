"""Accuracies of runs on suites of test sets, read from the jobs' suites.jsonl.

A run is not scored on test sets that it was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import published, selection
from domainbed_carft.results.cells import (
    DOMAINBED,
    INCOMPLETE_COPY,
    NOT_DECLARED,
    PLUS_MINUS,
    Cell,
    ErrorKind,
    format_accuracy,
    mean_over_trials,
)
from domainbed_carft.results.collection import Group
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite


def caption(error: ErrorKind = DOMAINBED) -> str:
    """Return the paragraph that explains tables of suites."""
    return (
        "Suites: accuracy in % on test sets (carft evaluate --suite), or its mean over classes if "
        "that is what others report, of the run that validation chose in each trial; mean "
        f"{PLUS_MINUS} {error.title} (n trials). *: an incomplete copy, which is not part of any "
        "mean. If runs held environments out: the mean of each trial's runs, without the styles "
        "that a run was trained on."
    )


class SuiteRun(NamedTuple):
    """A run that validation selected, with its training environments.

    Attributes:
        selected: the selected run.
        trained_on: names of the training environments if the run held others out; otherwise empty.
            Test sets with these names cannot test the run.
    """

    selected: SelectedRun
    trained_on: frozenset[str]

    @property
    def folder(self) -> Path:
        """Folder of the run's job."""
        return Path(self.selected.run.folder)


def selected_runs(group: Group) -> list[SuiteRun]:
    """Return the distinct runs of the group that validation selected."""
    labels = group.environments
    selected_of_folder = {
        selected.run.folder: selected
        for method in (selection.IN_DOMAIN, selection.TRAINING_DOMAIN)
        for selected in group.select(method)
    }
    suite_runs = []
    for selected in selected_of_folder.values():
        held_out = selected.run.test_envs
        trained_on = (
            label
            for number, label in enumerate(labels[selected.dataset])
            if held_out and number not in held_out
        )
        suite_runs.append(SuiteRun(selected, frozenset(trained_on)))
    return suite_runs


def selected_records(
    group: Group, warnings: list[RecordWarning]
) -> Iterator[tuple[SelectedRun, Mapping[str, Any]]]:
    """Yield the suite records of the `selected_runs`, without test sets of training environments.

    The means of a record are over its remaining sets. Problems in the files are added to
    ``warnings``.
    """
    for suite_run in selected_runs(group):
        for record in records.read(suite_run.folder, warnings):
            if record["suite"] in catalogue.SUITES:
                yield suite_run.selected, _drop_sets(record, suite_run.trained_on)


def _drop_sets(record: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Return the record without the sets called ``names``, and with the means of the others."""
    sets = {name: scores for name, scores in record["sets"].items() if name not in names}
    if len(sets) == len(record["sets"]):
        return record

    suite = catalogue.get(record["suite"]).without(names)
    complete = {name: scores["accuracy"] for name, scores in sets.items() if scores["complete"]}
    return {**record, "sets": sets, **suite.means(complete)}


class Scores(NamedTuple):
    """Accuracies of one algorithm's weights on a suite.

    Attributes:
        suite: name of the suite.
        setting: title of the group of runs.
        dataset: dataset of the training.
        algorithm: name of the row.
        weights: name of the weights' file.
        alpha: alpha of WiSE-FT; None for the weights themselves.
        backbone: name of the CLIP model.
        cells: name of a set or mean -> its cell; partial if a trial had an incomplete copy.
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
        """The formatted cells of its row in the suite's table."""
        texts = []
        for name in get_headers(catalogue.get(self.suite)):
            cell = self.cells.get(name, Cell())
            text = format_accuracy(cell.mean, cell.standard_error, cell.n) or NOT_DECLARED
            texts.append(text if cell.is_complete else f"{text}*")
        return texts

    @property
    def label(self) -> str:
        """Algorithm, kind of weights unless they are the last ones, and alpha."""
        kinds = {file: kind for kind, file in WEIGHTS.items()}
        kind = kinds.get(self.weights, self.weights)

        parts = [self.algorithm]
        if kind != "last":
            parts.append(kind)
        if self.alpha is not None:
            parts.append(f"alpha {self.alpha:g}")
        return ", ".join(filter(None, parts))

    def entry(self) -> dict[str, Any]:
        """Convert the row for JSON; "partial" lists the names of partial cells."""
        cells = {
            name: {"mean": cell.mean, "standard_error": cell.standard_error, "n": cell.n}
            for name, cell in self.cells.items()
        }
        partial = sorted(name for name, cell in self.cells.items() if not cell.is_complete)
        return {**self._asdict(), "cells": cells, "partial": partial}

    def _sorting_key(self, algorithms: Sequence[str]) -> tuple[str, str, int, str, float]:
        """Return the key for the tables' order, in which algorithms follow ``algorithms``."""
        return (
            self.suite,
            self.dataset,
            algorithms.index(self.algorithm),
            self.weights,
            -1 if self.alpha is None else self.alpha,
        )


class _ScoresKey(NamedTuple):
    """The values that the trials of one `Scores` share."""

    dataset: str
    algorithm: str
    backbone: str
    suite: str
    weights: str
    alpha: float | None


def scores(
    group: Group, warnings: list[RecordWarning], error: ErrorKind = DOMAINBED
) -> list[Scores]:
    """Read all scores of one group, suite by suite, with algorithms in the tables' order.

    Problems in the files of the jobs are added to ``warnings``.
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
            cells=_average_cells(trials, key.suite, error),
        )
        for key, trials in trials_by_key.items()
    ]
    algorithms = group.order_rows(key.algorithm for key in trials_by_key)
    return sorted(rows, key=lambda row: row._sorting_key(algorithms))


def _average_cells(
    trials: Mapping[int, Sequence[Mapping[str, Any]]], suite: str, error: ErrorKind
) -> dict[str, Cell]:
    """Map each set or mean to its cell, from the records of each trial's runs."""
    cells = {}
    for name in get_headers(catalogue.get(suite)):
        accuracies = []
        missing: dict[str, None] = {}
        for trial, run_records in trials.items():
            for record in run_records:
                set_record = record["sets"].get(name)
                if set_record:
                    accuracy = set_record.get("mean_per_class", set_record["accuracy"])
                    accuracies.append((trial, accuracy))
                    if not set_record["complete"]:
                        missing[INCOMPLETE_COPY] = None
                elif record.get(name) is not None:
                    accuracies.append((trial, record[name]))
        if accuracies:
            cells[name] = mean_over_trials(accuracies, missing=list(missing), error=error)
    return cells


def rows_by_table(rows: Iterable[Scores]) -> list[list[Scores]]:
    """Group the rows by suite, training dataset and setting, a table each."""
    by_table: dict[tuple[str, str, str], list[Scores]] = {}
    for row in rows:
        by_table.setdefault((row.suite, row.dataset, row.setting), []).append(row)
    return list(by_table.values())


def grid(rows: Sequence[Scores]) -> Grid:
    """Make the table of rows with the same suite, training dataset and setting."""
    first = rows[0]
    title = f"Suite {first.suite}"
    if first.dataset != first.suite:
        title += f", trained on {benchmarks.dataset_title(first.dataset)}"
    if first.setting:
        title += f"; {first.setting}"

    notes = []
    if any(row.alpha is not None for row in rows):
        notes.append("alpha: of WiSE-FT, from 0 (the original CLIP model) to 1 (the run).")

    header = ["Algorithm", *get_headers(catalogue.get(first.suite)).values()]
    return Grid(title, header, [[row.label, *row.cell_texts] for row in rows], notes)


def read_published_rows(suite: Suite) -> list[dict[str, Any]]:
    """Read published accuracies of zero-shot CLIP models (on imagenet also of others) in percent.

    A row has the keys "method", "backbone", "source", "note", and the names of `get_headers` (sets
    and means).
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
    """Make a table of published rows and runs for each suite, without WiSE-FT's curves."""
    grids = []
    for name in dict.fromkeys(row.suite for row in rows):
        suite = catalogue.get(name)
        names = get_headers(suite)
        published_entries = read_published_rows(suite)
        if not published_entries:
            continue

        cells = [
            [f"{row.label}, yours", row.backbone, *row.cell_texts]
            for row in rows
            if row.suite == name and row.alpha is None
        ]
        for row in published_entries:
            texts = [format_accuracy(row.get(key)) for key in names]
            cells.append([row["method"], row["backbone"], *texts])

        title = f"Suite {name}, with published numbers"
        header = ["Method", "CLIP", *names.values()]
        grids.append(Grid(title, header, cells, published.sources(published_entries)))
    return grids


def get_headers(suite: Suite) -> dict[str, str]:
    """Map the names in ``Scores.cells`` to the headers of a suite's table."""
    headers = {}
    for test_set in suite.sets:
        headers[test_set.name] = test_set.name
        if len(suite.sets) > 1 and not test_set.is_shifted:
            headers[test_set.name] += ", in distribution"
    return headers | suite.mean_titles


def curve_points(rows: Iterable[Scores]) -> list[tuple[str, float | None, float, float]]:
    """Return (algorithm, alpha, accuracy in distribution, mean of the shifts) of rows with both."""
    result = []
    weights_by_algorithm = dict[str, str]()
    for row in rows:
        in_distribution_set = catalogue.get(row.suite).in_distribution
        in_distribution = row.cells.get(in_distribution_set, Cell()).mean
        shifted = row.cells.get("mean", Cell()).mean
        # A curve connects the original CLIP model with one file of weights.
        if row.weights != weights_by_algorithm.setdefault(row.algorithm, row.weights):
            continue
        if in_distribution is not None and shifted is not None:
            result.append((row.algorithm, row.alpha, in_distribution, shifted))
    return result
