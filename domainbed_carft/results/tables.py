"""Tables of means over trials with their errors: rows by columns of cells, and notes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.results import columns, selection
from domainbed_carft.results.cells import (
    DOMAINBED,
    NO_VALUE,
    NOT_ALL,
    NOT_DECLARED,
    OTHER,
    PARTIAL,
    Cell,
    ErrorKind,
    list_incomplete,
    mean_of_cells,
    mean_over_trials,
    rank_cells,
)
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import (
    AVERAGE,
    DEFAULT_COLUMNS,
    ENVIRONMENTS,
    OUT_OF_DOMAIN,
    Column,
    RowRuns,
)
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.groups import Group
from domainbed_carft.results.selection import SelectedRun

_UNDECLARED = (
    "-: no job was declared for this cell. *: over the other cells, and therefore not ranked."
)
_TRAINED_ON = "-: the runs were trained on this environment. Avg is over the other cells."
_NOTE_ON_ONE_TRIAL = "Each cell has a single trial, so there are no errors."
_NO_ACCURACY = "no accuracy recorded on this environment"


@dataclass(frozen=True)
class Table:
    """Rows by columns of cells.

    Attributes:
        name: title of the dataset or suite, or "Averages".
        rows: row -> column -> cell. All rows have the same columns, of which only some are printed.
        accuracies: the columns of the environments, or for averages of the datasets.
        printed: the columns that are printed, in their order.
        dataset: name of the dataset; empty for the averages over datasets.
        suite: name of the suite of test sets; otherwise empty.
        setting: title of the group of runs.
        selection: name of the selection rule.
        error: kind of the errors.
        notes: remarks below the table.
        row_runs: row -> the runs from which its cells were computed; only of datasets.
        details: row -> further values, by title or key; only of suites and published accuracies.
        printed_details: the details that are printed before the cells.
    """

    name: str
    rows: Mapping[str, Mapping[Column, Cell]]
    accuracies: Sequence[Column]
    printed: Sequence[Column]
    dataset: str = ""
    suite: str = ""
    setting: str = ""
    selection: str = ""
    error: ErrorKind = DOMAINBED
    notes: Sequence[str] = ()
    row_runs: Mapping[str, RowRuns] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    printed_details: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Name of the table, selection rule, and setting of the group."""
        return self._title(self.name)

    def _title(self, name: str) -> str:
        rule = selection.RULES[self.selection].title if self.selection else ""
        return "; ".join(filter(None, [name, rule, self.setting]))

    @property
    def averages(self) -> bool:
        """True for the averages over datasets."""
        return not self.dataset

    @property
    def columns(self) -> list[Column]:
        """All columns, printed or not."""
        return list(next(iter(self.rows.values()), {}))

    @property
    def labels(self) -> list[str]:
        """The names of the environments, or of the datasets."""
        return [column.of for column in self.accuracies]

    def get_column(self, name: str) -> dict[str, Cell]:
        """Return row -> cell of the column ``name`` of COLUMNS, measured if it is not printed."""
        column = columns.COLUMNS[name]
        return {
            row: cells[column] if column in cells else column.measure(self.row_runs[row])
            for row, cells in self.rows.items()
        }

    @property
    def accuracy_cells(self) -> list[Cell]:
        """The cells of the environments, or of the datasets, row by row."""
        return [cells[column] for cells in self.rows.values() for column in self.accuracies]

    @property
    def counted_cells(self) -> list[Cell]:
        """The cells that are counted as complete or incomplete, each with its own reasons only.

        They are the accuracies and the printed metrics of carft evaluate. Averages repeat other
        cells, and costs that the records lack cannot be measured later, so these do not count. A
        metric that is incomplete only because accuracies of its row are does not count again.
        """
        if self.averages:
            return []

        metrics = [column for column in self.printed if column in columns.EVALUATION_COLUMNS]
        counted = []
        for row, cells in self.rows.items():
            counted += [cells[column] for column in self.accuracies]
            repeated = self.row_runs[row].missing if row in self.row_runs else ()
            for column in metrics:
                reasons = tuple(name for name in cells[column].missing if name not in repeated)
                counted.append(cells[column]._replace(missing=reasons))
        return [cell for cell in counted if cell.is_expected]

    def incomplete_rows(self, environment: str = "") -> list[str]:
        """Return the rows whose accuracies lack results, on one ``environment`` or on any."""
        return [
            row
            for row in self.rows
            if any(cell.lacks_results for cell in self._accuracies_and_average(row, environment))
        ]

    def partial_rows(self, environment: str = "") -> list[str]:
        """Return the other rows with a mean that leaves out targets without declared jobs."""
        incomplete_rows = self.incomplete_rows(environment)
        return [
            row
            for row in self.rows
            if row not in incomplete_rows
            and not all(cell.is_complete for cell in self._accuracies_and_average(row, environment))
        ]

    def _accuracies_and_average(self, row: str, environment: str) -> list[Cell]:
        """Return a row's accuracies and their average, or those of one ``environment``."""
        return [
            cell
            for column, cell in self.rows[row].items()
            if (column in self.accuracies or column.name == AVERAGE)
            and environment in ("", column.of)
        ]

    def get_ranks(self, column: Column) -> dict[str, int]:
        """Return row -> BEST, SECOND or OTHER in a column; only accuracies are ranked.

        An average is ranked among the averages over the same environments or datasets.
        """
        if not column.is_ranked:
            return dict.fromkeys(self.rows, OTHER)

        rows_by_scope: dict[frozenset[str], list[str]] = {}
        for row, cells in self.rows.items():
            covered = () if column.of else (c.of for c in self.accuracies if cells[c].is_expected)
            rows_by_scope.setdefault(frozenset(covered), []).append(row)
        ranks: dict[str, int] = {}
        for rows in rows_by_scope.values():
            ranks |= zip(rows, rank_cells(self.rows[row][column] for row in rows))
        return ranks

    def get_choices(self, row: str, column: Column) -> list[SelectedRun]:
        """Return each trial's choice of a search for an accuracy; empty without a search."""
        if row not in self.row_runs:
            return []
        target = self.accuracies.index(column)
        selected = self.row_runs[row].selected
        return [entry for entry in selected if entry.target == target and entry.outcome.values]

    def grid(self, *, is_short: bool = False, means_only: bool = False) -> Grid:
        """Format the printed cells, with numbered notes on incomplete ones.

        Args:
            is_short: if no cell has several trials, one note replaces all numbers of trials.
            means_only: omit all errors and numbers of trials.
        """
        is_short = is_short and not any(cell.n > 1 for cell in self.accuracy_cells)
        note_numbers: dict[tuple[str, ...], int] = {}
        rows = []
        for row, cells in self.rows.items():
            texts = [row, *(str(self.details[row][name]) for name in self.printed_details)]
            for column in self.printed:
                cell = cells[column]
                if is_short or means_only:
                    cell = cell._replace(n=0)
                if means_only:
                    cell = cell._replace(standard_error=None)

                text = column.write(cell)
                if cell.needs_note:  # a new reason gets the next number
                    number = note_numbers.setdefault(cell.missing, len(note_numbers) + 1)
                    text = f"{text or NO_VALUE} [{number}]"
                elif not cell.is_complete:
                    text += PARTIAL
                texts.append(text or column.placeholder)
            rows.append(texts)

        notes = [f"[{number}] {'. '.join(missing)}." for missing, number in note_numbers.items()]
        notes += [*self.notes, *([_NOTE_ON_ONE_TRIAL] if is_short else [])]
        header = ["Algorithm", *self.printed_details, *(column.title for column in self.printed)]
        return Grid(self.title, header, rows, notes)

    def choices_grid(self) -> Grid | None:
        """Format the values that a search chose for the cells, or return None without a search."""
        rows = []
        for row in self.rows:
            choices = [self.get_choices(row, column) for column in self.accuracies]
            if any(choices):
                texts = map(_choices_text, choices)
                rows.append([row, *texts, _members_text(list(itertools.chain(*choices)))])
        if not rows:
            return None
        header = ["Algorithm", *(column.title for column in self.accuracies), "Of"]
        return Grid(self._title(f"{self.name}, chosen"), header, rows, notes=[])

    def as_rows(self) -> list[dict[str, Any]]:
        """Return column -> value for each printed cell, for CSV and data frames."""
        return [
            {
                "setting": self.setting,
                "selection": self.selection,
                "dataset": self.dataset,
                "algorithm": row,
                **column.key,
                "of": column.of or cells[column].label,
                "unit": column.unit,
                "mean": cells[column].mean,
                "standard_error": cells[column].standard_error,
                "n": cells[column].n,
                "missing": ". ".join(cells[column].missing),
            }
            for row, cells in self.rows.items()
            for column in self.printed
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the table for JSON, with all cells, printed or not."""
        rows = []
        for row, cells in self.rows.items():
            chosen = [
                {
                    "of": column.of,
                    "trial": selected.trial,
                    "values": dict(selected.outcome.values),
                    "hparams_seed": selected.outcome.hparams_seed,
                    "members": selected.outcome.members,
                }
                for column in self.accuracies
                for selected in self.get_choices(row, column)
            ]
            entry: dict[str, Any] = {"algorithm": row}
            if row in self.details:
                entry["details"] = dict(self.details[row])
            entry["cells"] = [{**column.key, **cell._asdict()} for column, cell in cells.items()]
            if chosen:
                entry["chosen"] = chosen
            rows.append(entry)
        return {
            "title": self.title,
            "setting": self.setting,
            "selection": self.selection,
            "dataset": self.dataset or None,
            "error": self.error.name,
            "columns": [
                {**column.key, "title": column.title, "unit": column.unit}
                for column in self.columns
            ],
            "rows": rows,
            "notes": list(self.notes),
        }


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
    rules: Sequence[str],
    *,
    column_names: Sequence[str] = DEFAULT_COLUMNS,
    error: ErrorKind = DOMAINBED,
) -> list[Table]:
    """Build all tables of a group: for each rule one per dataset, then the table of averages.

    ``column_names`` are values of ``--columns``. There are no averages if no environment was held
    out, or several together.
    """
    gaps = Gaps(group)
    tables = []
    for rule in rules:
        rows_by_dataset = _collect_rows(group, rule, gaps, error)
        dataset_tables = [
            _build_table(
                group,
                rule,
                dataset,
                rows,
                column_names=column_names,
                error=error,
                notes=_notes_on_empty_cells(rows, group),
            )
            for dataset, rows in rows_by_dataset.items()
        ]
        tables += dataset_tables
        if dataset_tables and selection.RULES[rule].holds_out and not group.source:
            tables.append(average_datasets(dataset_tables))
    return tables


def build_by_environment(
    collection: Collection, column_names: Sequence[str], error: ErrorKind = DOMAINBED
) -> list[Table]:
    """Build a table for each group, rule and dataset, with rows for algorithms and environments.

    ``column_names`` are values of ``--columns``, computed from the runs that held out the
    environment.
    """
    names = [name for name in column_names if name != ENVIRONMENTS]
    tables = []
    for group in collection.groups:
        gaps = Gaps(group)
        for rule in collection.rules:
            for dataset, rows in _collect_rows(group, rule, gaps, error).items():
                parts = {
                    f"{row}, {environment}": part
                    for row, row_runs in rows.items()
                    for environment, part in _split_by_environment(row_runs).items()
                }
                table = _build_table(group, rule, dataset, parts, column_names=names, error=error)
                tables.append(table)
    return tables


def _split_by_environment(row_runs: RowRuns) -> dict[str, RowRuns]:
    """Map each environment that selected runs held out to the part of the row with these runs."""
    parts = {}
    for target, environment in enumerate(row_runs.accuracies):
        selected = [entry for entry in row_runs.selected if entry.target == target]
        if selected:
            accuracies = {
                name: cell if name == environment else Cell()
                for name, cell in row_runs.accuracies.items()
            }
            parts[environment] = replace(
                row_runs, accuracies=accuracies, selected=selected, is_partial=False
            )
    return parts


def _collect_rows(
    group: Group, rule: str, gaps: Gaps, error: ErrorKind
) -> dict[str, dict[str, RowRuns]]:
    """Map each dataset and row to the runs from which its cells are computed."""
    selected_by_row: dict[tuple[str, str], list[SelectedRun]] = {}
    for entry in group.select(rule):
        selected_by_row.setdefault((entry.dataset, entry.row), []).append(entry)
    candidates_by_row = selection.candidate_runs(group.runs, rule)
    titles = benchmarks.dataset_titles(group.environments)
    jobs = gaps.get_candidates(rule)
    datasets = sorted({job.dataset for job in jobs}, key=list(titles).index)
    row_names = group.order_rows(job.row for job in jobs)

    rows_by_dataset: dict[str, dict[str, RowRuns]] = {}
    for dataset, row in itertools.product(datasets, row_names):
        selected = selected_by_row.get((dataset, row), [])
        accuracies = dict.fromkeys(group.environments[dataset], Cell())
        for target, environment in enumerate(group.environments[dataset]):
            missing = gaps.find_missing(dataset=dataset, row=row, target=target, rule=rule)
            if missing is None:  # no job is expected
                continue
            on_target = [entry for entry in selected if entry.target == target]
            accuracies[environment] = mean_over_trials(
                [(entry.trial, entry.outcome.accuracy) for entry in on_target],
                missing=missing or ([] if on_target else [_NO_ACCURACY]),
                error=error,
            )

        is_declared = all(cell.is_expected for cell in accuracies.values())
        rows_by_dataset.setdefault(dataset, {})[row] = RowRuns(
            dataset_title=titles[dataset],
            accuracies=accuracies,
            selected=selected,
            candidates=candidates_by_row.get((dataset, row), []),
            error=error,
            # With a single source, the environments without a cell were trained on.
            is_partial=not (is_declared or group.source),
        )
    return rows_by_dataset


def _notes_on_empty_cells(rows: Mapping[str, RowRuns], group: Group) -> list[str]:
    """Explain the environments without a cell: undeclared ones, or those of a single source."""
    cells = [cell for row_runs in rows.values() for cell in row_runs.accuracies.values()]
    if all(cell.is_expected for cell in cells):
        return []
    return [_TRAINED_ON if group.source else _UNDECLARED]


def _build_table(
    group: Group,
    rule: str,
    dataset: str,
    rows: Mapping[str, RowRuns],
    *,
    column_names: Sequence[str],
    error: ErrorKind,
    notes: Sequence[str] = (),
) -> Table:
    """Build the table of one dataset; its accuracies and their average need not be printed."""
    environments = group.environments
    runs = [run for run in group.runs if run.dataset == dataset]
    printed = columns.choose(column_names, environments[dataset], runs)
    accuracies = [columns.environment_column(name) for name in environments[dataset]]
    measured = dict.fromkeys([*accuracies, columns.COLUMNS[AVERAGE], *printed])
    return Table(
        name=benchmarks.dataset_titles(environments)[dataset],
        rows={
            row: {column: column.measure(row_runs) for column in measured}
            for row, row_runs in rows.items()
        },
        accuracies=accuracies,
        printed=printed,
        dataset=dataset,
        setting=group.title,
        selection=rule,
        error=error,
        notes=notes,
        row_runs=rows,
    )


def average_datasets(tables: Sequence[Table]) -> Table:
    """Build the table of averages over the datasets of one setting and selection rule.

    The cells of a dataset are means over trials of each trial's mean over the held-out environments
    or, if none was held out, over all.
    """
    average = columns.COLUMNS[AVERAGE]
    by_dataset = {}
    for table in tables:
        column = columns.COLUMNS[OUT_OF_DOMAIN]
        column = replace(column, title=table.name, explanation="", of=table.dataset)
        if selection.RULES[table.selection].holds_out:
            by_dataset[column] = table.get_column(OUT_OF_DOMAIN)
        else:
            by_dataset[column] = {
                row: row_runs.mean_accuracy() for row, row_runs in table.row_runs.items()
            }

    rows = {}
    for row in tables[0].rows:
        cells = {column: by_row[row] for column, by_row in by_dataset.items()}
        rows[row] = {**cells, average: _average_datasets(cells)}

    rows_by_undeclared: dict[str, list[str]] = {}
    for row, table in itertools.product(rows, tables):
        undeclared = [
            column.of for column in table.accuracies if not table.rows[row][column].is_expected
        ]
        if undeclared:
            places = f"{', '.join(undeclared)} on {table.name}"
            rows_by_undeclared.setdefault(places, []).append(row)

    return replace(
        tables[0],
        name="Averages",
        rows=rows,
        accuracies=list(by_dataset),
        printed=[*by_dataset, average],
        dataset="",
        notes=[
            f"{PARTIAL}: no job was declared for {undeclared}: {', '.join(names)}."
            for undeclared, names in rows_by_undeclared.items()
        ],
        row_runs={},
    )


def join_settings(tables: Sequence[Table]) -> Table:
    """Build one table of tables of several settings, whose rows name the setting.

    All rows get the columns of all tables; cells that a table lacks are empty.
    """
    settings = {table.setting for table in tables}
    if len(settings) == 1:
        return tables[0]

    columns_of_tables = dict.fromkeys(column for table in tables for column in table.columns)
    return replace(
        tables[0],
        rows={
            f"{row}; {table.setting}" if table.setting else row: {
                column: cells.get(column, Cell()) for column in columns_of_tables
            }
            for table in tables
            for row, cells in table.rows.items()
        },
        accuracies=list(dict.fromkeys(c for table in tables for c in table.accuracies)),
        printed=list(dict.fromkeys(column for table in tables for column in table.printed)),
        setting="",
        row_runs={},
    )


def _average_datasets(cells: Mapping[Column, Cell]) -> Cell:
    """Mean of the cells of a row of averages, if every expected cell has a value."""
    mean = mean_of_cells(cells.values())
    names = list_incomplete({column.title: cell for column, cell in cells.items()})
    if names:
        return Cell(mean, missing=(f"incomplete: {names}",))
    covers_all = all(cell.is_expected and cell.is_complete for cell in cells.values())
    return Cell(mean, missing=() if covers_all or mean is None else (NOT_ALL,))
