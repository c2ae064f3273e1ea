"""Run the preflight of a planned launch, row by row."""

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
from domainbed_carft.preflight.recipes import Recipe, get_clip, group_into_recipes, zero_shot_jobs
from domainbed_carft.sweep import costs, host, preflight_file
from domainbed_carft.sweep.data_checks import DataCheck
from domainbed_carft.sweep.launch import LaunchPlan
from domainbed_carft.sweep.preflight_file import ImageCost, Preflight, PreflightRow
from domainbed_carft.text import quantity
from domainbed_carft.version import __version__

if TYPE_CHECKING:
    from domainbed.lib.training import Trainer

WEIGHTS_AND_DATA = "weights and data"
ONE_STEP = "one step"
HOURS = "hours"

_GET_DATA = "run carft data verify for details; get the data by carft data download, or copy it"
_NEED_LESS_MEMORY = (
    "set the hparam micro_batch, which gives the same gradients, or checkpoint_blocks; or use a "
    "smaller batch_size or a GPU with more memory"
)
_FIX_LOSS = "set amp to 'off', or lower lr; a job would diverge at its first step"


def run_preflight(plan: LaunchPlan, report: Callable[[PreflightRow], None]) -> Preflight:
    """Run the preflight of a sweep in this process, and call ``report`` with each finished row.

    Meanwhile this process has the environment variables of a job.
    """
    rows: list[PreflightRow] = []
    plan.output.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.dict(os.environ),  # restored at the end
        tempfile.TemporaryDirectory(dir=plan.output, prefix=".preflight-") as folder,
    ):
        measurements = _Measurements(plan, [*plan.jobs, *plan.waiting_jobs], Path(folder))
        take_slot(plan, len(measurements.jobs))
        for row in measurements.rows():
            rows.append(row)
            report(row)

    hours = math.fsum(measurements.hours)
    if devices.is_gpu(devices.default_device()):
        device = devices.gpu_facts().name
    else:
        device = machine.get_cpu_name()
    return Preflight(
        carft=__version__,
        sweep=plan.declaration.name,
        declaration=preflight_file.digest(plan.declaration.text),
        written=time.time(),
        host=socket.gethostname(),
        device=device,
        hours=hours if measurements.hours and math.isfinite(hours) else None,
        rows=rows,
        costs=measurements.job_costs,
    )


@dataclass
class _Measurements:
    """The measurements of a sweep so far."""

    plan: LaunchPlan
    jobs: Sequence[Job]
    folder: Path  # for the files that jobs would write
    loading: dict[str, float] = field(default_factory=dict)  # dataset -> its loaders' images/s
    job_costs: list[ImageCost] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)  # of each job

    def __post_init__(self) -> None:
        self.datasets: dict[str, Dataset] = dict(self.plan.declaration.facts)

    def rows(self) -> Iterator[PreflightRow]:
        """Yield the rows in the order in which they are printed."""
        yield from map(data_row, self.plan.data_checks)
        if not host.can_skip_in_splits():
            reason = "a checkout trains with its own code; run carft preflight outside of it"
            yield PreflightRow(ONE_STEP, "all jobs", "skipped", reason)
            return

        failed = {check.dataset for check in self.plan.data_checks if _get_problem(check)}
        jobs_with_data = [job for job in self.jobs if not failed & {"", job.key.dataset}]
        for clip in filter(None, dict.fromkeys(map(get_clip, jobs_with_data))):
            for row in guard_rows(WEIGHTS_AND_DATA, f"CLIP {clip}", partial(weights_rows, clip)):
                yield row
                failed |= {clip} if row.state == "failure" else set()

        for name in dict.fromkeys(job.key.dataset for job in self.jobs):
            jobs = [job for job in self.jobs if job.key.dataset == name]
            if failed & {"", name, *map(get_clip, jobs)}:
                reason = "a check of its data or its CLIP model failed above"
                yield PreflightRow(zero_shot_gate.SECTION, name, "skipped", reason)
            else:
                part = partial(self._dataset_rows, name, jobs)
                yield from guard_rows(zero_shot_gate.SECTION, name, part)

        for recipe in group_into_recipes(self.jobs, self.datasets):
            if recipe.job.key.dataset in self.loading:
                yield from guard_rows(ONE_STEP, recipe.label, partial(self._recipe_rows, recipe))
            else:
                reason = f"a check of {recipe.job.key.dataset} failed above"
                yield PreflightRow(ONE_STEP, recipe.label, "skipped", reason)
        yield from self._hours_rows()

    def _dataset_rows(self, name: str, jobs: Sequence[Job]) -> Iterator[PreflightRow]:
        """Yield the rows of the zero-shot accuracies on a dataset, then measure its loaders."""
        targets = range(len(self.datasets[name].labels))
        for job in zero_shot_jobs(jobs):
            yield zero_shot_gate.gate_row(self._prepare(job, targets))

        trainer = self._prepare(jobs[0])
        sizes = tuple(map(len, trainer.dataset))
        self.datasets[name] = replace(self.datasets[name], images=sizes)
        self.loading[name] = steps.measure_loading(trainer)

    def _recipe_rows(self, recipe: Recipe) -> Iterator[PreflightRow]:
        """Yield the row of a step of a recipe, and record the costs of its jobs."""
        total = steps.total_memory()
        try:
            measures = steps.measure_steps(self._prepare(recipe.job))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            finding = f"a step does not fit into {total / 1e9:.1f} GB of memory"
            yield PreflightRow(ONE_STEP, recipe.label, "failure", finding, _NEED_LESS_MEMORY)
            return

        finding = (
            f"loss {measures.loss:.4f}, peak memory {measures.peak_memory / 1e9:.2f} of "
            f"{total / 1e9:.1f} GB"
        )
        if not math.isfinite(measures.loss):
            yield PreflightRow(ONE_STEP, recipe.label, "failure", finding, _FIX_LOSS)
            return
        yield PreflightRow(ONE_STEP, recipe.label, "pass", finding)

        reference_loading = self.loading[recipe.job.key.dataset]
        for variant, dataset, algorithm in recipe.rows:
            loading = self.loading.get(dataset, reference_loading)
            cost = ImageCost(
                variant=variant,
                dataset=dataset,
                algorithm=algorithm,
                training_seconds=measures.training_seconds(reference_loading, loading),
                evaluation_seconds=measures.evaluation_seconds(loading),
                memory_gb=measures.peak_memory / 1e9,
            )
            self.job_costs.append(cost)

    def _hours_rows(self) -> Iterator[PreflightRow]:
        skips = bool(self.plan.skips_training_in_splits)
        self.hours = estimate_hours(self.jobs, self.job_costs, self.datasets, skips)
        for dataset in dict.fromkeys(job.key.dataset for job in self.jobs):
            hours = [
                value for job, value in zip(self.jobs, self.hours) if job.key.dataset == dataset
            ]
            yield hours_row(f"on {dataset}", hours)
        yield hours_row("of the sweep", self.hours)

    def _prepare(self, job: Job, targets: Sequence[int] | None = None) -> Trainer:
        return steps.prepare(job, job.variables, self.folder, targets)


