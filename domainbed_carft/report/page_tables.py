"""The tables of a page, and what explains all of them."""

from __future__ import annotations

from collections.abc import Sequence

from domainbed_carft.results import (
    against_one,
    choices,
    document,
    measures,
    power,
    published,
    ranking,
    suites,
)
from domainbed_carft.results.against_one import Comparison
from domainbed_carft.results.cells import DOMAINBED
from domainbed_carft.results.collect import Results
from domainbed_carft.results.columns import ENVIRONMENTS
from domainbed_carft.results.document import Grid
from domainbed_carft.results.tables import Table


def grid(table: Table) -> Grid:
    """The table's texts; of cells of one trial, which have no error, a note says so instead."""
    if any(cell.n > 1 for row in table.rows for cell in row.cells):
        return document.table_grid(table)

    rows = [
        row._replace(
            shown=[
                cell._replace(n=0) if column.name == ENVIRONMENTS else cell
                for column, cell in zip(table.shown, row.shown, strict=True)
            ]
        )
        for row in table.rows
    ]
    texts = document.table_grid(table._replace(rows=rows))
    return texts._replace(notes=[*texts.notes, "Each cell is of one trial, so it has no error."])


def ranks(table: Table) -> list[list[int]]:
    """For each row the ranks of its cells in their columns, of accuracies only."""
    ranks_of_columns = []
    for number, column in enumerate(table.shown):
        is_ranked = ranking.is_ranked(column)
        means = [row.shown[number].mean if is_ranked else None for row in table.rows]
        ranks_of_columns.append(ranking.ranks(means))
    return [list(row_ranks) for row_ranks in zip(*ranks_of_columns, strict=True)]


def grids_below(table: Table, all_tables: Sequence[Table]) -> list[Grid]:
    """Tables below a table: of the values that its search chose, and of one setting for all."""
    grids = [
        document.table_grid(candidate)
        for candidate in all_tables
        if candidate.one_setting and candidate.dataset == table.dataset
    ]
    chosen = choices.grid(table)
    return [chosen, *grids] if chosen else grids


def grids_of_comparisons(results: Results, pair: Sequence[Comparison], method: str) -> list[Grid]:
    """The tables of paired differences by ``method``: of the pair, against one, and power."""
    against = [entry for entry in results.comparisons_against if entry.selection == method]
    powers = [entry for entry in results.powers if entry.selection == method]
    return [*against_one.grids(pair), *against_one.grids(against), *power.grids(powers)]


def grids_of_published(results: Results, method: str) -> list[Grid]:
    """Tables beside published figures: of each group, if its data sets have any, and of suites."""
    grids = []
    datasets = {run.dataset for run in results.collection.runs}
    if not datasets.isdisjoint(figure["dataset"] for figure in published.figures()):
        for comparison in results.comparisons:
            entries = [entry for entry in comparison.entries if entry["selection"] == method]
            grids.append(published.grid(entries, comparison.remarks))
    return grids + suites.grids_with_published(results.suite_scores)


def captions(results: Results, pair: Sequence[Comparison]) -> dict[str, Sequence[str]]:
    """The paragraphs that explain the tables, by kind of table."""
    error = results.tables[0].error if results.tables else DOMAINBED
    columns = [column for table in results.tables for column in table.shown]
    table_captions = [
        *document.caption(error),
        *document.remarks(results.collection.runs),
        *measures.explanations(columns),
    ]
    if any(choices.grid(table) for table in results.tables):
        table_captions += choices.CAPTION
    if results.suite_scores:
        table_captions.append(suites.caption(error))

    comparison_captions: list[str] = []
    if pair or results.comparisons_against:
        comparison_captions += against_one.CAPTION
    if results.powers:
        comparison_captions += power.CAPTION
    return {
        "tables": table_captions,
        "paired": comparison_captions,
        "published": published.CAPTION,
    }
