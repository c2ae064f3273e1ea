"""Tables of means over trials with their errors: cells and notes."""

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
    "-: no job was declared for this cell. *: over the other cells, and therefore not ranked."
)
_TRAINED_ON = "-: the runs were trained on this environment. Avg is over the other cells."
_NOTE_ON_ONE_TRIAL = "Each cell has a single trial, so there are no errors."


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        algorithm: name of the row.
        cells: one for each environment or dataset.
        average_cell: mean of ``cells``.
        printed_cells: one for each printed column.
        selected: selected runs of one dataset, by target and trial.
    """

    algorithm: str
    cells: Sequence[Cell]
    average_cell: Cell
    printed_cells: Sequence[Cell]
    selected: Sequence[SelectedRun] = ()

    @property
    def average(self) -> float | None:
        """Mean of the cells in percent; None if an expected cell has no value."""
        return self.average_cell.mean

    def get_choices(self, target: int) -> list[SelectedRun]:
        """Return each trial's choice of a search for a cell; empty without a search."""
        return [entry for entry in self.selected if entry.target == target and entry.outcome.values]


@dataclass(frozen=True)
class Table:
    """The cells of a group's algorithms on one dataset, by one selection method.

    Attributes:
        setting: title of the group of runs.
        method: name of the selection method.
        dataset: name of the dataset.
        columns: the environments, or for averages the datasets.
        printed_columns: the columns of `grid`.
        cells: row by row: accuracies on the environments, their average, other printed columns.
        notes: remarks below the table.
        averages: True for the table of averages over datasets.
        dataset_titles: dataset -> its title, if it differs from the name.
        error: kind of error printed after a mean.
        selected: name of a row -> its selected runs.
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
        """Title of the dataset; for a user's own dataset the name of its folder."""
        return self.dataset_titles.get(self.dataset, self.dataset)

    @property
    def title(self) -> str:
        """Dataset, selection method, and setting of the group."""
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
        """Number of incomplete accuracies."""
        return sum(bool(cell.missing) for cell in self.accuracies)

    @property
    def ranks(self) -> list[list[int]]:
        """Ranks of each row's printed cells in their columns; only accuracies are ranked."""
        ranks_of_columns = [
            columns.rank_cells([row.printed_cells[number] for row in self.rows], column)
            for number, column in enumerate(self.printed_columns)
        ]
        return [list(row_ranks) for row_ranks in zip(*ranks_of_columns, strict=True)]

    def incomplete_rows(self, environment: str = "") -> list[str]:
        """Return the rows with an incomplete cell, of one ``environment`` or in all."""
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
        """Format the printed cells, with numbered notes on incomplete ones."""
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
        """Return `grid`; if no cell has several trials, one note replaces all numbers of trials."""
        if any(cell.n > 1 for cell in self.accuracies):
            return self.grid()
        cells = [cell._replace(n=0) if cell.column == ENVIRONMENTS else cell for cell in self.cells]
        return replace(self, cells=cells, notes=[*self.notes, _NOTE_ON_ONE_TRIAL]).grid()

    def choices_grid(self) -> Grid | None:
        """Format the values that a search chose for the cells, or return None without a search."""
        rows = []
        for row in self.rows:
            choices = [row.get_choices(target) for target in range(len(self.columns))]
            if any(choices):
                texts = map(_choices_text, choices)
                members = _members_text(list(itertools.chain(*choices)))
                rows.append([row.algorithm, *texts, members])
        if not rows:
            return None
        title = self._title(f"{self.dataset_title}, chosen")
        return Grid(title, ["Algorithm", *self.columns, "Of"], rows, notes=[])


def _choices_text(trials: Sequence[SelectedRun]) -> str:
    """Format choices, as ``lr 0.001`` of all trials, or ``lr 0.001 (2), lr 0.0003 (1)``."""
    counts = Counter(
        ", ".join(f"{name} {value}" for name, value in entry.outcome.values.items())
        for entry in trials
    )
    if len(counts) < 2:
        return next(iter(counts), NOT_DECLARED)
    return ", ".join(f"{text} ({count})" for text, count in counts.most_common())


def _members_text(selections: Sequence[SelectedRun]) -> str:
    """Format the number of choices that each was chosen from, as ``3`` or ``2 to 3``."""
    numbers = [selected.outcome.members for selected in selections]
    low = min(numbers)
    high = max(numbers)
    return str(high) if low == high else f"{low} to {high}"


def build(
    group: Group,
    methods: Sequence[str],
    *,
    column_names: Sequence[str] = DEFAULT_COLUMNS,
    error: ErrorKind = DOMAINBED,
) -> list[Table]:
    """Build all tables of a group: for each method one per dataset, then the table of averages.

    ``column_names`` are values of ``--columns``.
    """
    gaps = Gaps(group.runs, group.planned)
    tables = []
    for method in methods:
        tables += _TableMaker(group, method, gaps, column_names, error).tables()
    return tables


