"""The cost of a sweep: jobs, steps, images, and hours where times are recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, parse_overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.sweep import host, preflight_file
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.states import DONE, Status
from domainbed_carft.text import table

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


class CostGroup(NamedTuple):
    """The jobs of one row of the costs: a variant's, on one dataset, of one algorithm."""

    variant: str
    dataset: str
    algorithm: str


TOTAL = CostGroup("all", "", "")


@dataclass(frozen=True)
class JobsCost:
    """Of some jobs: images trained on and evaluated, hours left; nan means unknown.

    ``memory_gb``: the most that a step of one of them takes of its device; 0 if it is unknown.
    """

    jobs: int = 0
    done: int = 0
    steps: int = 0
    trained: int = 0
    evaluated: float = 0
    hours: float = 0.0
    memory_gb: float = 0.0

    def __add__(self, other: JobsCost) -> JobsCost:
        """The cost of both together."""
        return JobsCost(
            jobs=self.jobs + other.jobs,
            done=self.done + other.done,
            steps=self.steps + other.steps,
            trained=self.trained + other.trained,
            evaluated=self.evaluated + other.evaluated,
            hours=self.hours + other.hours,
            memory_gb=max(self.memory_gb, other.memory_gb),
        )


def costs(
    statuses: Sequence[Status],
    datasets: Mapping[str, Dataset],
    skips: bool = False,
    preflight: Preflight | None = None,
) -> dict[CostGroup, JobsCost]:
    """The cost of each group of jobs, then that of all, as TOTAL; ``skips`` is as in ``job_cost``.

    Hours are by the step times in the records of the jobs of the same dataset and algorithm, or
    where there are none, by those of the sweep's rehearsal.
    """
    job_costs = [
        job_cost(status.job, datasets[status.job.key.dataset], skips) for status in statuses
    ]
    paces = _paces(statuses, job_costs)

    sums: dict[CostGroup, JobsCost] = {}
    for status, cost in zip(statuses, job_costs):
        key = status.job.key
        group = CostGroup(status.job.variant, key.dataset, key.algorithm)
        rehearsed = preflight.cost_of(*group) if preflight else None
        if status.state == DONE:
            remaining = JobsCost(done=1)
        else:
            unrecorded_pace = rehearsed.training_seconds if rehearsed else math.nan
            pace = statistics.mean(paces.get((key.dataset, key.algorithm), [unrecorded_pace]))
            memory_gb = (rehearsed.memory_gb if rehearsed else None) or 0.0
            remaining_share = max(0, cost.steps - status.step) / cost.steps
            hours = pace * cost.trained * remaining_share / 3600
            remaining = JobsCost(hours=hours, memory_gb=memory_gb)

        sums[group] = sums.get(group, JobsCost()) + cost + remaining
    return {**sums, TOTAL: sum(sums.values(), JobsCost())}


def costs_table(
    costs_by_group: Mapping[CostGroup, JobsCost], skips: bool, preflight: Preflight | None = None
) -> str:
    """The costs that ``--dry-run`` prints, with an explanation; ``preflight``: as in `costs`."""
    rows = []
    for group, cost in costs_by_group.items():
        counts = (cost.jobs, cost.done, cost.steps, cost.trained, cost.evaluated)
        memory = _figure(cost.memory_gb, 1) if cost.memory_gb else "?"
        figures = [*(_figure(count, 0) for count in counts), _figure(cost.hours, 2), memory]
        rows.append([*group, *figures])

    splits = "both splits of every environment"
    if skips:
        splits = "both splits of test environments, out-splits of the others"
    elif any(group.dataset == "ImageNet" for group in costs_by_group):
        splits += ", of ImageNet the out-split"
    source = "from step_time in the records"
    if preflight:
        source += f", where there are none from {preflight_file.NAME}, as the memory of the device"
    text = (
        f"{table(_HEAD, rows)}\n"
        f"Trained, evaluated: images; {splits}.\n"
        f"Hours: training time of one job after another, without evaluation, {source}."
    )
    if preflight and preflight.hours is not None:
        text += f"\nWith evaluation the preflight expects {preflight.hours:,.2f} hours in all."
    return text


def job_cost(job: Job, facts: Dataset, skips: bool = False) -> JobsCost:
    """Steps and images of a job; ``skips``: without the training environments' in-splits."""
    target_count = len(job.key.test_envs)
    steps = int(job.args.get("steps") or facts.steps)
    # In a step there are so many images of each environment that is trained on.
    batch_size = int(host.job_hparams(job.args)["batch_size"])
    trained = steps * batch_size * (len(facts.labels) - target_count)

    evaluated = math.nan
    if facts.images is not None:
        # As train splits them: upstream file domainbed/scripts/train.py at b93c22a.
        share = job.args["holdout_fraction"] if skips or facts.held_out else 1.0
        per_checkpoint = sum(
            count if index in job.key.test_envs else int(count * share)
            for index, count in enumerate(facts.images)
        )
        if (
            parse_overrides(job.args).get("average") == "swad"
        ):  # evaluates the loss on out-splits first
            per_checkpoint += sum(
                int(count * job.args["holdout_fraction"])
                for index, count in enumerate(facts.images)
                if index not in job.key.test_envs
            )
        checkpoint_freq = int(job.args.get("checkpoint_freq") or facts.checkpoint_freq)
        evaluated = _checkpoint_count(steps, checkpoint_freq) * per_checkpoint
    return JobsCost(jobs=1, steps=steps, trained=trained, evaluated=evaluated)


def _checkpoint_count(steps: int, checkpoint_freq: int) -> int:
    """How many checkpoints a job has: at step 0, every ``checkpoint_freq``, and at the last one."""
    last_step = steps - 1
    return last_step // checkpoint_freq + 1 + bool(last_step % checkpoint_freq)


def _paces(
    statuses: Sequence[Status], job_costs: Sequence[JobsCost]
) -> dict[tuple[str, str], list[float]]:
    """Recorded seconds per image trained on, of the jobs by dataset and algorithm."""
    paces: dict[tuple[str, str], list[float]] = {}
    for status, cost in zip(statuses, job_costs):
        record = records.read_last_record(status.job.folder) or {}
        step_seconds = record.get("step_time")
        # The first record is of the first step alone, which is slower than the others.
        if record.get("step") and isinstance(step_seconds, float):
            key = status.job.key
            pace = step_seconds * cost.steps / cost.trained
            paces.setdefault((key.dataset, key.algorithm), []).append(pace)
    return paces


def _figure(value: float, decimals: int) -> str:
    return "?" if math.isnan(value) else f"{value:,.{decimals}f}"
