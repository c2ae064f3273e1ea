"""Tables of means over trials and their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import measures, one_setting, selection
from domainbed_carft.results.cells import DOMAINBED, Cell, ErrorKind, cell_of
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import DEFAULT_COLUMNS, Column, RowRuns, candidate_runs
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.table_options import DEFAULT_OPTIONS, TableOptions

_UNDECLARED = "-: no job was declared for this cell; Avg is over the other cells."
_TRAINED_ON = "-: the runs were trained on this environment; Avg is over the other cells."


class Row(NamedTuple):
    """An algorithm's accuracies, and what the table shows of it.

    ``cells``: one for each environment or data set; ``average``: their mean in percent, None if an
    expected cell has no value. ``shown``: a cell for each of the table's ``shown`` columns.
    ``selected``: the choices behind the accuracies of one data set, by target and trial.
    """

    algorithm: str
    cells: Sequence[Cell]
    average: float | None
    shown: Sequence[Cell]
    selected: Sequence[Selected] = ()

    def chosen(self, target: int) -> list[Selected]:
        """The choices of a search behind one cell, a trial each; empty if nothing was searched."""
        return [entry for entry in self.selected if entry.target == target and entry.outcome.values]


class Table(NamedTuple):
    """The accuracies of a group's algorithms on one data set, by one selection method.

    A row is an algorithm. ``columns``: the environments, or in a table of ``averages`` the data
    sets. ``shown``: the columns to print, by default these and their average. ``error``: what
    stands behind the means. ``dataset_titles``: what data sets are called, where that is not their
    name. ``one_setting``: whether all targets share one choice of hyperparameters.
    """

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    shown: Sequence[Column]
    averages: bool = False
    dataset_titles: Mapping[str, str] = {}
    error: ErrorKind = DOMAINBED
    one_setting: bool = False

    @property
    def dataset_title(self) -> str:
        """What the data set is called: a user's own by its folder's name."""
        return self.dataset_titles.get(self.dataset, self.dataset)

    @property
    def title(self) -> str:
        """Data set, selection method, and the group's setting."""
        method = selection.METHODS[self.method].title
        choice = one_setting.TITLE if self.one_setting else ""
        parts = [self.dataset_title, method, choice, self.setting]
        return "; ".join(filter(None, parts))

    @property
    def cells(self) -> list[Cell]:
        """The cells of all rows."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def n_incomplete(self) -> int:
        """How many cells are incomplete."""
        return sum(bool(cell.missing) for cell in self.cells)


def build(
    group: Group, methods: Sequence[str], options: TableOptions = DEFAULT_OPTIONS
) -> list[Table]:
    """All tables of one group: for each method one a data set, then that of the averages."""
    gaps = Gaps(group.runs, group.planned)
    environments = group.environments

    tables = []
    for method in methods:
        selected = group.selected(method)
        tables += _TableMaker(group, method, selected, gaps, environments, options).tables()
        if options.one_setting and selection.METHODS[method].leaves_out:
            selected = group.selected(method, one_setting_for_all=True)
            maker = _TableMaker(group, method, selected, gaps, environments, options)
            tables += [table._replace(one_setting=True) for table in maker.tables()]
    return tables


class _TableMaker:
    """Makes the tables of one group by one method, of what the method ``selected``."""

    def __init__(
        self,
        group: Group,
        method: str,
        selected: Sequence[Selected],
        gaps: Gaps,
        environments: Mapping[str, Sequence[str]],
        options: TableOptions,
    ) -> None:
        self._group = group
        self._method = method
        self._gaps = gaps
        self._environments = environments
        self._dataset_titles = benchmarks.dataset_titles(environments)
        self._options = options
        self._leaves_out = selection.METHODS[method].leaves_out

        # (algorithm, data set) -> what was selected, in the order of DomainBed's groups, on which
        # the last bit of a mean depends.
        self._selected: dict[tuple[str, str], list[Selected]] = {}
        for entry in selected:
            self._selected.setdefault((entry.row, entry.dataset), []).append(entry)

        self._candidates: dict[tuple[str, str], list[Run]] = {}
        for run in candidate_runs(group.runs, method):
            self._candidates.setdefault((run.row, run.dataset), []).append(run)

        jobs = gaps.keys_of(method)
        self._datasets = {job.dataset for job in jobs}
        row_names = (job.row for job in jobs)
        self._row_labels = group.ordered(row_names)

    def tables(self) -> list[Table]:
        """A table for each data set, then that of the averages, unless nothing was left out."""
        tables = [
            self._dataset_table(dataset, environments)
            for dataset, environments in self._environments.items()
            if dataset in self._datasets
        ]
        # Of one source, the table of all sources has the averages.
        has_averages = self._leaves_out and tables and not self._group.source
        return [*tables, self._averages(tables)] if has_averages else tables

    def _dataset_table(self, dataset: str, environments: Sequence[str]) -> Table:
        """The table of one data set: a row an algorithm."""
        runs = [run for run in self._group.runs if run.dataset == dataset]
        columns = measures.choose(self._options.columns, environments, runs)

        rows = []
        for algorithm in self._row_labels:
            selected = self._selected.get((algorithm, dataset), [])
            cells = [
                self._cell(algorithm, dataset, target, selected)
                for target in range(len(environments))
            ]
            row_runs = RowRuns(
                environments=environments,
                cells=cells,
                average=_average(cells),
                selected=selected,
                candidates=self._candidates.get((algorithm, dataset), []),
                error=self._options.error,
            )
            shown = [column.measure(row_runs) for column in columns]
            rows.append(Row(algorithm, cells, row_runs.average, shown, selected))

        is_declared = all(cell.is_expected for row in rows for cell in row.cells)
        notes = [] if is_declared else [_TRAINED_ON if self._group.source else _UNDECLARED]
        return self._table(dataset, environments, rows=rows, notes=notes, shown=columns)

    def _cell(
        self, algorithm: str, dataset: str, target: int, selected: Sequence[Selected]
    ) -> Cell:
        """The accuracy on one target, of what was ``selected`` for the algorithm's row."""
        missing = self._gaps.missing_in_cell(
            dataset=dataset,
            row=algorithm,
            target=target,
            method=self._method,
            n_environments=len(self._environments[dataset]),
        )
        if missing is None:
            return Cell()

        trials = {
            entry.trial: entry.outcome.accuracy for entry in selected if entry.target == target
        }
        return cell_of(trials, missing, self._options.error)

    def _averages(self, tables: Sequence[Table]) -> Table:
        """A column a data set: means over each trial's mean over the targets that it has."""
        datasets = [table.dataset for table in tables]
        titles = [self._dataset_titles.get(dataset, dataset) for dataset in datasets]
        columns = measures.choose(DEFAULT_COLUMNS, titles, runs=())

        rows = []
        notes = []
        for number, algorithm in enumerate(self._row_labels):
            cells = []
            for table in tables:
                cell_by_target = dict(zip(table.columns, table.rows[number].cells, strict=True))
                undeclared = [name for name, cell in cell_by_target.items() if not cell.is_expected]
                cell = self._dataset_average(algorithm, table, cell_by_target)
                if cell.is_expected and undeclared:
                    names = ", ".join(undeclared)
                    note = f"{algorithm} on {table.dataset_title}: no job declared for {names}."
                    notes.append(note)
                cells.append(cell._replace(partial=cell.is_expected and bool(undeclared)))

            average = _average(cells)
            rows.append(Row(algorithm, cells, average, shown=[*cells, Cell(average)]))
        return self._table(
            "Averages", datasets, rows=rows, notes=notes, shown=columns, averages=True
        )

    def _dataset_average(
        self, algorithm: str, table: Table, cell_by_target: Mapping[str, Cell]
    ) -> Cell:
        """The cell of one data set in the table of averages."""
        if not any(cell.is_expected for cell in cell_by_target.values()):
            return Cell()

        incomplete = [name for name, cell in cell_by_target.items() if cell.missing]
        missing = []
        if incomplete:
            missing.append(f"incomplete in {table.dataset_title}: {', '.join(incomplete)}")

        accuracies: dict[int, list[float]] = {}
        for entry in self._selected.get((algorithm, table.dataset), []):
            accuracies.setdefault(entry.trial, []).append(entry.outcome.accuracy)
        means = {trial: float(np.mean(accuracies[trial])) for trial in sorted(accuracies)}
        return cell_of(means, missing, self._options.error)

    def _table(
        self,
        dataset: str,
        columns: Sequence[str],
        *,
        rows: Sequence[Row],
        notes: Sequence[str],
        shown: Sequence[Column],
        averages: bool = False,
    ) -> Table:
        return Table(
            setting=self._group.title,
            method=self._method,
            dataset=dataset,
            columns=columns,
            rows=rows,
            notes=notes,
            shown=shown,
            averages=averages,
            dataset_titles=self._dataset_titles,
            error=self._options.error,
        )


def _average(cells: Sequence[Cell]) -> float | None:
    """The mean of the expected cells in percent; None if one of them has no value."""
    means = [cell.mean for cell in cells if cell.is_expected]
    values = [mean for mean in means if mean is not None]

    is_complete = len(values) == len(means)
    return sum(values) / len(values) if values and is_complete else None
