r"""``--format latex``: one ``tabular`` for a paper's ``\input``, which needs booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from domainbed_carft.errors import CarftError
from domainbed_carft.escaping import printable
from domainbed_carft.results import columns, selection
from domainbed_carft.results.cells import BEST, OTHER, PLUS_MINUS, SECOND, Cell, rank_cells
from domainbed_carft.results.columns import Column
from domainbed_carft.results.comparisons import ACCURACY, ENVIRONMENT, LEVEL, PAIR, Comparison
from domainbed_carft.results.tables import Table, average_datasets

_NO_VALUE = "--"
_INCOMPLETE = "$^{*}$"
_CLEAR = r"$^{\dagger}$"
_SIGNIFICANT = r"$^{\ddagger}$"
_MARKS = {BEST: r"\textbf{%s}", SECOND: r"\underline{%s}"}

# Characters that are neither ASCII nor letters with accents in TeX's first font encoding
_NOT_IN_FONT = re.compile(f"[^ -~\u00c0-\u00ff{PLUS_MINUS}]|[ÐÞðþ×÷]")
_SIGN_NAMES = {
    "\\": "backslash",
    "~": "asciitilde",
    "^": "asciicircum",
    "<": "less",
    ">": "greater",
    "|": "bar",
}
_SIGNS = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        **{sign: rf"\text{name}{{}}" for sign, name in _SIGN_NAMES.items()},
        PLUS_MINUS: r"$\pm$",
        '"': "''",
        "-": r"{-}",  # two in a row would become a dash
        "[": "{[}",  # would be read as a length after the end of a row
    }
)

# The table and name of a row
_Row = tuple[Table, str]


def escape_latex(text: str) -> str:
    """Escape text for LaTeX; characters that pdfLaTeX cannot print become their code points."""

    def code_point(match: re.Match[str]) -> str:
        return f"(U+{ord(match[0]):04X})"

    return _NOT_IN_FONT.sub(code_point, text).translate(_SIGNS)


def tabular(all_tables: Sequence[Table], comparisons: Sequence[Comparison] = ()) -> str:
    """Write the tables of the first selection method as one ``tabular``.

    The columns are the environments of a single dataset, otherwise the datasets with their means
    over environments. Rows of several settings share one table. In a column of accuracies the best
    are bold and the second are underlined, including ties; incomplete cells have a star and no
    rank. An average is ranked among the averages over the same environments or datasets.
    Differences from one row (``comparisons``) are a last column with marks of significance. Raises
    CarftError if there is no table.
    """
    import pandas as pd

    tables = _tables_of_first_method(all_tables)
    rows = [(table, row) for table in tables for row in table.rows]
    printed = dict.fromkeys(column for table in tables for column in table.printed)
    titles = [escape_latex(column.title) for column in printed]
    texts = [_column_texts(column, rows) for column in printed]
    if comparisons:
        titles.append(rf"$\Delta$ {escape_latex(comparisons[0].against)}")
        texts.append(_difference_texts(rows, comparisons))

    has_settings = len({table.setting for table in tables}) > 1
    labels = [_row_label(row, table.setting if has_settings else "") for table, row in rows]
    frame = pd.DataFrame(zip(labels, *texts, strict=True), columns=["Method", *titles])
    layout = f"l{'c' * len(texts)}"
    body = frame.style.hide(axis="index").to_latex(hrules=True, column_format=layout)
    comments = "".join(f"% {printable(line)}\n" for line in _comments(tables, comparisons))
    return comments + body


def _tables_of_first_method(all_tables: Sequence[Table]) -> list[Table]:
    """Return the first method's tables: of its only dataset, otherwise each setting's averages."""
    if not all_tables:
        raise CarftError("--format latex: no table to write; expected jobs with targets")

    dataset_tables = [
        table
        for table in all_tables
        if table.selection == all_tables[0].selection and not table.averages
    ]
    if len({table.dataset for table in dataset_tables}) < 2:
        return dataset_tables

    tables_by_setting: dict[str, list[Table]] = {}
    for table in dataset_tables:
        tables_by_setting.setdefault(table.setting, []).append(table)
    return [average_datasets(tables) for tables in tables_by_setting.values()]


def _row_label(algorithm: str, setting: str) -> str:
    return escape_latex("; ".join(filter(None, [algorithm, setting])))


def _column_texts(column: Column, rows: Sequence[_Row]) -> list[str]:
    """Format the cells of a column, with the best and the second marked."""
    cells = [table.rows[row].get(column, Cell()) for table, row in rows]
    ranks = _rank_column(column, cells, rows)
    texts = []
    for cell, rank in zip(cells, ranks, strict=True):
        text = (
            _accuracy_text(cell, rank) if column.unit == "%" else escape_latex(column.write(cell))
        )
        texts.append(f"{text or _NO_VALUE}{_INCOMPLETE if text and not cell.is_complete else ''}")
    return texts


def _rank_column(column: Column, cells: Sequence[Cell], rows: Sequence[_Row]) -> list[int]:
    """Rank the cells of a column; averages over other environments or datasets are ranked apart."""
    ranks = [OTHER] * len(cells)
    if not column.is_ranked:
        return ranks

    places_by_scope: dict[frozenset[str], list[int]] = {}
    for place, (table, row) in enumerate(rows):
        scope: frozenset[str] = frozenset()
        if not column.of:
            scope = frozenset(
                part.of for part in table.accuracies if table.rows[row][part].is_expected
            )
        places_by_scope.setdefault(scope, []).append(place)

    for places in places_by_scope.values():
        ranks_of_scope = rank_cells(cells[place] for place in places)
        for place, rank in zip(places, ranks_of_scope, strict=True):
            ranks[place] = rank
    return ranks


def _accuracy_text(cell: Cell, rank: int) -> str:
    """Format mean, error and label, such as the worst environment, as LaTeX."""
    if cell.mean is None:
        return ""

    text = _MARKS.get(rank, "%s") % f"{cell.mean:.1f}"
    if cell.standard_error is not None:
        text += rf" $\pm$ {cell.standard_error:.1f}"
    return f"{text} ({escape_latex(cell.label)})" if cell.label else text


def _difference_texts(rows: Sequence[_Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Format each row's difference in points, with equal weights of datasets, and its marks."""
    by_row = {
        (entry.setting, entry.selection, entry.algorithm): entry
        for entry in comparisons
        if entry.unit != PAIR and entry.measure == ACCURACY
    }
    tables = {table.setting: table for table, _ in rows}
    incomplete_rows = {
        (setting, row)
        for setting, table in tables.items()
        for row in (*table.incomplete_rows(), *table.partial_rows())
    }
    texts = []
    for table, row in rows:
        entry = by_row.get((table.setting, table.selection, row))
        if entry is None:
            texts.append(_NO_VALUE)
            continue
        marks = _CLEAR if entry.is_clear else ""
        if entry.p_holm is not None and entry.p_holm < 1 - LEVEL / 100:
            marks += _SIGNIFICANT
        if not incomplete_rows.isdisjoint(
            (table.setting, name) for name in (entry.algorithm, entry.against)
        ):
            marks += _INCOMPLETE
        texts.append(f"${entry.average_difference:+.1f}${marks}")
    return texts


