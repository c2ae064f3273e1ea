"""The rehearsal of a planned launch: all of its rows, in order, and the file that they become."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

from domainbed_carft import machine, process_variables
from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError, is_out_of_memory
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.launchers import pool
from domainbed_carft.machine import devices
from domainbed_carft.preflight import steps, zero_shot_gate
from domainbed_carft.preflight.recipes import Recipe, clip_of, recipes_of, zero_shot_jobs
from domainbed_carft.sweep import costs, host, preflight_file
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.sweep.launch import LaunchPlan
from domainbed_carft.sweep.preflight_file import JobCost, Preflight, PreflightRow
from domainbed_carft.text import quantity
from domainbed_carft.version import __version__

if TYPE_CHECKING:
    from domainbed.lib.training import Trainer

WEIGHTS_AND_DATA = "weights and data"
ONE_STEP = "one step"
HOURS = "hours"

_GET_DATA = "carft data verify says more; carft data download or copy the set"
_NEED_LESS_MEMORY = (
    "set the hparam micro_batch, which gives the same gradients, or checkpoint_blocks; or take a "
    "smaller batch_size or a larger card"
)
_FIX_LOSS = "set amp to 'off' or a lower lr; a job would diverge at its first step"


def rehearse(plan: LaunchPlan, report: Callable[[PreflightRow], None]) -> Preflight:
    """Rehearse a sweep in this process; ``report`` is called with each row as soon as it is made.

    Meanwhile this process has the variables of a job.
    """
    rows: list[PreflightRow] = []
    plan.output.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.dict(os.environ),  # at the end it is as before
        tempfile.TemporaryDirectory(dir=plan.output, prefix=".preflight-") as folder,
    ):
        rehearsal = _Rehearsal(plan, [*plan.jobs, *plan.waiting_jobs], Path(folder))
        take_slot(plan, len(rehearsal.jobs))
        for row in rehearsal.rows():
            rows.append(row)
            report(row)

    hours = math.fsum(rehearsal.hours)
    has_gpu = devices.is_gpu(devices.default_device())
    return Preflight(
        carft=__version__,
        sweep=plan.declaration.name,
        declaration=preflight_file.digest(plan.declaration.text),
        written=time.time(),
        host=socket.gethostname(),
        device=devices.gpu_facts().name if has_gpu else machine.processor_name(),
        hours=hours if rehearsal.hours and math.isfinite(hours) else None,
        rows=rows,
        costs=rehearsal.job_costs,
    )


@dataclass
class _Rehearsal:
    """What is known of a sweep so far.

    ``loading``: dataset -> the images/s of its loaders; ``hours``: of each job.
    """

    plan: LaunchPlan
    jobs: Sequence[Job]
    folder: Path
    loading: dict[str, float] = field(default_factory=dict)
    job_costs: list[JobCost] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.datasets: dict[str, Dataset] = dict(self.plan.declaration.facts)

    def rows(self) -> Iterator[PreflightRow]:
        """Make the rows, in the order in which they are printed."""
        yield from map(verdict_row, self.plan.verdicts)
        if not host.skips_in_splits():
            reason = "this domainbed has its own train; start where no checkout is found"
            yield PreflightRow(ONE_STEP, "rehearsal", "skipped", reason)
            return

        failed = {verdict.dataset for verdict in self.plan.verdicts if _problem_of(verdict)}
        whole = [job for job in self.jobs if not failed & {"", job.key.dataset}]
        for clip in filter(None, dict.fromkeys(map(clip_of, whole))):
            for row in guarded(WEIGHTS_AND_DATA, f"CLIP {clip}", partial(weights_rows, clip)):
                yield row
                failed |= {clip} if row.state == "failure" else set()

        for name in dict.fromkeys(job.key.dataset for job in self.jobs):
            jobs = [job for job in self.jobs if job.key.dataset == name]
            if failed & {"", name, *map(clip_of, jobs)}:
                reason = "its data or its CLIP has a failure above"
                yield PreflightRow(zero_shot_gate.SECTION, name, "skipped", reason)
            else:
                part = partial(self._dataset_rows, name, jobs)
                yield from guarded(zero_shot_gate.SECTION, name, part)
        for recipe in recipes_of(self.jobs, self.datasets):
            if recipe.job.key.dataset in self.loading:
                yield from guarded(ONE_STEP, recipe.label, partial(self._recipe_rows, recipe))
            else:
                reason = f"{recipe.job.key.dataset} has a failure above"
                yield PreflightRow(ONE_STEP, recipe.label, "skipped", reason)
        yield from self._hours_rows()

    def _dataset_rows(self, name: str, jobs: Sequence[Job]) -> Iterator[PreflightRow]:
        """The zero-shot accuracies on a dataset; then the speed of its loaders is measured."""
        targets = range(len(self.datasets[name].labels))
        for job in zero_shot_jobs(jobs):
            yield zero_shot_gate.gate_row(self._prepare(job, targets))

        trainer = self._prepare(jobs[0])
        sizes = tuple(map(len, trainer.dataset))
        self.datasets[name] = replace(self.datasets[name], images=sizes)
        self.loading[name] = steps.measure_loading(trainer)

    def _recipe_rows(self, recipe: Recipe) -> Iterator[PreflightRow]:
        """The row on a step of a recipe; keeps what its jobs cost."""
        total = steps.total_memory()
        try:
            measures = steps.measure_steps(self._prepare(recipe.job))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = f"a step does not fit into the memory of {total / 1e9:.1f} GB"
            yield PreflightRow(ONE_STEP, recipe.label, "failure", found, _NEED_LESS_MEMORY)
            return

        found = (
            f"loss {measures.loss:.4f}, {measures.peak_memory / 1e9:.2f} GB at most, of "
            f"{total / 1e9:.1f} GB"
        )
        if not math.isfinite(measures.loss):
            yield PreflightRow(ONE_STEP, recipe.label, "failure", found, _FIX_LOSS)
            return
        yield PreflightRow(ONE_STEP, recipe.label, "pass", found)

        measured_on = self.loading[recipe.job.key.dataset]
        for variant, dataset, algorithm in recipe.rows:
            loading = self.loading.get(dataset, measured_on)
            cost = JobCost(
                variant=variant,
                dataset=dataset,
                algorithm=algorithm,
                training_seconds=measures.training_seconds(measured_on, loading),
                evaluation_seconds=measures.evaluation_seconds(loading),
                memory_gb=measures.peak_memory / 1e9,
            )
            self.job_costs.append(cost)

    def _hours_rows(self) -> Iterator[PreflightRow]:
        skips = bool(self.plan.skips_training_in_splits)
        self.hours = hours_of_jobs(self.jobs, self.job_costs, self.datasets, skips)
        for dataset in dict.fromkeys(job.key.dataset for job in self.jobs):
            hours = [
                value for job, value in zip(self.jobs, self.hours) if job.key.dataset == dataset
            ]
            yield hours_row(f"on {dataset}", hours)
        yield hours_row("of the sweep", self.hours)

    def _prepare(self, job: Job, targets: Sequence[int] | None = None) -> Trainer:
        return steps.prepare(job, self.plan.variables(job), self.folder, targets)


def guarded(
    section: str, name: str, part: Callable[[], Iterator[PreflightRow]]
) -> Iterator[PreflightRow]:
    """The rows of a part as they come, and a failed one if it raises an error.

    Warnings inside are not printed: what matters of them is in the rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from part()
    except CarftError as error:
        found = " ".join(str(error).split())
        yield PreflightRow(section, name, "failure", found, "fix it; a job would stop here")
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        remedy = "a job would stop here, too: report this error"
        yield PreflightRow(section, name, "failure", found, remedy)


