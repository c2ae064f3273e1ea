"""Means over trials, their errors, and the tables that they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.collect import environments, selection
from domainbed_carft.collect.gaps import Gaps
from domainbed_carft.collect.selection import Selected
from domainbed_carft.collect.settings import Group

AVERAGES = "Averages"


class Cell(NamedTuple):
    """Accuracies of ``n`` trials in percent: mean, standard error, and what is missing.

    ``trials``: trial -> accuracy in percent. Mean and error are None where there is no trial.
    """

    mean: float | None
    error: float | None
    n: int
    missing: tuple[str, ...] = ()
    trials: Mapping[int, float] = {}


class Row(NamedTuple):
    """An algorithm's cells, and their mean; None where a cell has none."""

    algorithm: str
    cells: Sequence[Cell]
    average: float | None


class Table(NamedTuple):
    """One data set's, or that of all data sets' averages, by one method, of one group."""

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Data set, method of selection, and what sets the group apart."""
        parts = [self.dataset, selection.METHODS[self.method].title, self.setting]
        return "; ".join(part for part in parts if part)

    @property
    def incomplete(self) -> int:
        """How many cells lack something."""
        return sum(bool(cell.missing) for row in self.rows for cell in row.cells)


def mean_and_error(values: Iterable[float]) -> tuple[float | None, float | None]:
    """In percent, as DomainBed's collect_results computes them, to the last bit.

    The error is the standard deviation with divisor n (numpy's ddof 0) over the root of n.
    """
    accuracies = np.fromiter(values, dtype=float)
    if not accuracies.size:
        return None, None
    # Divided before, not after: the last bit decides how a half is rounded.
    shares = accuracies / accuracies.size**0.5
    return 100 * accuracies.mean(), 100 * shares.std()


def build(group: Group, methods: Sequence[str]) -> list[Table]:
    """All tables of one group."""
    gaps = Gaps(group.runs, group.planned)
    labels = environments.labels(group.runs)
    result = []
    for method in methods:
        selected = selection.select(group.runs, method)
        left_out = method != selection.IN_DOMAIN
        own = [run for run in group.runs if bool(run.test_envs) == left_out]
        names = {run.dataset: labels[run.dataset] for run in own}
        names = {name: labels[name] for name in labels if name in names}
        algorithms = environments.algorithms(run.algorithm for run in own)
        tables = [
            _of_dataset(group, method, name, names[name], algorithms, selected, gaps)
            for name in names
        ]
        if left_out and tables:
            tables.append(_averages(group, method, tables, algorithms, selected))
        result += tables
    return result


def _of_dataset(
    group: Group, method: str, dataset: str, labels: Sequence[str],
    algorithms: Sequence[str], selected: Sequence[Selected], gaps: Gaps,
) -> Table:  # fmt: skip
    values: dict[tuple[str, int], dict[int, float]] = {}
    for one in selected:
        if one.dataset == dataset:
            cell = values.setdefault((one.algorithm, one.target), {})
            cell[one.trial] = one.outcome.accuracy
    choices = gaps.choices(dataset, method)
    rows = []
    for algorithm in algorithms:
        if algorithm in choices:
            cells = [
                _cell(
                    values.get((algorithm, target), {}),
                    gaps.of(dataset, algorithm, target, method, len(labels)),
                )
                for target in range(len(labels))
            ]
        else:
            cells = [_cell({}, ["no job of the algorithm on this data set"]) for _ in labels]
        rows.append(Row(algorithm, cells, _average(cells)))
    notes = []
    if len(set(choices.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in sorted(choices.items()))
        notes.append(f"Hyperparameters were chosen among different numbers of draws: {told}.")
    return Table(group.title, method, dataset, [*labels], rows, notes)


def _averages(
    group: Group, method: str, tables: Sequence[Table], algorithms: Sequence[str],
    selected: Sequence[Selected],
) -> Table:  # fmt: skip
    """Over each trial's mean over targets, as far as it has them."""
    reached: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in selected:
        trials = reached.setdefault((one.algorithm, one.dataset), {})
        trials.setdefault(one.trial, []).append(one.outcome.accuracy)
    rows = []
    for algorithm in algorithms:
        cells = []
        for table in tables:
            (row,) = (row for row in table.rows if row.algorithm == algorithm)
            found = reached.get((algorithm, table.dataset), {})
            means = {trial: float(np.mean(found[trial])) for trial in sorted(found)}
            lacking = [
                label for label, cell in zip(table.columns, row.cells, strict=True) if cell.missing
            ]
            missing = [f"incomplete in {table.dataset}: {', '.join(lacking)}"] if lacking else []
            cells.append(_cell(means, missing))
        rows.append(Row(algorithm, cells, _average(cells)))
    columns = [table.dataset for table in tables]
    return Table(group.title, method, AVERAGES, columns, rows, [])


def _cell(accuracies: Mapping[int, float], missing: Sequence[str]) -> Cell:
    mean, error = mean_and_error(accuracies.values())
    if mean is None and not missing:
        missing = ["no accuracy on this environment was recorded"]
    percent = {trial: 100 * value for trial, value in accuracies.items()}
    return Cell(mean, error, len(accuracies), tuple(missing), percent)


def _average(cells: Sequence[Cell]) -> float | None:
    means = [cell.mean for cell in cells if cell.mean is not None]
    return sum(means) / len(means) if means and len(means) == len(cells) else None
