"""Tables of runs on suites of test sets, read from the jobs' suites.jsonl.

A run is not scored on test sets that it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job_folder import WEIGHTS
from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.results import published, selection
from domainbed_carft.results.cells import (
    DOMAINBED,
    INCOMPLETE_COPY,
    PLUS_MINUS,
    Cell,
    ErrorKind,
    mean_over_trials,
)
from domainbed_carft.results.columns import Column
from domainbed_carft.results.groups import Group
from domainbed_carft.results.published import PublishedAccuracy
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.tables import Table
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.suite import Suite

_NOTE_ON_ALPHA = "alpha: of WiSE-FT, from 0 (the original CLIP model) to 1 (the run)."


def caption(error: ErrorKind = DOMAINBED) -> str:
    """Return the paragraph that explains tables of suites."""
    return (
        "Suites: accuracy in % on test sets (carft evaluate --suite), or its mean over classes if "
        "that is what others report, of the run that validation chose in each trial; mean "
        f"{PLUS_MINUS} {error.title} (n trials). *: an incomplete copy, which is not part of any "
        "mean. If runs held environments out: the mean of each trial's runs, without the styles "
        "that a run was trained on."
    )


def selected_runs(group: Group) -> list[tuple[SelectedRun, frozenset[str]]]:
    """Return the distinct runs of the group that validation selected, with the sets to skip.

    These are the names of the training environments if the run held others out; otherwise empty.
    Test sets with these names cannot test the run.
    """
    labels = group.environments
    selected_of_folder = {
        selected.run.folder: selected
        for method in (selection.IN_DOMAIN, selection.TRAINING_DOMAIN)
        for selected in group.select(method)
    }
    runs = []
    for selected in selected_of_folder.values():
        held_out = selected.run.test_envs
        trained_on = (
            label
            for number, label in enumerate(labels[selected.dataset])
            if held_out and number not in held_out
        )
        runs.append((selected, frozenset(trained_on)))
    return runs


def selected_records(
    group: Group, warnings: list[RecordWarning]
) -> Iterator[tuple[SelectedRun, Mapping[str, Any]]]:
    """Yield the suite records of the `selected_runs`, without test sets of training environments.

    The means of a record are over its remaining sets. Problems in the files are added to
    ``warnings``.
    """
    for selected, trained_on in selected_runs(group):
        for record in records.read(Path(selected.run.folder), warnings):
            if record["suite"] in catalogue.SUITES:
                yield selected, _drop_sets(record, trained_on)


def _drop_sets(record: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Return the record without the sets called ``names``, and with the means of the others."""
    sets = {name: scores for name, scores in record["sets"].items() if name not in names}
    if len(sets) == len(record["sets"]):
        return record

    suite = catalogue.get(record["suite"]).without(names)
    complete = {name: scores["accuracy"] for name, scores in sets.items() if scores["complete"]}
    return {**record, "sets": sets, **suite.means(complete)}


class SuiteRow(NamedTuple):
    """The weights whose accuracies are a row of a suite's table.

    Attributes:
        suite: name of the suite.
        dataset: dataset of the training.
        algorithm: name of the row in the tables of datasets.
        weights: name of the weights' file.
        alpha: alpha of WiSE-FT; None for the weights themselves.
    """

    suite: str
    dataset: str
    algorithm: str
    weights: str
    alpha: float | None

    @property
    def label(self) -> str:
        """Algorithm, kind of weights unless they are the last ones, and alpha."""
        kinds = {file: kind for kind, file in WEIGHTS.items()}
        kind = kinds.get(self.weights, self.weights)
        alpha = "" if self.alpha is None else f"alpha {self.alpha:g}"
        return ", ".join(filter(None, [self.algorithm, "" if kind == "last" else kind, alpha]))


def build(group: Group, warnings: list[RecordWarning], error: ErrorKind = DOMAINBED) -> list[Table]:
    """Build the group's tables of suites, one for each suite and training dataset.

    Problems in the files of the jobs are added to ``warnings``. The facts of a row are its
    `SuiteRow` and the ``backbone``, the name of the CLIP model.
    """
    selected_by_row: dict[SuiteRow, list[tuple[SelectedRun, Mapping[str, Any]]]] = {}
    for selected, record in selected_records(group, warnings):
        suite, weights, alpha = (record[name] for name in records.KEY)
        row = SuiteRow(suite, selected.dataset, selected.row, weights, alpha)
        selected_by_row.setdefault(row, []).append((selected, record))

    algorithms = group.order_rows(row.algorithm for row in selected_by_row)

    def order(row: SuiteRow) -> tuple[str, str, int, str, float]:
        place = algorithms.index(row.algorithm)
        return row.suite, row.dataset, place, row.weights, -1 if row.alpha is None else row.alpha

    return [
        _build_table({row: selected_by_row[row] for row in rows}, group.title, error)
        for _, rows in itertools.groupby(
            sorted(selected_by_row, key=order), key=lambda row: (row.suite, row.dataset)
        )
    ]


