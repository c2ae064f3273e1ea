"""Estimate the cost of a sweep: jobs, steps, images, and hours if times are recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from domainbed_carft.jobs import records
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.job import Job, parse_overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.sweep import host, preflight_file
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.states import DONE, Status
from domainbed_carft.text_tables import table

_HEAD = (
    "variant",
    "dataset",
    "algorithm",
    "jobs",
    "done",
    "steps",
    "trained",
    "evaluated",
    "hours left",
    "memory GB",
)


# A row of the costs: all jobs of a variant, dataset and algorithm.
CostRow = tuple[str, str, str]

TOTAL: CostRow = ("all", "", "")


def estimate(
    statuses: Sequence[Status],
    datasets: Mapping[str, Dataset],
    skips: bool = False,
    preflight: Preflight | None = None,
) -> dict[CostRow, Cost]:
    """Estimate the cost of each row of jobs, and of all jobs as TOTAL.

    Hours follow from the step times in the records of jobs with the same dataset and algorithm. If
    there are no such records, they follow from the step times of the sweep's preflight.
    """
    job_costs = [
        estimate_job_cost(status.job, datasets[status.job.key.dataset], skips)
        for status in statuses
    ]
    paces = _read_paces(statuses, job_costs)

    costs_by_row: dict[CostRow, list[Cost]] = {}
    for status, cost in zip(statuses, job_costs):
        key = status.job.key
        row = (status.job.variant, key.dataset, key.algorithm)
        measured = preflight.get_cost(*row) if preflight else None
        if status.state == DONE:
            cost = replace(cost, done=1, training_hours=0.0)
        else:
            preflight_pace = math.nan
            if measured and measured.trained:
                preflight_pace = 3600 * (measured.training_hours or 0.0) / measured.trained
            pace = statistics.mean(paces.get((key.dataset, key.algorithm), [preflight_pace]))
            remaining_share = max(0, cost.steps - status.step) / cost.steps
            cost = replace(
                cost,
                training_hours=pace * cost.trained * remaining_share / 3600,
                memory_gb=measured.memory_gb if measured else None,
            )
        costs_by_row.setdefault(row, []).append(cost)

    sums = {row: add(row_costs) for row, row_costs in costs_by_row.items()}
    return {**sums, TOTAL: add(list(sums.values()))}


def add(job_costs: Sequence[Cost]) -> Cost:
    """Add estimated costs; the memory is that of the largest step."""
    memory_gb = [cost.memory_gb for cost in job_costs if cost.memory_gb]
    return Cost(
        jobs=sum(cost.jobs for cost in job_costs),
        done=sum(cost.done for cost in job_costs),
        steps=sum(cost.steps for cost in job_costs),
        trained=sum(cost.trained for cost in job_costs),
        evaluated=sum(cost.evaluated for cost in job_costs),
        training_hours=sum(cost.training_hours or 0.0 for cost in job_costs),
        evaluation_hours=sum(cost.evaluation_hours or 0.0 for cost in job_costs),
        memory_gb=max(memory_gb, default=None),
    )


def format_table(
    costs_by_row: Mapping[CostRow, Cost], skips: bool, preflight: Preflight | None = None
) -> str:
    """Return the table of costs that ``--dry-run`` prints, and its explanation."""
    rows = []
    for row, cost in costs_by_row.items():
        counts = (cost.jobs, cost.done, cost.steps, cost.trained, cost.evaluated)
        memory = _format_number(cost.memory_gb, 1) if cost.memory_gb else "?"
        hours = _format_number(cost.training_hours or 0.0, 2)
        numbers = [*(_format_number(count, 0) for count in counts), hours, memory]
        rows.append([*row, *numbers])

    splits = "both splits of every environment"
    if skips:
        splits = "both splits of test environments, out-splits of the others"
    elif any(dataset == "ImageNet" for _, dataset, _ in costs_by_row):
        splits += "; for ImageNet only the out-split"
    total = costs_by_row[TOTAL]
    lines = [table(_HEAD, rows)]
    if math.isnan(total.evaluated):
        lines.append("Trained: images.")
    else:
        lines.append(f"Trained, evaluated: images; {splits}.")
    if math.isnan(total.training_hours or 0.0):
        lines.append("Hours are estimated once a job has records, or after carft preflight.")
    else:
        source = "from step_time in the records"
        if preflight:
            source += f" or, if there are none, from {preflight_file.NAME}"
        lines.append(
            f"Hours: training time of one job after another, without evaluation, {source}."
        )
    text = "\n".join(lines)
    if preflight:
        text += f"\nMemory: device memory of the largest step, from {preflight_file.NAME}."
    if preflight and preflight.hours is not None:
        text += f"\nWith evaluation the preflight expects {preflight.hours:,.2f} hours in all."
    return text


def estimate_job_cost(job: Job, facts: Dataset, skips: bool = False) -> Cost:
    """Count the steps and images of a job; ``skips`` omits the training environments' in-splits."""
    target_count = len(job.key.test_envs)
    steps = int(job.args.get("steps") or facts.steps)
    # The batch size counts the images of each training environment in a step.
    batch_size = int(host.get_job_hparams(job.args)["batch_size"])
    trained = steps * batch_size * (len(facts.labels) - target_count)

    evaluated = math.nan
    if facts.images is not None:
        # Split as in upstream file domainbed/scripts/train.py at b93c22a.
        share = job.args["holdout_fraction"] if skips or facts.held_out else 1.0
        per_checkpoint = sum(
            count if index in job.key.test_envs else int(count * share)
            for index, count in enumerate(facts.images)
        )
        if (
            parse_overrides(job.args).get("average") == "swad"
        ):  # also evaluates the loss on out-splits
            per_checkpoint += sum(
                int(count * job.args["holdout_fraction"])
                for index, count in enumerate(facts.images)
                if index not in job.key.test_envs
            )
        checkpoint_freq = int(job.args.get("checkpoint_freq") or facts.checkpoint_freq)
        evaluated = _count_checkpoints(steps, checkpoint_freq) * per_checkpoint
    return Cost(steps=steps, trained=trained, evaluated=evaluated)


def _count_checkpoints(steps: int, checkpoint_freq: int) -> int:
    """Count checkpoints: at step 0, every ``checkpoint_freq`` steps, and at the last step."""
    last_step = steps - 1
    return last_step // checkpoint_freq + 1 + bool(last_step % checkpoint_freq)


def _read_paces(
    statuses: Sequence[Status], job_costs: Sequence[Cost]
) -> dict[tuple[str, str], list[float]]:
    """Return recorded training seconds per image, by dataset and algorithm."""
    paces: dict[tuple[str, str], list[float]] = {}
    for status, cost in zip(statuses, job_costs):
        record = records.read_last_record(status.job.folder) or {}
        step_seconds = record.get("step_time")
        # The first record times only the first step, which is slower than the others.
        if record.get("step") and isinstance(step_seconds, float):
            key = status.job.key
            pace = step_seconds * cost.steps / cost.trained
            paces.setdefault((key.dataset, key.algorithm), []).append(pace)
    return paces


def _format_number(value: float, decimals: int) -> str:
    return "?" if math.isnan(value) else f"{value:,.{decimals}f}"
