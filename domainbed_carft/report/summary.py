"""What a page says first: which algorithm is best, by how much, and what was trained for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import paired, ranking
from domainbed_carft.results.collect import Results
from domainbed_carft.results.tables import Table
from domainbed_carft.text import quantity


def sentences(results: Results, method: str) -> list[str]:
    """A sentence for each table by ``method``, for each paired difference, and on the jobs."""
    tables = [
        table
        for table in results.tables
        if table.method == method and not (table.averages or table.one_setting)
    ]
    differences = [entry for entry in results.differences if entry["selection"] == method]
    return [
        *(_sentence_on_best(table) for table in tables if _has_average(table)),
        *(paired.sentence(entry) for entry in differences),
        *_sentences_on_jobs(results.collection.runs),
    ]


def _has_average(table: Table) -> bool:
    return any(row.average is not None for row in table.rows)


def _sentence_on_best(table: Table) -> str:
    """Which rows have the highest average, and the next."""
    ranks = ranking.ranks([row.average for row in table.rows])
    phrases = []
    for rank in (ranking.BEST, ranking.SECOND):
        rows = [row for row, of_row in zip(table.rows, ranks, strict=True) if of_row == rank]
        if rows:
            names = " and ".join(row.algorithm for row in rows)
            phrases.append(f"{names} with {rows[0].average:.1f}")

    place = "; ".join(filter(None, [table.dataset_title, table.setting]))
    return f"Highest average on {place}: {', then '.join(phrases)}."


def _sentences_on_jobs(runs: Sequence[Run]) -> Iterator[str]:
    """How many jobs, methods and trials there are, and how long they trained on each device."""
    algorithms = {run.job.args["algorithm"] for run in runs}
    trials = {run.job.key.trial for run in runs}
    methods = quantity(len(algorithms), "method")
    yield f"{quantity(len(runs), 'job')} of {methods} in {quantity(len(trials), 'trial')}."

    hours: dict[str, list[float]] = {}
    for run in runs:
        if run.cost.training_hours is not None:
            hours.setdefault(run.cost.device, []).append(run.cost.training_hours)
    for device, hours_of_runs in hours.items():
        if len(hours_of_runs) == len(runs):
            yield f"Training took {math.fsum(hours_of_runs):.2g} hours on {device}."
