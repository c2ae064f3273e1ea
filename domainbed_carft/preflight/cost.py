"""What a sweep will cost, from the speeds that were measured: hours, on one card and several."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from domainbed_carft.doctor import Finding
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.preflight.recipes import Recipe
from domainbed_carft.preflight.rows import passed_row, skipped_row
from domainbed_carft.preflight.speed import SECTION, StepSpeed
from domainbed_carft.sweep import costs
from domainbed_carft.sweep.preflight_file import JobCost
from domainbed_carft.text import quantity

CARD_COUNTS = (1, 2, 4, 8)
_HOUR = 3600


@dataclass
class Measurements:
    """All speeds of a rehearsal: of each data set's loaders, and of each recipe by its label.

    ``loading``: pictures a second, by the data set. ``peak_memory`` and ``weights``: bytes, by the
    label.
    """

    loading: dict[str, float] = field(default_factory=dict)
    steps: dict[str, StepSpeed] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)


def training_seconds(speed: StepSpeed, measured_on: float, loading: float) -> float:
    """Seconds for each picture that is trained on.

    The slower of loading and steps counts, and by how much both together were slower than it on the
    data set on which they were measured. ``measured_on`` and ``loading``: pictures a second that
    the loaders of that data set and of the job's deliver.
    """
    overlap = min(speed.steps, measured_on) / speed.with_loading
    return max(1.0, overlap) / min(speed.steps, loading)


def evaluation_seconds(speed: StepSpeed, loading: float) -> float:
    """Seconds for each picture that is evaluated: the slower of loading and predictions counts."""
    return 1 / min(speed.predictions, loading)


def job_costs(recipes: Sequence[Recipe], measurements: Measurements) -> list[JobCost]:
    """The measured cost of each row of the sweep's costs, as far as it was measured."""
    job_costs = []
    for recipe in recipes:
        speed = measurements.steps.get(recipe.label)
        measured_on = measurements.loading.get(recipe.job.key.dataset)
        if speed is None or measured_on is None:
            continue

        for variant, dataset, algorithm in recipe.rows:
            loading = measurements.loading.get(dataset, measured_on)
            cost = JobCost(
                variant=variant,
                dataset=dataset,
                algorithm=algorithm,
                training_seconds=training_seconds(speed, measured_on, loading),
                evaluation_seconds=evaluation_seconds(speed, loading),
                memory_gb=measurements.peak_memory[recipe.label] / 1e9,
            )
            job_costs.append(cost)
    return job_costs


def hours_of_jobs(
    jobs: Sequence[Job],
    measured: Sequence[JobCost],
    datasets: Mapping[str, Dataset],
    skips_training_in_splits: bool,
) -> list[float]:
    """Hours of each job with its evaluations; nan where nothing was measured.

    The training environments' in-splits are not evaluated if ``skips_training_in_splits``.
    """
    cost_of_row = {(cost.variant, cost.dataset, cost.algorithm): cost for cost in measured}
    hours = []
    for job in jobs:
        row = (job.variant, job.key.dataset, job.key.algorithm)
        cost = costs.job_cost(job, datasets[job.key.dataset], skips_training_in_splits)
        per_picture = cost_of_row.get(row)
        if per_picture is None:
            hours.append(math.nan)
            continue
        evaluation = (per_picture.evaluation_seconds or 0) * cost.evaluated
        seconds = per_picture.training_seconds * cost.trained + evaluation
        hours.append(seconds / _HOUR)
    return hours


def hours_on_cards(hours: Sequence[float], cards: int) -> float:
    """Hours until all jobs are done, each started where a card is free, in their order."""
    free_at = [0.0] * cards
    for job_hours in hours:
        heapq.heappush(free_at, heapq.heappop(free_at) + job_hours)
    return max(free_at)


def cost_rows(jobs: Sequence[Job], hours: Sequence[float], cards_here: int) -> Iterator[Finding]:
    """The hours of the jobs of each data set, and of the sweep on one card or several."""
    if all(map(math.isnan, hours)):
        yield skipped_row(SECTION, "hours", "no speed was measured")
        return

    hours_by_dataset: dict[str, list[float]] = {}
    for job, job_hours in zip(jobs, hours):
        hours_by_dataset.setdefault(job.key.dataset, []).append(job_hours)
    for dataset, of_jobs in hours_by_dataset.items():
        longest = max(of_jobs)
        detail = f"{quantity(len(of_jobs), 'job')}, the longest {_hours(longest)}"
        name = f"hours on {dataset}"
        in_all = math.fsum(of_jobs)
        figures = {"longest": _json_number(longest), "in_all": _json_number(in_all)}
        yield passed_row(SECTION, name, f"{detail}, in all {_hours(in_all)}", **figures)

    counts = sorted({*CARD_COUNTS, max(1, cards_here)})
    on_cards = {cards: hours_on_cards(hours, cards) for cards in counts}
    listing = ", ".join(f"{_hours(value)} on {count}" for count, value in on_cards.items())
    detail = f"{quantity(len(jobs), 'job')} with their evaluations: {listing} such devices"
    by_count = {str(count): _json_number(value) for count, value in on_cards.items()}
    yield passed_row(SECTION, "hours of the sweep", detail, hours=by_count)


def _json_number(value: float) -> float | None:
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else value


def _hours(value: float) -> str:
    """Hours, or minutes where there are fewer than one."""
    if math.isnan(value):
        return "an unknown time"
    return f"{value:,.1f} h" if value >= 1 else f"{60 * value:,.1f} min"
