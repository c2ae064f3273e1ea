"""The jobs that are missing, as ``collect.gaps`` tells them, each said once."""

from __future__ import annotations

from collections.abc import Container, Iterable

from domainbed_carft.report.content import Missing
from domainbed_carft.results import selection
from domainbed_carft.results.tables import Table


def listed(built: Iterable[Table], optional: Container[str] = ()) -> list[Missing]:
    """A row for each thing that cells of a data set lack, with the cells and the methods.

    ``optional``: methods whose gaps do not count.
    """
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, None]]]] = {}
    for table in built:
        if table.averages:
            continue
        where = "; ".join(filter(None, [table.dataset, table.setting]))
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                for text in cell.missing:
                    methods = found.setdefault((where, text), {})
                    cells = methods.setdefault(table.method, {})
                    cells.setdefault(row.algorithm, {})[column] = None
    return [
        Missing(
            where,
            text,
            _cells(methods),
            ", ".join(selection.METHODS[method].title for method in methods),
            any(method not in optional for method in methods),
        )
        for (where, text), methods in found.items()
    ]


def _cells(methods: dict[str, dict[str, dict[str, None]]]) -> str:
    """Algorithms by their environments: those with the same together."""
    merged: dict[str, dict[str, None]] = {}
    for cells in methods.values():
        for algorithm, columns in cells.items():
            merged.setdefault(algorithm, {}).update(columns)
    together: dict[str, list[str]] = {}
    for algorithm, columns in merged.items():
        together.setdefault(", ".join(columns), []).append(algorithm)
    return "; ".join(f"{', '.join(names)} on {columns}" for columns, names in together.items())


def has_values(table: Table) -> bool:
    """Whether any cell has one."""
    return any(cell.mean is not None for row in table.rows for cell in row.cells)