def _comments(tables: Sequence[Table], comparisons: Sequence[Comparison]) -> list[str]:
    """Describe the table and its marks."""
    method = selection.METHODS[tables[0].selection].title
    datasets = dict.fromkeys(table.name for table in tables)
    error = tables[0].error
    counts = [cell.n for table in tables for cell in table.accuracy_cells if cell.n] or [0]
    trials = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))

    sentences = [
        f"{', '.join(datasets)}; {method}.",
        f"Means over {trials} trials, and their {error.title}. {error.definition}.",
        "Bold: the best of a column as printed; underlined: the second; ties are marked alike.",
        r"Needs \usepackage{booktabs}.",
    ]
    printed_columns = [column for table in tables for column in table.printed]
    sentences += columns.comparison_warnings(printed_columns)
    if any(
        not cells[column].is_complete
        for table in tables
        for cells in table.rows.values()
        for column in table.printed
    ):
        sentences.append("*: incomplete and not ranked; run carft collect to see what is missing.")
    if comparisons:
        units = [entry.unit for entry in comparisons if entry.selection == tables[0].selection]
        unit = next((name for name in units if name != PAIR), ENVIRONMENT)
        sentences += [
            rf"\Delta: minus {comparisons[0].against}, in points, over the shared trials; all "
            "datasets have the same weight, as in Avg.",
            rf"\dagger: the {LEVEL}% interval of the mean over {unit}s (Student's t) does not "
            "contain 0; not corrected for the number of rows.",
            rf"\ddagger: p < 0.05 by flipping the signs of the {unit}s' differences, corrected for "
            "the number of rows (Holm).",
        ]
    return sentences
