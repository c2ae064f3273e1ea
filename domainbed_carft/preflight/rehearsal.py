"""The rehearsal of a planned launch: all of its rows, in order, and the file that they become."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from domainbed_carft import process_variables
from domainbed_carft.doctor import OK, Finding
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.launchers import pool
from domainbed_carft.machine import devices
from domainbed_carft.preflight import (
    cost,
    data_rows,
    environment,
    prepared_job,
    speed,
    step_rows,
    zero_shot_gate,
)
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.cost import Measurements
from domainbed_carft.preflight.prepared_job import RehearsedJob
from domainbed_carft.preflight.recipes import Recipe, recipes_of, zero_shot_jobs
from domainbed_carft.preflight.rows import guarded, row_as_dict, skipped_row, verdict
from domainbed_carft.preflight.step_rows import TrainedStep
from domainbed_carft.sweep import host, preflight_file
from domainbed_carft.sweep.launch import LaunchPlan
from domainbed_carft.sweep.preflight_file import JobCost, Preflight, PrintedRow
from domainbed_carft.version import __version__

# How many files of weights a job keeps, by the process variable of --keep_weights.
_KEPT_FILES = {"both": 2, "last": 1, "best": 1, "none": 0}
# A state has the weights, and at most two moments of each.
_STATE_FACTOR = 3


@dataclass
class Rehearsal:
    """A rehearsal of ``plan``; `rows` makes its rows one by one, and then it can be saved."""

    plan: LaunchPlan
    measurements: Measurements = field(default_factory=Measurements)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    made_rows: list[Finding] = field(default_factory=list)
    job_costs: list[JobCost] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)
    _has_clip: dict[str, bool] = field(default_factory=dict)  # by its name, once looked at
    _later_rows: list[Finding] = field(default_factory=list)  # of speeds, under one heading

    def __post_init__(self) -> None:
        self.datasets |= self.plan.declaration.facts

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the sweep, those of a second stage, too."""
        return [*self.plan.jobs, *self.plan.waiting_jobs]

    def rows(self) -> Iterator[Finding]:
        """Make the rows, in the order in which they are printed.

        Meanwhile this process has the variables of a job.
        """
        self.plan.output.mkdir(parents=True, exist_ok=True)
        with (
            _restored_variables(),
            tempfile.TemporaryDirectory(dir=self.plan.output, prefix=".preflight-") as temporary,
            ThreadPoolExecutor(1) as executor,
        ):
            take_slot(self.plan, len(self.jobs))
            findings = executor.submit(environment.doctors_findings)  # while this process imports
            for row in self._all_rows(findings, Path(temporary)):
                self.made_rows.append(row)
                yield row

    def _all_rows(self, findings: Future[list[Finding]], folder: Path) -> Iterator[Finding]:
        yield from self._environment_rows(findings)
        yield from data_rows.verdict_rows(self.plan.verdicts)
        if not host.skips_in_splits():
            reason = "this domainbed has its own train; start where no checkout is found"
            yield skipped_row("one step", "rehearsal", reason)
            return

        recipes = recipes_of(self.jobs, self.datasets)
        failed_datasets = {v.dataset for v in self.plan.verdicts if v.missing or v.broken}
        for job in zero_shot_jobs(self.jobs):
            name = job.key.dataset
            if {"", name} & failed_datasets:
                yield skipped_row("zero-shot gate", name, "its data has a failure above")
            else:
                yield from guarded("zero-shot gate", name, partial(self._data_rows, job, folder))
        for recipe in recipes:
            name = recipe.label
            if recipe.job.key.dataset in self.measurements.loading:
                yield from guarded("one step", name, partial(self._recipe_rows, recipe, folder))
            else:
                reason = f"{recipe.job.key.dataset} or its CLIP has a failure above"
                yield skipped_row("one step", name, reason)
        yield from guarded("speed and cost", "hours", partial(self._cost_rows, recipes))

    def _environment_rows(self, findings: Future[list[Finding]]) -> Iterator[Finding]:
        yield from findings.result()
        yield environment.lock_row(self.plan.output)
        free = job_device.free_memory()
        yield environment.memory_row(free, job_device.total_memory(), job_device.name())

    def _data_rows(self, job: Job, folder: Path) -> Iterator[Finding]:
        """The CLIP, pictures, zero-shot accuracy and loaders of the data set of a job."""
        variables = self.plan.variables(job)
        clip = prepared_job.clip_of(job, variables, folder)
        if clip and clip not in self._has_clip:
            row = data_rows.weights_row(clip)
            self._has_clip[clip] = row.state == OK
            yield row
        if clip and not self._has_clip[clip]:
            yield skipped_row("zero-shot gate", job.key.dataset, f"{clip} has a failure above")
            return

        zero_shot = prepared_job.prepare_zero_shot(job, variables, folder)
        name = job.key.dataset
        is_new = name not in self.measurements.loading
        if is_new:
            yield data_rows.decoding_row(zero_shot)
        yield zero_shot_gate.gate_row(zero_shot)
        if is_new:
            sizes = tuple(len(environment) for environment in zero_shot.job.dataset)
            self.datasets[name] = replace(self.datasets[name], pictures=sizes)
            self._measure_loading(job, variables, folder)

    def _measure_loading(self, job: Job, variables: Mapping[str, str], folder: Path) -> None:
        """Measure the loaders of the data set of a job; its rows come later."""
        prepared = prepared_job.prepare(job, variables, folder)
        loading = speed.measure_loading(prepared, speed.measuring_seconds())
        self.measurements.loading[job.key.dataset] = loading
        shared_memory = environment.shared_memory_row(
            prepared.picture_bytes,
            prepared.job.hparams["batch_size"],
            prepared.worker_count,
            environment.free_shared_memory(),
        )
        self._later_rows += [shared_memory, speed.loading_row(prepared, loading)]

    def _recipe_rows(self, recipe: Recipe, folder: Path) -> Iterator[Finding]:
        """The rows on a step of a recipe, and on its speed."""
        prepared = self._prepare(recipe.job, folder)
        yield step_rows.loss_row(recipe.label, prepared)  # before the batch fills the device
        step = TrainedStep.of(prepared)
        memory, use = step_rows.memory_row(recipe.label, step)
        yield memory
        if use.micro_batch is None:
            return

        self.measurements.peak_memory[recipe.label] = use.peak
        self.measurements.weights[recipe.label] = step_rows.weights_bytes(step.algorithm)
        step.take()
        yield step_rows.gradients_row(recipe.label, step.algorithm)
        step_speed = speed.measure_steps(step, speed.measuring_seconds())
        self.measurements.steps[recipe.label] = step_speed
        loading = self.measurements.loading.get(recipe.job.key.dataset)
        if loading:
            self._later_rows.append(speed.speed_row(recipe.label, step_speed, loading))

    def _cost_rows(self, recipes: Sequence[Recipe]) -> Iterator[Finding]:
        yield from self._later_rows
        self.job_costs = cost.job_costs(recipes, self.measurements)
        skips = bool(self.plan.skips_training_in_splits)
        self.hours = cost.hours_of_jobs(self.jobs, self.job_costs, self.datasets, skips)
        yield from cost.cost_rows(self.jobs, self.hours, devices.gpu_count())
        if self.measurements.weights:
            yield self._disk_row(recipes)

    def _disk_row(self, recipes: Sequence[Recipe]) -> Finding:
        """Whether the weights of all jobs, and the states of those that run, fit on the disk."""
        weights = self.measurements.weights
        jobs_left = {job.folder for job in (*self.plan.jobs_to_run, *self.plan.waiting_jobs)}
        weights_bytes = sum(
            weights.get(recipe.label, 0) * sum(job.folder in jobs_left for job in recipe.jobs)
            for recipe in recipes
        )
        file_count = _KEPT_FILES[process_variables.KEEP_WEIGHTS.read() or "both"]
        at_a_time = max(1, devices.gpu_count())
        return environment.disk_row(
            weights_bytes=file_count * weights_bytes,
            state_bytes=at_a_time * _STATE_FACTOR * max(weights.values()),
            free=shutil.disk_usage(self.plan.output).free,
            output=self.plan.output,
        )

    def _prepare(self, job: Job, folder: Path) -> RehearsedJob:
        return prepared_job.prepare(job, self.plan.variables(job), folder)

    def as_file(self) -> Preflight:
        """What `preflight.json` says of the rows that were made."""
        hours = math.fsum(self.hours)
        return Preflight(
            carft=__version__,
            sweep=self.plan.declaration.name,
            declaration=preflight_file.digest(self.plan.declaration.text),
            written=time.time(),
            host=socket.gethostname(),
            device=job_device.name(),
            verdict=verdict(self.made_rows),
            hours=hours if self.hours and math.isfinite(hours) else None,
            rows=[PrintedRow.model_validate(row_as_dict(row)) for row in self.made_rows],
            costs=self.job_costs,
        )


@contextlib.contextmanager
def _restored_variables() -> Iterator[None]:
    """At the end this process has the variables that it had at the beginning."""
    variables = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


def take_slot(plan: LaunchPlan, job_count: int) -> None:
    """Compute in this process with the share of the cores that a job of the plan would get."""
    if not isinstance(plan.launcher, pool.Pool) or process_variables.CORES.read():
        return
    variables = plan.launcher.slots(job_count)[0]
    variables.pop("CUDA_VISIBLE_DEVICES", None)  # all cards are looked at
    os.environ.update(variables)

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads):  # torch has read it when it was imported
        torch.set_num_threads(int(threads))