def _build_table(
    selected_by_row: Mapping[SuiteRow, Sequence[tuple[SelectedRun, Mapping[str, Any]]]],
    setting: str,
    error: ErrorKind,
) -> Table:
    """Build the table of one suite and training dataset from the records of each row."""
    first = next(iter(selected_by_row))
    columns = get_columns(catalogue.get(first.suite))
    rows = {}
    facts = {}
    for row, entries in selected_by_row.items():
        # The last bit of an error depends on the order of the trials.
        trials = list(dict.fromkeys(selected.trial for selected, _ in entries))
        records_by_trial = [
            (trial, record)
            for trial in trials
            for selected, record in entries
            if selected.trial == trial
        ]
        rows[row.label] = {
            column: _average_records(records_by_trial, column.name, error) for column in columns
        }
        backbones = [str(selected.run.recorded.get("clip_backbone", "")) for selected, _ in entries]
        facts[row.label] = {**row._asdict(), "backbone": ", ".join(dict.fromkeys(backbones))}

    name = f"Suite {first.suite}"
    if first.dataset != first.suite:
        name += f", trained on {benchmarks.dataset_title(first.dataset)}"
    return Table(
        name=name,
        rows=rows,
        accuracies=columns,
        printed=columns,
        dataset=first.dataset,
        suite=first.suite,
        setting=setting,
        error=error,
        notes=[_NOTE_ON_ALPHA] if any(row.alpha is not None for row in selected_by_row) else [],
        facts=facts,
    )


def _average_records(
    records_by_trial: Iterable[tuple[int, Mapping[str, Any]]], name: str, error: ErrorKind
) -> Cell:
    """Average a test set or mean over (trial, record) pairs; empty if no record has it."""
    accuracies = []
    missing: dict[str, None] = {}
    for trial, record in records_by_trial:
        set_record = record["sets"].get(name)
        if set_record:
            accuracies.append((trial, set_record.get("mean_per_class", set_record["accuracy"])))
            if not set_record["complete"]:
                missing[INCOMPLETE_COPY] = None
        elif record.get(name) is not None:
            accuracies.append((trial, record[name]))
    return mean_over_trials(accuracies, missing=list(missing), error=error)


def read_published(suite: Suite) -> list[PublishedAccuracy]:
    """Read published accuracies of zero-shot CLIP models, on imagenet also of others.

    Their methods are followed by the name of the CLIP model, and their datasets are the names of
    `get_columns` (sets and means).
    """
    if suite.name != "imagenet":
        return [
            PublishedAccuracy(f"zero-shot CLIP, {backbone}", name, accuracy, source=suite.source)
            for backbone, accuracies in suite.published.items()
            for name, accuracy in accuracies.items()
        ]

    entries = []
    for row in published.read_rows("suites/published.csv"):
        accuracies = {
            column.name: float(row[column.name])
            for column in get_columns(suite)
            if row[column.name]
        }
        means = suite.means(accuracies).items()
        accuracies = {name: mean for name, mean in means if mean is not None} | accuracies
        entries += [
            PublishedAccuracy(
                f"{row['method']}, {row['backbone']}",
                name,
                accuracy,
                source=row["source"],
                note=row["note"],
            )
            for name, accuracy in accuracies.items()
        ]
    return entries


def build_published(tables: Sequence[Table]) -> list[Table]:
    """Build a table of published rows and runs for each suite, without WiSE-FT's curves."""
    published_tables = []
    for name in dict.fromkeys(table.suite for table in tables):
        suite = catalogue.get(name)
        columns = get_columns(suite)
        entries = read_published(suite)
        if not entries:
            continue

        rows = {}
        for table in tables:
            for row, facts in table.facts.items():
                if table.suite == name and facts["alpha"] is None:
                    label = f"{row}, {facts['backbone']}, yours"
                    rows["; ".join(filter(None, [label, table.setting]))] = table.rows[row]
        table = Table(
            name=f"Suite {name}, with published numbers",
            rows=rows | published.make_rows(entries, columns),
            accuracies=columns,
            printed=columns,
            notes=published.list_sources(entries),
        )
        published_tables.append(table)
    return published_tables


def get_columns(suite: Suite) -> list[Column]:
    """Return the columns of a suite's table: its test sets and means, by their record keys."""
    titles = {}
    for test_set in suite.sets:
        titles[test_set.name] = test_set.name
        if len(suite.sets) > 1 and not test_set.is_shifted:
            titles[test_set.name] += ", in distribution"
    return [Column(name, title, "%") for name, title in (titles | suite.mean_titles).items()]


def curve_points(table: Table) -> list[tuple[str, float | None, float, float]]:
    """Return (algorithm, alpha, accuracy in distribution, mean of the shifts) of rows with both."""
    columns = {column.name: column for column in table.columns}
    in_distribution = columns.get(catalogue.get(table.suite).in_distribution)
    mean_of_shifts = columns.get("mean")
    if not (in_distribution and mean_of_shifts):
        return []

    points = []
    weights_by_algorithm: dict[str, str] = {}
    for row, facts in table.facts.items():
        # A curve connects the original CLIP model with one file of weights.
        weights = weights_by_algorithm.setdefault(facts["algorithm"], facts["weights"])
        x = table.rows[row][in_distribution].mean
        y = table.rows[row][mean_of_shifts].mean
        if facts["weights"] == weights and x is not None and y is not None:
            points.append((facts["algorithm"], facts["alpha"], x, y))
    return points
