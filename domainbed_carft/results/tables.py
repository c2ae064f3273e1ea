"""Tables of means over trials and their errors: their cells, one long list, and their notes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import columns, selection
from domainbed_carft.results.collection import Collection, Group
from domainbed_carft.results.columns import (
    AVERAGE,
    DEFAULT_COLUMNS,
    DOMAINBED,
    ENVIRONMENTS,
    NOT_DECLARED,
    Cell,
    Column,
    ErrorKind,
    RowRuns,
    mean_cell,
)
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.selection import SelectedRun

_UNDECLARED = (
    "-: no job was declared for this cell. *: over the other cells, and so without a rank."
)
_TRAINED_ON = "-: the runs were trained on this environment; Avg is over the other cells."
_NOTE_ON_ONE_TRIAL = "Each cell is of one trial, so it has no error."


class Row(NamedTuple):
    """A row of a table: its part of the table's cells.

    ``algorithm``: what the row is called; ``cells``: one for each environment or dataset;
    ``average_cell``: their mean; ``printed_cells``: one for each column that the table prints.
    ``selected``: the choices behind the accuracies of one dataset, by target and trial.
    """

    algorithm: str
    cells: Sequence[Cell]
    average_cell: Cell
    printed_cells: Sequence[Cell]
    selected: Sequence[SelectedRun] = ()

    @property
    def average(self) -> float | None:
        """The mean of the cells in percent; None if an expected cell has no value."""
        return self.average_cell.mean

    def chosen(self, target: int) -> list[SelectedRun]:
        """The choices of a search behind one cell, a trial each; empty if nothing was searched."""
        return [entry for entry in self.selected if entry.target == target and entry.outcome.values]


@dataclass(frozen=True)
class Table:
    """The cells of a group's algorithms on one dataset, by one selection method.

    ``cells``: row by row: the accuracies on the environments, their average, then those of the
    other ``printed_columns``. ``columns``: the environments or, of averages, the datasets.
    ``error``: what stands behind the means. ``dataset_titles``: what datasets are called,
    where that is not their name. ``selected``: the row's name -> the choices behind its accuracies.
    """

    setting: str
    method: str
    dataset: str
    columns: Sequence[str]
    printed_columns: Sequence[Column]
    cells: Sequence[Cell]
    notes: Sequence[str] = ()
    averages: bool = False
    dataset_titles: Mapping[str, str] = field(default_factory=dict)
    error: ErrorKind = DOMAINBED
    selected: Mapping[str, Sequence[SelectedRun]] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[Row]:
        """The cells row by row."""
        by_row = itertools.groupby(self.cells, key=lambda cell: cell.row)
        return [self._row(name, list(cells)) for name, cells in by_row]

    def _row(self, name: str, cells: Sequence[Cell]) -> Row:
        accuracies = [cell for cell in cells if cell.column == ENVIRONMENTS]
        cell_of_column = {(cell.column, cell.device): cell for cell in cells}

        printed_cells = []
        remaining_accuracies = iter(accuracies)
        for column in self.printed_columns:
            if column.name == ENVIRONMENTS:
                printed_cells.append(next(remaining_accuracies))
            else:
                printed_cells.append(cell_of_column[column.name, column.device])
        return Row(
            algorithm=name,
            cells=accuracies,
            average_cell=cell_of_column[AVERAGE, ""],
            printed_cells=printed_cells,
            selected=self.selected.get(name, ()),
        )

    @property
    def dataset_title(self) -> str:
        """What the dataset is called: a user's own by its folder's name."""
        return self.dataset_titles.get(self.dataset, self.dataset)

    @property
    def title(self) -> str:
        """Dataset, selection method, and the group's setting."""
        return self._title(self.dataset_title)

    def _title(self, first: str) -> str:
        method = selection.METHODS[self.method].title
        return "; ".join(filter(None, [first, method, self.setting]))

    @property
    def accuracies(self) -> list[Cell]:
        """The cells of the environments, or of the datasets."""
        return [cell for cell in self.cells if cell.column == ENVIRONMENTS]

    @property
    def n_incomplete(self) -> int:
        """How many accuracies are incomplete."""
        return sum(bool(cell.missing) for cell in self.accuracies)

    @property
    def ranks(self) -> list[list[int]]:
        """For each row the ranks of its printed cells in their columns, of accuracies only."""
        ranks_of_columns = [
            columns.rank_cells([row.printed_cells[number] for row in self.rows], column)
            for number, column in enumerate(self.printed_columns)
        ]
        return [list(row_ranks) for row_ranks in zip(*ranks_of_columns, strict=True)]

    def incomplete_rows(self, environment: str = "") -> list[str]:
        """The rows with an incomplete cell of an ``environment``, or in their average."""
        return [
            row.algorithm
            for row in self.rows
            if any(
                cell.is_incomplete
                for cell in (*row.cells, row.average_cell)
                if not environment or cell.label == environment
            )
        ]

    def grid(self) -> Grid:
        """The printed cells as words, with numbered notes on incomplete ones."""
        note_numbers: dict[tuple[str, ...], int] = {}
        rows = []
        for row in self.rows:
            texts = [row.algorithm]
            for column, cell in zip(self.printed_columns, row.printed_cells, strict=True):
                note_number = None
                if cell.missing:  # a new reason gets the next number
                    note_number = note_numbers.setdefault(cell.missing, len(note_numbers) + 1)
                texts.append(column.text(cell, note_number))
            rows.append(texts)

        header = ["Algorithm", *(column.title for column in self.printed_columns)]
        notes = [f"[{number}] {'. '.join(missing)}." for missing, number in note_numbers.items()]
        return Grid(self.title, header, rows, [*notes, *self.notes])

    def single_trial_grid(self) -> Grid:
        """The same as `grid`; where no cell has several trials, a note says so instead of each."""
        if any(cell.n > 1 for cell in self.accuracies):
            return self.grid()
        cells = [cell._replace(n=0) if cell.column == ENVIRONMENTS else cell for cell in self.cells]
        return replace(self, cells=cells, notes=[*self.notes, _NOTE_ON_ONE_TRIAL]).grid()

    def choices_grid(self) -> Grid | None:
        """The values of a search that were chosen for the cells; None if no row had a search."""
        rows = []
        for row in self.rows:
            chosen = [row.get_choices(target) for target in range(len(self.columns))]
            if any(chosen):
                all_chosen = [entry for of_cell in chosen for entry in of_cell]
                texts = map(_choices_text, chosen)
                rows.append([row.algorithm, *texts, _members_text(all_chosen)])
        if not rows:
            return None
        title = self._title(f"{self.dataset_title}, chosen")
        return Grid(title, ["Algorithm", *self.columns, "Of"], rows, notes=[])


