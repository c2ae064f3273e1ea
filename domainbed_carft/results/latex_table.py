r"""``--format latex-table``: one ``tabular`` for a paper's ``\input``; it needs booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from domainbed_carft.errors import CarftError
from domainbed_carft.results import ranking, selection
from domainbed_carft.results.cells import Cell
from domainbed_carft.results.columns import AVERAGE, ENVIRONMENTS, Column
from domainbed_carft.results.display_names import DisplayNames
from domainbed_carft.results.formats import escape_latex
from domainbed_carft.results.tables import Row, Table
from domainbed_carft.text import printable

_PERCENT = "%"
_NO_VALUE = "--"
_INCOMPLETE = "$^{*}$"
_MARKS = {ranking.BEST: r"\textbf{%s}", ranking.SECOND: r"\underline{%s}"}


@dataclass(frozen=True)
class _TabularRow:
    """A row of the tabular: its label as LaTeX, and the cells that it has, by (name, title)."""

    label: str
    cells: dict[tuple[str, str], Cell]
    incomplete: frozenset[tuple[str, str]]


def write(all_tables: Sequence[Table], names: DisplayNames) -> str:
    """The tables of the first selection method as one ``tabular``.

    Of one data set the columns are its environments; of several they are the data sets, with the
    mean over the environments. Rows of several settings stand in one table. In a column of
    accuracies the best are bold and the second underlined, ties alike; cells that are not complete
    have a star and no rank. Raises CarftError without a table.
    """
    tables = _tables_of_first_method(all_tables)
    columns: dict[tuple[str, str], Column] = {}
    for table in tables:
        columns |= {(column.name, column.title): column for column in table.shown}

    has_settings = len({table.setting for table in tables}) > 1
    rows = [
        _tabular_row(row, table, _row_label(row.algorithm, table, names, has_settings))
        for table in tables
        for row in table.rows
    ]
    texts_of_columns = [_column_texts(key, column, rows) for key, column in columns.items()]
    texts = zip(*texts_of_columns, strict=True)

    header = ["Method", *(_title(column, names, tables[0]) for column in columns.values())]
    lines = [
        *_comments(tables, rows),
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        _line(header),
        r"\midrule",
        *(_line([row.label, *row_texts]) for row, row_texts in zip(rows, texts, strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def methods_left_out(all_tables: Iterable[Table]) -> list[str]:
    """The selection methods that `write` does not show, by name."""
    return list(dict.fromkeys(table.method for table in all_tables))[1:]


def _tables_of_first_method(all_tables: Sequence[Table]) -> list[Table]:
    """The tables of the first method: of its one data set, or else the averages."""
    if not all_tables:
        raise CarftError("--format latex-table: no table; expected jobs on data sets of domains")

    tables = [
        table
        for table in all_tables
        if table.method == all_tables[0].method and not table.one_setting
    ]
    of_datasets = [table for table in tables if not table.averages]
    has_averages = any(table.averages for table in tables)
    if has_averages and len({table.dataset for table in of_datasets}) > 1:
        return [table for table in tables if table.averages]
    return of_datasets


def _row_label(algorithm: str, table: Table, names: DisplayNames, has_settings: bool) -> str:
    """What a row is called, as LaTeX: with its setting, if the rows have several."""
    name = names.methods.get(algorithm, escape_latex(algorithm))
    if not (has_settings and table.setting):
        return name

    label = f"{algorithm}; {table.setting}"
    return names.methods.get(label, f"{name}; {escape_latex(table.setting)}")


def _tabular_row(row: Row, table: Table, label: str) -> _TabularRow:
    keys = [(column.name, column.title) for column in table.shown]
    is_row_complete = not any(cell.missing or cell.partial for cell in row.cells)
    incomplete = [
        key
        for key, cell in zip(keys, row.shown, strict=True)
        if cell.missing or cell.partial or (key[0] == AVERAGE and not is_row_complete)
    ]
    cells = dict(zip(keys, row.shown, strict=True))
    return _TabularRow(label, cells, frozenset(incomplete))


def _title(column: Column, names: DisplayNames, table: Table) -> str:
    """The header of a column, as LaTeX."""
    titles = {}
    if column.name == ENVIRONMENTS:
        titles = dict(names.datasets if table.averages else names.environments)
    return titles.get(column.title, escape_latex(column.title))


def _column_texts(key: tuple[str, str], column: Column, rows: Sequence[_TabularRow]) -> list[str]:
    """The cells of a column from top to bottom, as LaTeX."""
    is_ranked = ranking.is_ranked(column)
    means = []
    for row in rows:
        has_rank = is_ranked and key not in row.incomplete
        means.append(row.cells.get(key, Cell()).mean if has_rank else None)

    texts = []
    for row, rank in zip(rows, ranking.ranks(means), strict=True):
        cell = row.cells.get(key, Cell())
        text = (
            _accuracy_text(cell, rank)
            if column.unit == _PERCENT
            else escape_latex(column.write(cell))
        )
        star = _INCOMPLETE if text and key in row.incomplete else ""
        texts.append(f"{text or _NO_VALUE}{star}")
    return texts


def _accuracy_text(cell: Cell, rank: int) -> str:
    """Mean and error, as LaTeX, and what the mean is of, such as the worst environment."""
    if cell.mean is None:
        return ""

    text = _MARKS.get(rank, "%s") % f"{cell.mean:.1f}"
    if cell.standard_error is not None:
        text += rf" $\pm$ {cell.standard_error:.1f}"
    return f"{text} ({escape_latex(cell.label)})" if cell.label else text


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _comments(tables: Sequence[Table], rows: Sequence[_TabularRow]) -> list[str]:
    """What the table shows and what its marks mean, as comments of the file."""
    method = selection.METHODS[tables[0].method].title
    datasets = dict.fromkeys(table.dataset_title for table in tables)
    error = tables[0].error
    counts = sorted({cell.n for table in tables for row in table.rows for cell in row.cells})
    trials = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))

    sentences = [
        f"{', '.join(datasets)}; {method}.",
        f"Means over {trials} trials, and their {error.title}. {error.definition}.",
        "Bold: the best of a column as printed; underlined: the second; equal ones alike.",
        r"Needs \usepackage{booktabs}.",
    ]
    if any(row.incomplete for row in rows):
        sentences.append("*: not complete, and not ranked; carft collect says what is missing.")
    return [f"% {printable(sentence)}" for sentence in sentences]