def build_by_environment(
    collection: Collection, column_names: Sequence[str], error: ErrorKind = DOMAINBED
) -> list[Table]:
    """Build a table for each group, method and dataset, with rows for algorithms and environments.

    ``column_names`` are values of ``--columns``, computed from the runs that held out the
    environment.
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
        self._holds_out = selection.METHODS[method].holds_out

        # (row, dataset) -> the selected runs, in the order of DomainBed's groups, on which the
        # last bit of a mean depends.
        self._selected: dict[tuple[str, str], list[SelectedRun]] = {}
        for entry in group.select(method):
            self._selected.setdefault((entry.row, entry.dataset), []).append(entry)

        self._candidates: dict[tuple[str, str], list[RecordedRun]] = {}
        for run in selection.candidate_runs(group.runs, method):
            self._candidates.setdefault((run.row, run.dataset), []).append(run)

        jobs = gaps.get_candidates(method)
        datasets_with_jobs = {job.dataset for job in jobs}
        self._datasets = [name for name in self._environments if name in datasets_with_jobs]
        self._row_names = group.order_rows(job.row for job in jobs)

    def tables(self) -> list[Table]:
        """Make a table for each dataset, then the averages if environments were held out."""
        tables = [self._dataset_table(dataset) for dataset in self._datasets]
        if tables and self._holds_out and not self._group.source:
            tables.append(self._averages(tables))
        return tables

    def tables_by_environment(self) -> list[Table]:
        """Make a table for each dataset, with a row for each algorithm and environment."""
        return [self._table_by_environment(dataset) for dataset in self._datasets]

    def _dataset_table(self, dataset: str) -> Table:
        """Make the table of one dataset, with a row for each algorithm."""
        environments = self._environments[dataset]
        printed_columns = columns.choose(self._column_names, environments, self._runs_on(dataset))
        cells: list[Cell] = []
        for name in self._row_names:
            cells += self._row_cells(self._row_runs(name, dataset), printed_columns, dataset, name)

        notes = []
        if not all(cell.is_expected for cell in cells if cell.column == ENVIRONMENTS):
            notes.append(_TRAINED_ON if self._group.source else _UNDECLARED)
        return self._table(
            dataset,
            environments,
            printed_columns,
            cells,
            notes=notes,
            selected={name: self._selected.get((name, dataset), []) for name in self._row_names},
        )

    def _table_by_environment(self, dataset: str) -> Table:
        """Make the table of one dataset, with a row for each algorithm and held-out environment."""
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
        """Collect the runs from which the cells of a row are computed."""
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
            # With a single source, the environments without a cell were trained on.
            is_partial=not (self._group.source or all(cell.is_expected for cell in cells)),
        )

    def _accuracy(
        self, name: str, dataset: str, target: int, selected: Sequence[SelectedRun]
    ) -> Cell:
        """Return the cell of one target."""
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
        """Compute the cells of a row: accuracies, their average, other printed columns."""
        cells = [
            self._place(cell._replace(label=environment), ENVIRONMENTS, "%", dataset, row)
            for environment, cell in zip(row_runs.environments, row_runs.cells, strict=True)
        ]
        measured = [columns.COLUMNS[AVERAGE]]
        measured += [column for column in printed_columns if column.name not in DEFAULT_COLUMNS]
        for column in measured:
            cell = column.measure(row_runs)._replace(device=column.device)
            cells.append(self._place(cell, column.name, column.unit, dataset, row))
        return cells

    def _place(self, cell: Cell, column: str, unit: str, dataset: str, row: str) -> Cell:
        """Add the cell's position in the tables."""
        return cell._replace(
            setting=self._group.title,
            selection=self._method,
            dataset=dataset,
            row=row,
            column=column,
            unit=unit,
        )

    def _averages(self, tables: Sequence[Table]) -> Table:
        """Make the table of averages, with a column for each dataset.

        Its cells are means over trials of each trial's mean over its targets.
        """
        cells: list[Cell] = []
        rows_by_undeclared: dict[str, list[str]] = {}
        for number, name in enumerate(self._row_names):
            row_cells = []
            for table in tables:
                accuracies = table.rows[number].cells
                cell = self._dataset_average(name, table, accuracies)
                undeclared = [accuracy.label for accuracy in accuracies if not accuracy.is_expected]
                if undeclared:
                    places = f"{', '.join(undeclared)} on {table.dataset_title}"
                    rows_by_undeclared.setdefault(places, []).append(name)
                    cell = cell._replace(partial=True)
                cell = cell._replace(label=AVERAGE)
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
        """Return the cell of one dataset in the table of averages."""
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
        """Make a table of this group and method; ``details`` are its other fields."""
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
