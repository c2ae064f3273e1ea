"""Sentences on the results of a table, for the page of a report and for the demo."""

from __future__ import annotations

import math
from collections.abc import Sequence

from domainbed_carft.results import selection
from domainbed_carft.results.cells import BEST, SECOND, Cell
from domainbed_carft.results.columns import AVERAGE, COLUMNS
from domainbed_carft.results.comparisons import ACCURACY, LEVEL, PAIR, Comparison, p_text
from domainbed_carft.results.tables import Table

# The algorithms whose difference the first sentences describe
FEATURED = "CARFT"
BASELINE = "CLIPFineTune"  # unless another one is requested


def describe_setting(tables: Sequence[Table], differences: Sequence[Comparison]) -> list[str]:
    """Describe the averages over several datasets, or the only dataset, in sentences.

    Args:
        tables: the tables of one setting.
        differences: the differences of all rows from one of them, by unit.
    """
    datasets = [table for table in tables if not table.averages]
    if len(datasets) > 1:
        datasets = [table for table in tables if table.averages]
    return [sentence for table in datasets for sentence in describe_table(table, differences)]


def describe_table(table: Table, differences: Sequence[Comparison] = ()) -> list[str]:
    """Describe the difference of FEATURED in the table's setting, and the highest averages."""
    differences = [
        entry
        for entry in differences
        if (entry.setting, entry.measure) == (table.setting, ACCURACY)
        and selection.METHODS[entry.selection].holds_out
    ]
    n_tests = len({entry.algorithm for entry in differences if entry.p is not None})
    by_unit = {entry.unit: entry for entry in differences if entry.algorithm == FEATURED}
    by_pair = by_unit.pop(PAIR, None)
    sentences = []
    for entry in by_unit.values():  # of the unit environment or trial
        difference, source = _get_difference(entry, table)
        has_interval = entry.low is not None and entry.trials > 1 and _is_mean(entry, difference)
        interval = f" ({_describe_interval(entry)})" if has_interval else ""
        sentences.append(
            f"{entry.algorithm} minus {entry.against} on held-out environments: "
            f"{difference:+.1f} points{interval}, {source}."
        )
        uncertainty = _describe_uncertainty(difference, entry, by_pair, n_tests)
        sentences += [uncertainty] if uncertainty else []
    return [*sentences, *_describe_highest_averages(table)]


def _describe_highest_averages(table: Table) -> list[str]:
    """Return a sentence on the two highest averages, or nothing if all are incomplete."""
    averages = table.get_column(AVERAGE)
    ranks = table.get_ranks(COLUMNS[AVERAGE])
    rows_by_rank = [[row for row in averages if ranks[row] == rank] for rank in (BEST, SECOND)]
    leaders = [
        f"{' and '.join(rows)} with {averages[rows[0]].mean:.1f}%" for rows in rows_by_rank if rows
    ]
    return [f"Highest average accuracy: {', then '.join(leaders)}."] if leaders else []


def _get_difference(entry: Comparison, table: Table) -> tuple[float, str]:
    """Return the difference of the averages in the table, and the words that show them.

    If one of them is incomplete, the difference is over the trials that both rows have.
    """
    averages = table.get_column(AVERAGE)
    cells = [averages.get(row, Cell()) for row in (entry.algorithm, entry.against)]
    means = [cell.mean for cell in cells if cell.is_complete and cell.mean is not None]
    if len(means) < len(cells):
        return entry.average_difference, "over the trials that both have"
    return means[0] - means[1], f"{means[0]:.1f}% against {means[1]:.1f}%"


def _is_mean(entry: Comparison, difference: float) -> bool:
    """Return True if a difference of averages gives all units of the comparison equal weight."""
    return math.isclose(entry.mean_difference, difference, abs_tol=1e-9)


def _describe_interval(entry: Comparison) -> str:
    return f"{LEVEL}% interval over {_count_units(entry)} {entry.interval_text(digits=1)}"


def _count_units(entry: Comparison) -> str:
    return f"{entry.n} {entry.unit}s"


def _describe_uncertainty(
    difference: float, by_unit: Comparison, by_pair: Comparison | None, n_tests: int
) -> str:
    """Describe what the first sentence lacks: further intervals, and the corrected p-values."""
    if by_unit.trials == 1:
        return "Both share one trial, too few for an interval: other trials can differ."
    if by_pair and by_pair.n <= by_unit.n:
        by_pair = None

    sentences = []
    if by_unit.low is None:
        sentences.append(
            f"With one {by_unit.unit} there is no {LEVEL}% interval over {by_unit.unit}s."
        )
    elif not _is_mean(by_unit, difference):
        sentences.append(
            "Over the trials that both have, with the same weight for all "
            f"{_count_units(by_unit)}, it is {by_unit.mean_difference:+.1f} points, with a "
            f"{LEVEL}% interval of {by_unit.interval_text(digits=1)}."
        )
    if by_pair:
        sentences.append(
            f"Over {by_pair.n} pairs of runs the interval is {by_pair.interval_text(digits=1)}, "
            "which is optimistic, because pairs of the same environment share test images."
        )
    return " ".join([*sentences, *_describe_p_values(by_unit, by_pair, n_tests)])


def _describe_p_values(by_unit: Comparison, by_pair: Comparison | None, n_tests: int) -> list[str]:
    """Return a sentence with Holm's p-values, or nothing if there are too few pairs for them."""
    entries = [by_unit, *([by_pair] if by_pair else [])]
    p_values = " and ".join(
        f"{p_text(entry.p_holm)} over {_count_units(entry)}"
        for entry in entries
        if entry.p_holm is not None and entry.n > 1
    )
    if not p_values:
        return []
    subject = "By sign flips, p is"
    if n_tests > 1:
        subject = f"Corrected for the {n_tests} comparisons with {by_unit.against} (Holm), p is"
    return [f"{subject} {p_values}."]