def guard_rows(
    section: str, name: str, part: Callable[[], Iterator[PreflightRow]]
) -> Iterator[PreflightRow]:
    """Yield the rows of a part, and a failed row if it raises an error.

    Warnings are not printed, since the rows have all that matters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from part()
    except CarftError as error:
        finding = " ".join(str(error).split())
        yield PreflightRow(section, name, "failure", finding, "fix this; a job would stop here")
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        finding = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        hint = "a job would stop here as well; report this error"
        yield PreflightRow(section, name, "failure", finding, hint)


def _get_problem(check: DataCheck) -> str | None:
    return check.broken or check.missing


def data_row(check: DataCheck) -> PreflightRow:
    """Return the row of a dataset: its edition, or the reason why its jobs would fail."""
    name = f"data {check.dataset}".rstrip()
    problem = _get_problem(check)
    if problem:
        return PreflightRow(WEIGHTS_AND_DATA, name, "failure", problem, _GET_DATA)
    description = check.description.removeprefix(f"{check.dataset}: ")
    return PreflightRow(WEIGHTS_AND_DATA, name, "pass", description)


def weights_rows(clip: str) -> Iterator[PreflightRow]:
    """Yield the row of a CLIP checkpoint with its digest, after downloading it if necessary.

    Raises CarftError if the digest differs from the published one.
    """
    digest = backbone.find_clip_facts(clip, backbone.find_preprocessing(clip)).digest
    if clip in openai.PUBLISHED:
        comparison = "equal to the published one"
    else:
        comparison = "no published one to compare with"
    finding = f"SHA-256 {digest}, {comparison}"
    yield PreflightRow(WEIGHTS_AND_DATA, f"CLIP {clip}", "pass", finding)


def estimate_hours(
    jobs: Sequence[Job],
    measured: Sequence[ImageCost],
    datasets: dict[str, Dataset],
    skips_training_in_splits: bool,
) -> list[float]:
    """Return the hours of each job with its evaluations, or nan if its cost was not measured.

    With ``skips_training_in_splits``, evaluations skip the training environments' in-splits.
    """
    cost_by_row = {(cost.variant, cost.dataset, cost.algorithm): cost for cost in measured}
    hours = []
    for job in jobs:
        cost_per_image = cost_by_row.get((job.variant, job.key.dataset, job.key.algorithm))
        seconds = math.nan
        if cost_per_image:
            cost = costs.estimate_job_cost(job, datasets[job.key.dataset], skips_training_in_splits)
            training = cost_per_image.training_seconds * cost.trained
            seconds = training + cost_per_image.evaluation_seconds * cost.evaluated
        hours.append(seconds / 3600)
    return hours


def hours_row(name: str, hours: Sequence[float]) -> PreflightRow:
    """Return the row with the total hours of jobs that run one after another."""
    if any(map(math.isnan, hours)):
        return PreflightRow(HOURS, name, "skipped", "some of its jobs were not measured")
    finding = (
        f"{quantity(len(hours), 'job')}, {math.fsum(hours):,.2f} h, longest {max(hours):,.2f} h"
    )
    return PreflightRow(HOURS, name, "pass", finding)


def take_slot(plan: LaunchPlan, job_count: int) -> None:
    """Give this process the share of the CPU cores that a job of the plan would get."""
    if not isinstance(plan.launcher, pool.Pool) or process_variables.CORES.read():
        return
    variables = plan.launcher.slots(job_count)[0]
    variables.pop("CUDA_VISIBLE_DEVICES", None)  # torch may have initialized all GPUs already
    os.environ.update(variables)

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads):  # torch reads the variable only when imported
        torch.set_num_threads(int(threads))