def _choices_text(trials: Sequence[SelectedRun]) -> str:
    """``lr 0.001`` if all trials chose it, else ``lr 0.001 (2), lr 0.0003 (1)``."""
    counts = Counter(
        ", ".join(f"{name} {value}" for name, value in entry.outcome.values.items())
        for entry in trials
    )
    if len(counts) < 2:
        return next(iter(counts), NOT_DECLARED)
    return ", ".join(f"{text} ({count})" for text, count in counts.most_common())


def _members_text(selections: Sequence[SelectedRun]) -> str:
    """Among how many each was chosen, as ``3`` or ``2 to 3``."""
    numbers = [selected.outcome.members for selected in selections]
    smallest = min(numbers)
    largest = max(numbers)
    return str(largest) if smallest == largest else f"{smallest} to {largest}"


def build(
    group: Group,
    methods: Sequence[str],
    *,
    column_names: Sequence[str] = DEFAULT_COLUMNS,
    error: ErrorKind = DOMAINBED,
) -> list[Table]:
    """All tables of one group: for each method one a dataset, then that of the averages.

    ``column_names``: as for ``--columns``; ``error``: what stands behind the means.
    """
    gaps = Gaps(group.runs, group.planned)
    tables = []
    for method in methods:
        tables += _TableMaker(group, method, gaps, column_names, error).tables()
    return tables


def by_environment(
    collection: Collection, column_names: Sequence[str], error: ErrorKind = DOMAINBED
) -> list[Table]:
    """For each group, method and dataset a table with a row for each algorithm and environment.

    ``column_names``: as for ``--columns``, each of the runs that left that environment out.
    """
    tables = []
    for group in collection.groups:
        gaps = Gaps(group.runs, group.planned)
        for method in collection.methods:
            tables += _TableMaker(group, method, gaps, column_names, error).tables_by_environment()
    return tables


