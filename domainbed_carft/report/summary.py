"""What a page says first: which algorithm is best, by how much, and what was trained for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import paired, ranking, selection
from domainbed_carft.results.collect import Results
from domainbed_carft.results.tables import Row, Table
from domainbed_carft.text import quantity


def headline(results: Results, method: str, setting: str) -> list[str]:
    """Sentences on all runs of one setting by ``method``, the most important one first.

    The difference between the pair of algorithms, if they are compared, and the best averages.
    """
    tables = [
        table
        for table in results.tables
        if (table.method, table.setting) == (method, setting) and not table.one_setting
    ]
    averages = [table for table in tables if table.averages and len(table.columns) > 1]
    of_datasets = [table for table in tables if not table.averages]
    # Of several data sets the averages say it, if all are complete.
    of_setting = averages if len(of_datasets) > 1 else of_datasets
    differences = [
        entry
        for entry in results.differences
        if (entry["selection"], entry["setting"]) == (method, setting)
    ]
    return [
        *(_sentence_on_pair(entry, of_setting) for entry in differences),
        *(sentence for table in of_setting for sentence in findings(table)),
    ]


def findings(table: Table) -> list[str]:
    """The sentence on one table: which averages are the highest; none without averages."""
    return [_sentence_on_best(table)] if _has_average(table) else []


def facts(runs: Sequence[Run], method: str) -> list[tuple[str, str]]:
    """Names and values: how many jobs there are, of what, how long they trained, and how chosen."""
    algorithms = {run.job.args["algorithm"] for run in runs}
    trials = {run.job.key.trial for run in runs}
    return [
        ("Jobs", f"{len(runs):,}"),
        ("Methods", f"{len(algorithms):,}"),
        ("Trials", f"{len(trials):,}"),
        *(("Training", text) for text in _training_times(runs)),
        ("Selected by", selection.METHODS[method].title),
    ]


def _has_average(table: Table) -> bool:
    return any(row.average is not None for row in table.rows)


def _sentence_on_pair(entry: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """By how much one algorithm is better than another, and how sure that is."""
    first = entry["a"]
    second = entry["b"]
    difference = entry["mean_difference"]
    side = "more" if difference >= 0 else "less"
    text = (
        f"{first} is {abs(difference):.1f} points {side} accurate than {second} on environments "
        "left out of training"
    )

    averages = {row.algorithm: row.average for table in tables for row in table.rows}
    if averages.get(first) is not None and averages.get(second) is not None:
        text += f": {averages[first]:.1f}% against {averages[second]:.1f}%"
    if entry["low"] is None:
        return f"{text}, over {quantity(entry['pairs'], 'pair')}."

    interval = f"{paired.LEVEL}% interval {entry['low']:+.1f} to {entry['high']:+.1f}"
    includes_0 = " includes 0" if entry["low"] <= 0 <= entry["high"] else ""
    return f"{text} ({interval}{includes_0}, {quantity(entry['pairs'], 'pair')})."


def _sentence_on_best(table: Table) -> str:
    """Which rows have the highest average, and the next."""
    ranks = ranking.ranks([row.average for row in table.rows])
    best = _rows_of_rank(table, ranks, ranking.BEST)
    second = _rows_of_rank(table, ranks, ranking.SECOND)

    text = f"Highest average accuracy: {_names(best)} with {best[0].average:.1f}%"
    if second:
        text += f", then {_names(second)} with {second[0].average:.1f}%"
    return f"{text}."


def _rows_of_rank(table: Table, ranks: Sequence[int], rank: int) -> list[Row]:
    return [row for row, of_row in zip(table.rows, ranks, strict=True) if of_row == rank]


def _names(rows: Sequence[Row]) -> str:
    return " and ".join(row.algorithm for row in rows)


def _training_times(runs: Sequence[Run]) -> Iterator[str]:
    """Hours on each device that trained all of the runs' jobs, if the records have them."""
    hours: dict[str, list[float]] = {}
    for run in runs:
        if run.cost.training_hours is not None:
            hours.setdefault(run.cost.device, []).append(run.cost.training_hours)
    for device, hours_of_runs in hours.items():
        if len(hours_of_runs) == len(runs):
            yield f"{_duration(math.fsum(hours_of_runs))} on {device}"


def _duration(hours: float) -> str:
    """Hours, or minutes where there is less than one."""
    return f"{hours:.2g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
