"""What a page says first: which algorithm is best, by how much, and what was trained for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import against_one, ranking, selection
from domainbed_carft.results.against_one import Comparison
from domainbed_carft.results.collect import Results
from domainbed_carft.results.tables import Row, Table


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
    of_unit = {
        entry.unit: entry
        for entry in results.differences
        if (entry.selection, entry.setting) == (method, setting)
    }
    sentences = []
    if of_unit:
        by_environment = of_unit[against_one.ENVIRONMENT]
        sentences.append(_sentence_on_difference(by_environment, of_setting))
        sentences.append(_sentences_on_intervals(by_environment, of_unit[against_one.PAIR]))
    return [*sentences, *(text for table in of_setting for text in findings(table))]


def findings(table: Table) -> list[str]:
    """The sentence on one table: which averages are the highest; none without averages."""
    return [_sentence_on_best(table)] if _has_average(table) else []


def facts(runs: Sequence[Run], method: str) -> list[tuple[str, str]]:
    """Names and values: how many jobs there are, of what, how long they trained, and how chosen."""
    algorithms = {run.algorithm for run in runs}
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


def _sentence_on_difference(entry: Comparison, tables: Sequence[Table]) -> str:
    """By how much one algorithm is better than another, on average over the environments."""
    side = "more" if entry.mean_difference >= 0 else "less"
    text = (
        f"{entry.algorithm} is {abs(entry.mean_difference):.1f} points {side} accurate than "
        f"{entry.against} on environments left out of training"
    )

    averages = {row.algorithm: row.average for table in tables for row in table.rows}
    first = averages.get(entry.algorithm)
    second = averages.get(entry.against)
    if first is not None and second is not None:
        text += f": {first:.1f}% against {second:.1f}%"
    return f"{text}."


def _sentences_on_intervals(by_environment: Comparison, by_pair: Comparison) -> str:
    """How sure the difference is, by environments, and how sure it seems by pairs."""
    interval = f"{against_one.LEVEL}% interval"
    count = by_environment.n
    text = f"With one environment there is no {interval} over environments."
    if by_environment.low is not None:
        includes_0 = "" if by_environment.is_clear else ", which includes 0"
        values = by_environment.interval_text(digits=1)
        text = f"Its {interval} over {count} environments is {values}{includes_0}."

    if by_pair.n > count:
        text += (
            f" Over {by_pair.n} pairs of runs it is {by_pair.interval_text(digits=1)}, which is "
            "optimistic: pairs of an environment share test pictures."
        )
    return text


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