def _problem_of(verdict: DataVerdict) -> str | None:
    return verdict.broken or verdict.missing


def verdict_row(verdict: DataVerdict) -> PreflightRow:
    """The row of a dataset: its edition, or why jobs would refuse it."""
    name = f"data {verdict.dataset}".rstrip()
    problem = _problem_of(verdict)
    if problem:
        return PreflightRow(WEIGHTS_AND_DATA, name, "failure", problem, _GET_DATA)
    description = verdict.description.removeprefix(f"{verdict.dataset}: ")
    return PreflightRow(WEIGHTS_AND_DATA, name, "pass", description)


def weights_rows(clip: str) -> Iterator[PreflightRow]:
    """The digest of a CLIP, which is downloaded if it is not here. CarftError if it is another."""
    digest = backbone.find_clip_facts(clip, backbone.find_preprocessing(clip)).digest
    is_published = clip in openai.PUBLISHED
    published = ", as published" if is_published else "; nothing is published to compare with"
    yield PreflightRow(WEIGHTS_AND_DATA, f"CLIP {clip}", "pass", f"SHA-256 {digest}{published}")


def hours_of_jobs(
    jobs: Sequence[Job],
    measured: Sequence[JobCost],
    datasets: dict[str, Dataset],
    skips_training_in_splits: bool,
) -> list[float]:
    """Hours of each job with its evaluations; nan where nothing was measured.

    The training environments' in-splits are not evaluated if ``skips_training_in_splits``.
    """
    cost_of_row = {(cost.variant, cost.dataset, cost.algorithm): cost for cost in measured}
    hours = []
    for job in jobs:
        of_image = cost_of_row.get((job.variant, job.key.dataset, job.key.algorithm))
        seconds = math.nan
        if of_image:
            cost = costs.job_cost(job, datasets[job.key.dataset], skips_training_in_splits)
            training = of_image.training_seconds * cost.trained
            seconds = training + of_image.evaluation_seconds * cost.evaluated
        hours.append(seconds / 3600)
    return hours


def hours_row(name: str, hours: Sequence[float]) -> PreflightRow:
    """The hours of some jobs, one after another, with their evaluations."""
    if any(map(math.isnan, hours)):
        return PreflightRow(HOURS, name, "skipped", "not all of its jobs were measured")
    found = f"{quantity(len(hours), 'job')}, the longest {max(hours):,.2f} h, in all "
    return PreflightRow(HOURS, name, "pass", f"{found}{math.fsum(hours):,.2f} h")


def take_slot(plan: LaunchPlan, job_count: int) -> None:
    """Compute in this process with the share of the cores that a job of the plan would get."""
    if not isinstance(plan.launcher, pool.Pool) or process_variables.CORES.read():
        return
    variables = plan.launcher.slots(job_count)[0]
    variables.pop("CUDA_VISIBLE_DEVICES", None)  # torch may have looked at all cards
    os.environ.update(variables)

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads):  # torch has read it when it was imported
        torch.set_num_threads(int(threads))
