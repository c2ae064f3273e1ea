"""Means over trials, their errors, and the tables that they stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from domainbed_carft.results import labels as environments
from domainbed_carft.results import selection
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.settings import Group

_UNDECLARED = "-: no job was declared for it; Avg is over the other cells."
_Trials = dict[int, float]  # trial -> accuracy in [0, 1]


class Cell(NamedTuple):
    """Accuracies of ``n`` trials in percent: mean, standard error, and what is missing.

    ``accuracies``: trial -> accuracy in [0, 1]. Mean and error are None where there is no trial.
    ``undeclared``: the sweep declares no job for it, or for one of the environments averaged.
    """

    mean: float | None = None
    error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    accuracies: Mapping[int, float] = {}
    undeclared: bool = False

    @property
    def trials(self) -> dict[int, float]:
        """Trial -> accuracy in percent."""
        return {trial: 100 * accuracy for trial, accuracy in self.accuracies.items()}

    @property
    def counts(self) -> bool:
        """Whether it is meant to have a value."""
        return self.mean is not None or bool(self.missing) or not self.undeclared


class Row(NamedTuple):
    """An algorithm's cells, and their mean; None where a cell has none."""

    algorithm: str
    cells: Sequence[Cell]
    average: float | None


class Table(NamedTuple):
    """One data set's, or that of all data sets' averages, by one method, of one group.

    The averages' ``columns`` are the data sets, and their ``dataset`` is only what to call them: a
    data set may have that name, too.
    """

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    averages: bool = False

    @property
    def title(self) -> str:
        """Data set, method of selection, and what sets the group apart."""
        parts = [self.dataset, selection.METHODS[self.method].title, self.setting]
        return "; ".join(part for part in parts if part)

    @property
    def incomplete(self) -> int:
        """How many cells are incomplete."""
        return sum(bool(cell.missing) for row in self.rows for cell in row.cells)

    @property
    def size(self) -> int:
        """How many cells are meant to have a value."""
        return sum(cell.counts for row in self.rows for cell in row.cells)


def mean_and_error(accuracies: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """In percent of accuracies in [0, 1], as DomainBed's collect_results has them, to the last bit.

    The error is the standard deviation with divisor n (numpy's ddof 0) over the root of n.
    """
    if not accuracies.size:
        return None, None
    # Divided before, not after: the last bit decides how a half is rounded.
    shares = accuracies / accuracies.size**0.5
    return 100 * accuracies.mean(), 100 * shares.std()


def build(group: Group, methods: Sequence[str]) -> list[Table]:
    """All tables of one group."""
    gaps = Gaps(group.runs, group.planned)
    labels = environments.labels(group.runs, group.planned, group.labels)
    result = []
    for method in methods:
        leaves_out = selection.METHODS[method].leaves_out
        jobs = [job for job in gaps.keys if bool(job.test_envs) == leaves_out]
        names = {job.dataset for job in jobs}
        algorithms = environments.algorithms(job.algorithm for job in jobs)
        # In the order of DomainBed's groups, on which the last bit of a mean depends.
        cells: dict[tuple[str, str, int], _Trials] = {}
        reached: dict[tuple[str, str], dict[int, list[float]]] = {}
        for dataset, algorithm, target, trial, outcome in selection.select(group.runs, method):
            cells.setdefault((algorithm, dataset, target), {})[trial] = outcome.accuracy
            trials = reached.setdefault((algorithm, dataset), {})
            trials.setdefault(trial, []).append(outcome.accuracy)
        tables = [
            _of_dataset(group, method, name, labels[name], algorithms, cells, gaps)
            for name in labels
            if name in names
        ]
        if leaves_out and tables:
            tables.append(_averages(group, method, tables, algorithms, reached))
        result += tables
    return result


def _of_dataset(
    group: Group, method: str, dataset: str, labels: Sequence[str],
    algorithms: Sequence[str], selected: Mapping[tuple[str, str, int], _Trials], gaps: Gaps,
) -> Table:  # fmt: skip
    choices = gaps.choices(dataset, method)
    rows = []
    for algorithm in algorithms:
        cells = []
        for target in range(len(labels)):
            lacks = gaps.of(dataset, algorithm, target, method, len(labels))
            accuracies = selected.get((algorithm, dataset, target), {})
            cells.append(Cell(undeclared=True) if lacks is None else cell_of(accuracies, lacks))
        rows.append(Row(algorithm, cells, _average(cells)))
    notes = [] if all(cell.counts for row in rows for cell in row.cells) else [_UNDECLARED]
    if len(set(choices.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in sorted(choices.items()))
        notes.append(f"Hyperparameters were chosen among different numbers of draws: {numbers}.")
    return Table(group.title, method, dataset, [*labels], rows, notes)


def _averages(
    group: Group, method: str, tables: Sequence[Table], algorithms: Sequence[str],
    reached: Mapping[tuple[str, str], Mapping[int, list[float]]],
) -> Table:  # fmt: skip
    """Over each trial's mean over targets, as far as it has them."""
    rows = []
    notes: dict[str, None] = {}
    for number, algorithm in enumerate(algorithms):
        cells = []
        for table in tables:
            own = dict(zip(table.columns, table.rows[number].cells, strict=True))
            without = [label for label, cell in own.items() if not cell.counts]
            if len(without) == len(own):
                notes[_UNDECLARED] = None
                cells.append(Cell(undeclared=True))
                continue
            if without:
                listed = ", ".join(without)
                notes[f"{algorithm} on {table.dataset}: without {listed}, not declared."] = None
            trials = reached.get((algorithm, table.dataset), {})
            means = {trial: float(np.mean(trials[trial])) for trial in sorted(trials)}
            lacking = ", ".join(label for label, cell in own.items() if cell.missing)
            missing = [f"incomplete in {table.dataset}: {lacking}"] if lacking else []
            cells.append(cell_of(means, missing)._replace(undeclared=bool(without)))
        rows.append(Row(algorithm, cells, _average(cells)))
    columns = [table.dataset for table in tables]
    return Table(group.title, method, "Averages", columns, rows, [*notes], averages=True)


def cell_of(accuracies: _Trials, missing: Sequence[str]) -> Cell:
    """The mean over the trials, and its error."""
    mean, error = mean_and_error(np.array([*accuracies.values()]))
    if mean is None and not missing:
        missing = ["no accuracy on this environment was recorded"]
    return Cell(mean, error, len(accuracies), tuple(missing), accuracies)


def _average(cells: Sequence[Cell]) -> float | None:
    counting = [cell for cell in cells if cell.counts]
    means = [cell.mean for cell in counting if cell.mean is not None]
    return sum(means) / len(means) if means and len(means) == len(counting) else None
