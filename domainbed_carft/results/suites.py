"""Tables of runs on suites of test sets, whose evaluations are next to the jobs' records.

A run is not scored on test sets that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.results import published, selection
from domainbed_carft.results.cells import (
    DOMAINBED,
    INCOMPLETE_COPY,
    PLUS_MINUS,
    Cell,
    ErrorKind,
    mean_over_trials,
)
from domainbed_carft.results.columns import (
    COLUMNS,
    SUITE_METRICS,
    Column,
    describe_problems,
    load_run_metrics,
)
from domainbed_carft.results.groups import Group
from domainbed_carft.results.metrics import RunMetrics, list_suite_evaluations
from domainbed_carft.results.published import PublishedAccuracy
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.tables import Table
from domainbed_carft.suites import catalogue
from domainbed_carft.suites.suite import Suite

# Names of columns
_ACCURACY = "accuracy"
_PER_CLASS = "per-class"
_AT_TEMPERATURE = ("temperature", "ece-scaled", "nll-scaled", "brier-scaled")

_NO_TEMPERATURE = "no temperature; run carft evaluate on the sweep, and then again with --suite"
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
        for rule in (selection.IN_DOMAIN, selection.TRAINING_DOMAIN)
        for selected in group.select(rule)
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


class _EvaluatedRun(NamedTuple):
    """A selected run, the names of the test sets that cannot test it, and its metrics."""

    selected: SelectedRun
    trained_on: frozenset[str]
    metrics: RunMetrics


@dataclass(frozen=True)
class _SuiteRow:
    """The evaluations on a suite from which a row is computed.

    Attributes:
        algorithm: name of the row in the tables of datasets.
        alpha: alpha of WiSE-FT; None for the selected runs themselves.
        runs: the evaluated runs, trial by trial.
        problems: reasons why further selected runs have no metrics.
        backbone: name of the CLIP model.
    """

    algorithm: str
    alpha: float | None
    runs: Sequence[_EvaluatedRun]
    problems: Sequence[str]
    backbone: str

    @property
    def label(self) -> str:
        """Algorithm and alpha."""
        return self.algorithm if self.alpha is None else f"{self.algorithm}, alpha {self.alpha:g}"


def build(
    group: Group, error: ErrorKind = DOMAINBED, column_names: Iterable[str] = ()
) -> list[Table]:
    """Build the group's tables of suites, for each suite and training dataset one of accuracies.

    The details of a row are the suite, the dataset, the algorithm, the alpha of WiSE-FT, the
    metric, and the ``backbone``, the name of the CLIP model.

    Args:
        group: the runs.
        error: kind of the errors.
        column_names: names of columns. Each metric of SUITE_METRICS among them has a further table.
    """
    metrics = dict.fromkeys([_ACCURACY, *(name for name in column_names if name in SUITE_METRICS)])
    return [
        _build_table(suite, dataset, rows, metric, group.title, error)
        for (suite, dataset), rows in _collect_rows(group).items()
        for metric in metrics
    ]


def _collect_rows(group: Group) -> dict[tuple[str, str], list[_SuiteRow]]:
    """Map each evaluated suite and training dataset to its rows, all in the order of the tables.

    A row has all selected runs of its algorithm if one of them was evaluated.
    """
    runs = selected_runs(group)
    evaluated = {
        (key.suite, selected.dataset, selected.row, key.alpha)
        for selected, _ in runs
        for key in list_suite_evaluations(Path(selected.run.folder))
        if key.suite in catalogue.SUITES and key.step == int(selected.outcome.step)
    }
    algorithms = group.order_rows(algorithm for _, _, algorithm, _ in evaluated)

    def place(row: tuple[str, str, str, float | None]) -> tuple[str, str, int, float]:
        suite, dataset, algorithm, alpha = row
        return suite, dataset, algorithms.index(algorithm), -1 if alpha is None else alpha

    rows: dict[tuple[str, str], list[_SuiteRow]] = {}
    for suite, dataset, algorithm, alpha in sorted(evaluated, key=place):
        of_row = [
            (selected, trained_on)
            for selected, trained_on in runs
            if (selected.dataset, selected.row) == (dataset, algorithm)
        ]
        row = _read_row(suite, algorithm, alpha, of_row)
        rows.setdefault((suite, dataset), []).append(row)
    return rows


def _read_row(
    suite: str,
    algorithm: str,
    alpha: float | None,
    runs: Sequence[tuple[SelectedRun, frozenset[str]]],
) -> _SuiteRow:
    """Read the metrics of the selected runs of a row."""
    # The last bit of an error depends on the order of the trials.
    trials = list(dict.fromkeys(selected.trial for selected, _ in runs))
    evaluated = []
    places_by_problem: dict[str, list[str]] = {}
    for selected, trained_on in sorted(runs, key=lambda entry: trials.index(entry[0].trial)):
        try:
            metrics = load_run_metrics(selected, suite, alpha)
        except CarftError as problem:
            places_by_problem.setdefault(str(problem), []).append(_describe_place(selected))
        else:
            evaluated.append(_EvaluatedRun(selected, trained_on, metrics))

    backbones = [str(selected.run.recorded.get("clip_backbone", "")) for selected, _ in runs]
    return _SuiteRow(
        algorithm=algorithm,
        alpha=alpha,
        runs=evaluated,
        problems=describe_problems(places_by_problem),
        backbone=", ".join(dict.fromkeys(backbones)),
    )


def _describe_place(selected: SelectedRun) -> str:
    """Return the targets and the trial of a run."""
    targets = "".join(f"target {target} " for target in selected.run.test_envs)
    return f"{targets}trial {selected.trial}"


def _build_table(
    suite_name: str,
    dataset: str,
    rows: Sequence[_SuiteRow],
    metric: str,
    setting: str,
    error: ErrorKind,
) -> Table:
    """Build the table of one metric on a suite."""
    suite = catalogue.get(suite_name)
    columns = get_columns(suite, metric)
    measured = {
        image_set.name
        for row in rows
        for run in row.runs
        for image_set in run.metrics.facts.image_sets
    }
    cells = {
        row.label: {
            column: _measure_mean(suite, row, column.name, metric, measured, error)
            if column.name in suite.names_by_mean
            else _measure_set(suite, row, column.name, metric, measured, error)
            for column in columns
        }
        for row in rows
    }
    details = {
        row.label: {
            "suite": suite_name,
            "dataset": dataset,
            "algorithm": row.algorithm,
            "alpha": row.alpha,
            "metric": metric,
            "backbone": row.backbone,
        }
        for row in rows
    }

    name = f"Suite {suite_name}"
    if dataset != suite_name:
        name += f", trained on {benchmarks.dataset_title(dataset)}"
    if metric != _ACCURACY:
        name += f", {COLUMNS[metric].title}"
    return Table(
        name=name,
        rows=cells,
        accuracies=columns,
        printed=columns,
        dataset=dataset,
        suite=suite_name,
        setting=setting,
        error=error,
        notes=[_NOTE_ON_ALPHA] if any(row.alpha is not None for row in rows) else [],
        details=details,
    )


def _measure_set(
    suite: Suite,
    row: _SuiteRow,
    name: str,
    metric: str,
    measured: Set[str],
    error: ErrorKind,
) -> Cell:
    """Average a metric on a test set; empty if no run of the table was evaluated on it."""
    values = []
    has_incomplete_copy = False
    places_by_problem: dict[str, list[str]] = {}
    for run in row.runs:
        if name in run.trained_on or name not in measured:
            continue
        value, is_complete = _get_value(suite, run, name, metric)
        has_incomplete_copy |= not is_complete
        if value is None:
            problem = _explain_missing(run, name, metric)
            places_by_problem.setdefault(problem, []).append(_describe_place(run.selected))
        else:
            values.append((run.selected.trial, value))

    missing = describe_problems(places_by_problem)
    if has_incomplete_copy:
        missing.append(INCOMPLETE_COPY)
    return _average(row, values, missing, metric, error)


def _measure_mean(
    suite: Suite,
    row: _SuiteRow,
    key: str,
    metric: str,
    measured: Set[str],
    error: ErrorKind,
) -> Cell:
    """Average a mean over test sets, which a run has only if all of its sets are complete."""
    values = []
    incomplete: set[str] = set()
    for run in row.runs:
        remaining = suite.without(run.trained_on)
        names = remaining.names_by_mean.get(key, [])
        complete = {}
        for name in names:
            value, is_complete = _get_value(suite, run, name, metric)
            complete[name] = value if is_complete else None
        mean = remaining.means(complete).get(key)
        if mean is not None:
            values.append((run.selected.trial, mean))
        elif names and measured >= {*names}:
            incomplete |= {name for name in names if complete[name] is None}
    ordered = [test_set.name for test_set in suite.sets if test_set.name in incomplete]
    missing = [f"incomplete: {', '.join(ordered)}"] if ordered else []
    return _average(row, values, missing, metric, error)


def _average(
    row: _SuiteRow,
    values: Sequence[tuple[int, float]],
    missing: Sequence[str],
    metric: str,
    error: ErrorKind,
) -> Cell:
    """Average (trial, value) pairs, and add the runs without an evaluation to what is missing."""
    if row.runs and not values and not missing:  # no run has this test set
        return Cell()
    return mean_over_trials(
        values,
        missing=[*row.problems, *missing],
        error=error,
        scale=SUITE_METRICS[metric].scale,
    )


def _get_value(
    suite: Suite, run: _EvaluatedRun, name: str, metric: str
) -> tuple[float | None, bool]:
    """Return a run's metric on a test set, or None, and True unless images of the set are missing.

    For the accuracy, the mean over the classes counts on sets that are reported by it.
    """
    part = run.metrics.get_image_set(name)
    if part is None:
        return None, True
    by_class = {test_set.name for test_set in suite.sets if test_set.reports_mean_per_class}
    if metric == _ACCURACY and name in by_class:
        metric = _PER_CLASS
    return SUITE_METRICS[metric].get(part), part.image_set.is_complete


def _explain_missing(run: _EvaluatedRun, name: str, metric: str) -> str:
    """Return the reason why a run has no value of a metric on a test set."""
    if run.metrics.get_image_set(name) is None:
        return "not evaluated on this test set"
    if metric in _AT_TEMPERATURE and run.metrics.facts.temperature is None:
        return _NO_TEMPERATURE
    return run.metrics.facts.unmeasured


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
            for row, details in table.details.items():
                is_of_runs = details["metric"] == _ACCURACY and details["alpha"] is None
                if table.suite == name and is_of_runs:
                    label = f"{row}, {details['backbone']}, yours"
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


def get_columns(suite: Suite, metric: str = _ACCURACY) -> list[Column]:
    """Return the columns of a suite's table of a metric: its test sets and means, by their keys."""
    titles = {}
    for test_set in suite.sets:
        titles[test_set.name] = test_set.name
        if len(suite.sets) > 1 and not test_set.is_shifted:
            titles[test_set.name] += ", in distribution"
    column = COLUMNS[metric]
    return [
        Column(name, title, column.unit, write=column.write)
        for name, title in (titles | suite.mean_titles).items()
    ]


def curve_points(table: Table) -> list[tuple[str, float | None, float, float]]:
    """Return (algorithm, alpha, accuracy in distribution, mean of the shifts) of rows with both."""
    columns = {column.name: column for column in table.columns}
    in_distribution = columns.get(catalogue.get(table.suite).in_distribution)
    mean_of_shifts = columns.get("mean")
    if not (in_distribution and mean_of_shifts):
        return []

    points = []
    for row, details in table.details.items():
        x = table.rows[row][in_distribution].mean
        y = table.rows[row][mean_of_shifts].mean
        if x is not None and y is not None:
            points.append((details["algorithm"], details["alpha"], x, y))
    return points
