"""Tables of means over trials and their errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import order, selection
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.settings import Group

_UNDECLARED = "-: no job was declared for this cell; Avg is over the other cells."


class Cell(NamedTuple):
    """Accuracies of ``n`` trials in percent: mean, standard error, and what is missing.

    ``accuracies``: trial -> accuracy in [0, 1]. Mean and error are None if there is no trial.
    ``partial``: an average over some of the environments, or of a copy that is not complete.
    """

    mean: float | None = None
    standard_error: float | None = None
    n: int = 0
    missing: tuple[str, ...] = ()
    accuracies: Mapping[int, float] = {}
    partial: bool = False

    @property
    def is_expected(self) -> bool:
        """Whether the cell should have a value."""
        return self.mean is not None or bool(self.missing)


class Row(NamedTuple):
    """An algorithm's cells, and their mean in percent; None if an expected cell has no value."""

    algorithm: str
    cells: Sequence[Cell]
    average: float | None


class Table(NamedTuple):
    """The accuracies of a group's algorithms on one data set, by one selection method.

    A row is an algorithm and a column an environment. In a table of ``averages`` a column is a
    data set instead. ``dataset_titles``: what data sets are called, where that is not their name.
    """

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    averages: bool = False
    dataset_titles: Mapping[str, str] = {}

    @property
    def dataset_title(self) -> str:
        """What the data set is called: a user's own by its folder's name."""
        return self.dataset_titles.get(self.dataset, self.dataset)

    @property
    def headers(self) -> list[str]:
        """The columns as they are called."""
        titles = self.dataset_titles if self.averages else {}
        return [titles.get(column, column) for column in self.columns]

    @property
    def title(self) -> str:
        """Data set, selection method, and the group's setting."""
        parts = [self.dataset_title, selection.METHODS[self.method].title, self.setting]
        return "; ".join(filter(None, parts))

    @property
    def cells(self) -> list[Cell]:
        """The cells of all rows."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def n_incomplete(self) -> int:
        """How many cells are incomplete."""
        return sum(bool(cell.missing) for cell in self.cells)


class _Accuracies:
    """The accuracies in [0, 1] that one selection method takes from the runs of a group.

    ``by_cell``: (algorithm, data set, target) -> trial -> accuracy. ``by_dataset``: (algorithm,
    data set) -> trial -> an accuracy for each target.
    """

    def __init__(self, runs: Iterable[Run], method: str) -> None:
        self.by_cell: dict[tuple[str, str, int], dict[int, float]] = {}
        self.by_dataset: dict[tuple[str, str], dict[int, list[float]]] = {}

        # In the order of DomainBed's groups, on which the last bit of a mean depends.
        for dataset, algorithm, target, trial, outcome in selection.select(runs, method):
            self.by_cell.setdefault((algorithm, dataset, target), {})[trial] = outcome.accuracy
            trials = self.by_dataset.setdefault((algorithm, dataset), {})
            trials.setdefault(trial, []).append(outcome.accuracy)


def build(group: Group, methods: Sequence[str]) -> list[Table]:
    """All tables of one group: for each method one a data set, then that of the averages."""
    gaps = Gaps(group.runs, group.planned)
    columns = order.environment_labels(group.runs, group.planned, group.labels)
    titles = benchmarks.dataset_titles(columns)

    tables = []
    for method in methods:
        leaves_out = selection.METHODS[method].leaves_out
        jobs = gaps.keys_of(method)
        datasets = {job.dataset for job in jobs}
        row_labels = order.ordered_algorithms((job.algorithm for job in jobs), group.declared)
        accuracies = _Accuracies(group.runs, method)

        method_tables = [
            _dataset_table(
                group=group,
                method=method,
                dataset=dataset,
                environments=environments,
                dataset_titles=titles,
                row_labels=row_labels,
                gaps=gaps,
                accuracies=accuracies,
            )
            for dataset, environments in columns.items()
            if dataset in datasets
        ]
        if leaves_out and method_tables:
            averages = _averages(
                group=group,
                method=method,
                tables=method_tables,
                row_labels=row_labels,
                accuracies=accuracies,
            )
            method_tables.append(averages)
        tables += method_tables
    return tables


def _dataset_table(
    group: Group,
    method: str,
    dataset: str,
    environments: Sequence[str],
    dataset_titles: Mapping[str, str],
    row_labels: Sequence[str],
    gaps: Gaps,
    accuracies: _Accuracies,
) -> Table:
    """The table of one data set: a row an algorithm, a column an environment."""
    rows = []
    for algorithm in row_labels:
        cells = []
        for target in range(len(environments)):
            missing = gaps.missing_in_cell(
                dataset=dataset,
                algorithm=algorithm,
                target=target,
                method=method,
                n_environments=len(environments),
            )
            if missing is None:
                cells.append(Cell())
            else:
                trials = accuracies.by_cell.get((algorithm, dataset, target), {})
                cells.append(cell_of(trials, missing))
        rows.append(Row(algorithm, cells, _average(cells)))

    table = Table(
        setting=group.title,
        method=method,
        dataset=dataset,
        columns=environments,
        rows=rows,
        notes=[],
        dataset_titles=dataset_titles,
    )
    if all(cell.is_expected for cell in table.cells):
        return table
    return table._replace(notes=[_UNDECLARED])


def _averages(
    group: Group,
    method: str,
    tables: Sequence[Table],
    row_labels: Sequence[str],
    accuracies: _Accuracies,
) -> Table:
    """A column a data set: means over each trial's mean over the targets that it has."""
    rows = []
    notes = []
    for number, algorithm in enumerate(row_labels):
        cells = []
        for table in tables:
            cell_by_target = dict(zip(table.columns, table.rows[number].cells, strict=True))
            if not any(cell.is_expected for cell in cell_by_target.values()):
                cells.append(Cell())
                continue

            undeclared = [name for name, cell in cell_by_target.items() if not cell.is_expected]
            if undeclared:
                names = ", ".join(undeclared)
                notes.append(f"{algorithm} on {table.dataset_title}: no job declared for {names}.")

            incomplete = [name for name, cell in cell_by_target.items() if cell.missing]
            missing = []
            if incomplete:
                missing.append(f"incomplete in {table.dataset_title}: {', '.join(incomplete)}")

            trials = accuracies.by_dataset.get((algorithm, table.dataset), {})
            means = {trial: float(np.mean(trials[trial])) for trial in sorted(trials)}
            cells.append(cell_of(means, missing)._replace(partial=bool(undeclared)))
        rows.append(Row(algorithm, cells, _average(cells)))

    columns = [table.dataset for table in tables]
    return Table(
        setting=group.title,
        method=method,
        dataset="Averages",
        columns=columns,
        rows=rows,
        notes=notes,
        averages=True,
        dataset_titles=tables[0].dataset_titles,
    )


def cell_of(accuracies: Mapping[int, float], missing: Sequence[str]) -> Cell:
    """The mean over the trials, of accuracies in [0, 1], and its error.

    As in DomainBed's collect_results, to the last bit: the error is the standard deviation with
    divisor n (numpy's ddof 0) over the root of n.
    """
    if not accuracies:
        return Cell(missing=tuple(missing or ["no accuracy recorded on this environment"]))

    values = np.array([*accuracies.values()])
    # Divided before, not after: the last bit decides how a half is rounded.
    shares = values / values.size**0.5

    return Cell(
        mean=100 * values.mean(),
        standard_error=100 * shares.std(),
        n=values.size,
        missing=tuple(missing),
        accuracies=accuracies,
    )


def _average(cells: Sequence[Cell]) -> float | None:
    """The mean of the expected cells in percent; None if one of them has no value."""
    means = [cell.mean for cell in cells if cell.is_expected]
    values = [mean for mean in means if mean is not None]

    is_complete = len(values) == len(means)
    return sum(values) / len(values) if values and is_complete else None