class _TableMaker:
    """Makes the tables of one group by one method."""

    def __init__(
        self,
        group: Group,
        method: str,
        gaps: Gaps,
        column_names: Sequence[str],
        error: ErrorKind,
    ) -> None:
        self._group = group
        self._method = method
        self._gaps = gaps
        self._column_names = column_names
        self._error = error
        self._environments = group.environments
        self._dataset_titles = benchmarks.dataset_titles(self._environments)
        self._leaves_out = selection.METHODS[method].holds_out

        # (row, dataset) -> what was selected, in the order of DomainBed's groups, on which the
        # last bit of a mean depends.
        self._selected: dict[tuple[str, str], list[SelectedRun]] = {}
        for entry in group.select(method):
            self._selected.setdefault((entry.row, entry.dataset), []).append(entry)

        self._candidates: dict[tuple[str, str], list[RecordedRun]] = {}
        for run in selection.candidate_runs(group.runs, method):
            self._candidates.setdefault((run.row, run.dataset), []).append(run)

        jobs = gaps.get_candidates(method)
        with_jobs = {job.dataset for job in jobs}
        self._datasets = [name for name in self._environments if name in with_jobs]
        self._row_names = group.order_rows(job.row for job in jobs)

    def tables(self) -> list[Table]:
        """A table for each dataset, then that of the averages, unless nothing was left out."""
        tables = [self._dataset_table(dataset) for dataset in self._datasets]
        has_averages = self._leaves_out and tables and not self._group.source
        return [*tables, self._averages(tables)] if has_averages else tables

    def tables_by_environment(self) -> list[Table]:
        """A table for each dataset, with a row for each of its rows and environments."""
        return [self._table_by_environment(dataset) for dataset in self._datasets]

    def _dataset_table(self, dataset: str) -> Table:
        """The table of one dataset: a row an algorithm."""
        environments = self._environments[dataset]
        printed_columns = columns.choose(self._column_names, environments, self._runs_on(dataset))
        cells: list[Cell] = []
        for name in self._row_names:
            cells += self._row_cells(self._row_runs(name, dataset), printed_columns, dataset, name)

        is_declared = all(cell.is_expected for cell in cells if cell.column == ENVIRONMENTS)
        note = _TRAINED_ON if self._group.source else _UNDECLARED
        return self._table(
            dataset,
            environments,
            printed_columns,
            cells,
            notes=[] if is_declared else [note],
            selected={name: self._selected.get((name, dataset), []) for name in self._row_names},
        )

    def _table_by_environment(self, dataset: str) -> Table:
        """The table of one dataset: a row for each algorithm and environment left out."""
        environments = self._environments[dataset]
        names = [name for name in self._column_names if name != ENVIRONMENTS]
        printed_columns = columns.choose(names, (), self._runs_on(dataset))
        cells: list[Cell] = []
        for name in self._row_names:
            row_runs = self._row_runs(name, dataset)
            for target, environment in enumerate(environments):
                selected = [entry for entry in row_runs.selected if entry.target == target]
                if selected:
                    accuracies = [Cell() for _ in environments]
                    accuracies[target] = row_runs.cells[target]
                    part = replace(row_runs, cells=accuracies, selected=selected, is_partial=False)
                    label = f"{name}, {environment}"
                    cells += self._row_cells(part, printed_columns, dataset, label)
        return self._table(dataset, environments, printed_columns, cells)

    def _runs_on(self, dataset: str) -> list[RecordedRun]:
        return [run for run in self._group.runs if run.dataset == dataset]

    def _row_runs(self, name: str, dataset: str) -> RowRuns:
        """What the cells of one row are computed from."""
        environments = self._environments[dataset]
        selected = self._selected.get((name, dataset), [])
        cells = [
            self._accuracy(name, dataset, target, selected) for target in range(len(environments))
        ]
        return RowRuns(
            environments=environments,
            cells=cells,
            selected=selected,
            candidates=self._candidates.get((name, dataset), []),
            error=self._error,
            # Of one source, the environments without a cell were trained on.
            is_partial=not (self._group.source or all(cell.is_expected for cell in cells)),
        )

    def _accuracy(
        self, name: str, dataset: str, target: int, selected: Sequence[SelectedRun]
    ) -> Cell:
        """The accuracy on one target, of what was ``selected`` for the row."""
        missing = self._gaps.find_missing(
            dataset=dataset,
            row=name,
            target=target,
            method=self._method,
            n_environments=len(self._environments[dataset]),
        )
        if missing is None:
            return Cell()

        trials = {
            entry.trial: entry.outcome.accuracy for entry in selected if entry.target == target
        }
        return mean_cell(trials, missing, self._error)

    def _row_cells(
        self, row_runs: RowRuns, printed_columns: Sequence[Column], dataset: str, row: str
    ) -> list[Cell]:
        """The cells of a row in their places: accuracies, their average, what else is printed."""
        cells = [
            self._place(cell._replace(of=environment), ENVIRONMENTS, "%", dataset, row)
            for environment, cell in zip(row_runs.environments, row_runs.cells, strict=True)
        ]
        measured = [columns.COLUMNS[AVERAGE]]
        measured += [column for column in printed_columns if column.name not in DEFAULT_COLUMNS]
        for column in measured:
            cell = column.measure(row_runs)._replace(device=column.device)
            cells.append(self._place(cell, column.name, column.unit, dataset, row))
        return cells

    def _place(self, cell: Cell, column: str, unit: str, dataset: str, row: str) -> Cell:
        """The cell at its place in the long list."""
        return cell._replace(
            setting=self._group.title,
            selection=self._method,
            dataset=dataset,
            row=row,
            column=column,
            unit=unit,
        )

    def _averages(self, tables: Sequence[Table]) -> Table:
        """A column a dataset: means over each trial's mean over the targets that it has."""
        cells: list[Cell] = []
        rows_by_undeclared: dict[str, list[str]] = {}
        for number, name in enumerate(self._row_names):
            row_cells = []
            for table in tables:
                accuracies = table.rows[number].cells
                cell = self._dataset_average(name, table, accuracies)
                undeclared = [accuracy.of for accuracy in accuracies if not accuracy.is_expected]
                if undeclared:
                    places = f"{', '.join(undeclared)} on {table.dataset_title}"
                    rows_by_undeclared.setdefault(places, []).append(name)
                    cell = cell._replace(partial=True)
                cell = cell._replace(of=AVERAGE)
                row_cells.append(self._place(cell, ENVIRONMENTS, "%", table.dataset, name))

            incomplete = [self._dataset_titles[cell.dataset] for cell in row_cells if cell.missing]
            average = Cell(
                columns.average(row_cells),
                missing=(f"incomplete: {', '.join(incomplete)}",) if incomplete else (),
                partial=any(cell.partial for cell in row_cells),
            )
            cells += [*row_cells, self._place(average, AVERAGE, "%", dataset="", row=name)]

        titles = [table.dataset_title for table in tables]
        return self._table(
            "Averages",
            [table.dataset for table in tables],
            columns.choose(DEFAULT_COLUMNS, titles, runs=()),
            cells,
            notes=[
                f"{columns.PARTIAL}: no job was declared for {undeclared}: {', '.join(names)}."
                for undeclared, names in rows_by_undeclared.items()
            ],
            averages=True,
        )

    def _dataset_average(self, name: str, table: Table, accuracies: Sequence[Cell]) -> Cell:
        """The cell of one dataset in the table of averages."""
        if not any(cell.is_expected for cell in accuracies):
            return Cell()

        incomplete = [cell.label for cell in accuracies if cell.missing]
        missing = []
        if incomplete:
            missing.append(f"incomplete in {table.dataset_title}: {', '.join(incomplete)}")
        selected = self._selected.get((name, table.dataset), [])
        means = columns.trial_means((entry.trial, entry.outcome.accuracy) for entry in selected)
        return mean_cell(means, missing, self._error)

    def _table(
        self,
        dataset: str,
        environments: Sequence[str],
        printed_columns: Sequence[Column],
        cells: Sequence[Cell],
        **details: Any,
    ) -> Table:
        """A table of this group and method; ``details``: its other fields."""
        return Table(
            setting=self._group.title,
            method=self._method,
            dataset=dataset,
            columns=environments,
            printed_columns=printed_columns,
            cells=cells,
            dataset_titles=self._dataset_titles,
            error=self._error,
            **details,
        )
