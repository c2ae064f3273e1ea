"""Tables of runs that leave several targets out together: a row a source, a column a target.

The groups of such runs have one set of environments trained on, their source, so that no cell mixes
two. Here they come together, with the means over the sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from domainbed_carft.results import measures
from domainbed_carft.results.cells import Cell, cell_of
from domainbed_carft.results.collection import Group
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.results.tables import Row, Table

ALL_SOURCES = "mean over sources"
_NOTE = (
    f"A row's label names the environments trained on, whose cells are -. In the row {ALL_SOURCES} "
    "a cell is over each trial's mean over the sources that have the target."
)


def tables(groups: Sequence[Group], tables_of_groups: Sequence[Sequence[Table]]) -> list[Table]:
    """For each setting, selection method and data set, the table of all sources.

    ``tables_of_groups``: those of the groups, which are in the same order.
    """
    tables_of_setting: dict[tuple[str, str, str, bool], dict[str, Table]] = {}
    for group, group_tables in zip(groups, tables_of_groups, strict=True):
        if group.source:
            for table in group_tables:
                setting = group.setting_without_source
                key = (setting, table.method, table.dataset, table.one_setting)
                tables_of_setting.setdefault(key, {})[group.source] = table

    return [
        _table_of_sources(setting, by_source)
        for (setting, *_), by_source in tables_of_setting.items()
    ]


def _table_of_sources(setting: str, by_source: Mapping[str, Table]) -> Table:
    """One table of those of several sources: for each algorithm a row a source, then their mean."""
    first = next(iter(by_source.values()))
    ordered = sorted(by_source, key=lambda source: _source_position(source, first.columns))
    algorithms = dict.fromkeys(row.algorithm for table in by_source.values() for row in table.rows)

    rows = []
    for algorithm in algorithms:
        rows_of_algorithm = {
            source: row
            for source in ordered
            for row in by_source[source].rows
            if row.algorithm == algorithm
        }
        for source, row in rows_of_algorithm.items():
            shown = [*row.cells, Cell(row.average)]
            rows.append(Row(f"{algorithm}, {source}", row.cells, row.average, shown, row.selected))
        if len(rows_of_algorithm) > 1:
            rows.append(_mean_row(f"{algorithm}, {ALL_SOURCES}", rows_of_algorithm.values(), first))

    return first._replace(
        setting=setting,
        rows=rows,
        notes=[_NOTE],
        shown=measures.choose(DEFAULT_COLUMNS, first.columns, runs=()),
    )


def _source_position(source: str, environments: Sequence[str]) -> list[int]:
    """Where the environments of a source stand among all, to sort by."""
    return [environments.index(label) for label in source.split(", ") if label in environments]


def _mean_row(label: str, rows: Iterable[Row], table: Table) -> Row:
    """The means over the sources: of each target, and of the rows' averages."""
    rows = list(rows)
    cells = []
    for number in range(len(table.columns)):
        expected = [row.cells[number] for row in rows if row.cells[number].is_expected]
        cells.append(_mean_cell(expected, table) if expected else Cell())

    averages = [row.average for row in rows]
    values = [average for average in averages if average is not None]
    average = sum(values) / len(values) if values and len(values) == len(averages) else None
    return Row(label, cells, average, shown=[*cells, Cell(average)])


def _mean_cell(cells: Sequence[Cell], table: Table) -> Cell:
    """The cell of one target over its sources: each trial's mean, if it has all of them."""
    reasons = dict.fromkeys(reason for cell in cells for reason in cell.missing)
    accuracies = {
        trial: float(np.mean([cell.accuracies[trial] for cell in cells]))
        for trial in _common_trials(cells)
    }
    return cell_of(accuracies, tuple(reasons), table.error)


def _common_trials(cells: Sequence[Cell]) -> Iterator[int]:
    """The trials that all cells have, in order."""
    for trial in sorted(cells[0].accuracies):
        if all(trial in cell.accuracies for cell in cells):
            yield trial
