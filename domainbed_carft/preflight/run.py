"""Run the preflight of a planned launch, row by row."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

from domainbed_carft import machine, process_variables
from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError, brief, is_out_of_memory
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.launchers import pool
from domainbed_carft.machine import devices
from domainbed_carft.preflight import steps, zero_shot_gate
from domainbed_carft.preflight.recipes import Recipe, get_clip, group_into_recipes, zero_shot_jobs
from domainbed_carft.sweep import costs, host, preflight_file
from domainbed_carft.sweep.data_verification import DataFinding
from domainbed_carft.sweep.launch import LaunchPlan
from domainbed_carft.sweep.preflight_file import Preflight, PreflightRow
from domainbed_carft.version import __version__
from domainbed_carft.wording import quantity

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
    plan.output.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.dict(os.environ),  # restored at the end
        tempfile.TemporaryDirectory(dir=plan.output, prefix=".preflight-") as folder,
    ):
        run = _Run(plan, [*plan.jobs, *plan.waiting_jobs], Path(folder), report)
        take_slot(plan, len(run.jobs))
        run.add_all_rows()

    on_gpu = devices.is_gpu(devices.default_device())
    return Preflight(
        carft=__version__,
        sweep=plan.declaration.name,
        declaration=preflight_file.digest(plan.declaration.text),
        written=time.time(),
        host=socket.gethostname(),
        device=devices.gpu_facts().name if on_gpu else machine.get_cpu_name(),
        hours=run.hours,
        rows=run.rows,
        costs=run.get_costs(),
    )


@dataclass
class _Run:
    """The rows and measurements of a preflight so far."""

    plan: LaunchPlan
    jobs: Sequence[Job]
    folder: Path  # for the files that jobs would write
    report: Callable[[PreflightRow], None]
    rows: list[PreflightRow] = field(default_factory=list)
    loading: dict[str, float] = field(default_factory=dict)  # dataset -> its loaders' images/s
    cost_by_job: dict[Path, Cost] = field(default_factory=dict)  # of measured jobs, by folder
    hours: float | None = None  # of all jobs, if all were measured

    def __post_init__(self) -> None:
        self.datasets: dict[str, Dataset] = dict(self.plan.declaration.facts)

    def add(self, row: PreflightRow) -> None:
        self.rows.append(row)
        self.report(row)

    @contextlib.contextmanager
    def guard(self, section: str, name: str) -> Iterator[None]:
        """Add a failed row if the block raises an error.

        Warnings are not printed, since the rows have all that matters.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except CarftError as error:
            finding = " ".join(str(error).split())
            hint = "fix this; a job would stop here"
            self.add(PreflightRow(section, name, "failure", finding, hint))
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            finding = f"{brief(error)} ({frame.filename}:{frame.lineno})"
            hint = "a job would stop here as well; report this error"
            self.add(PreflightRow(section, name, "failure", finding, hint))

    def add_all_rows(self) -> None:
        """Check and measure the sweep, and add the rows in the order in which they are printed."""
        for finding in self.plan.data_findings:
            self.add(data_row(finding))
        if not host.can_skip_in_splits():
            reason = "a checkout trains with its own code; run carft preflight outside of it"
            self.add(PreflightRow(ONE_STEP, "all jobs", "skipped", reason))
            return

        jobs_by_dataset: dict[str, list[Job]] = {}
        for job in self.jobs:
            jobs_by_dataset.setdefault(job.key.dataset, []).append(job)
        clips = {
            name: [*filter(None, map(get_clip, jobs))] for name, jobs in jobs_by_dataset.items()
        }

        failed = {entry.dataset for entry in self.plan.data_findings if _get_problem(entry)}
        needed_clips = [clips[name] for name in clips if not failed & {"", name}]
        for clip in dict.fromkeys(itertools.chain(*needed_clips)):
            with self.guard(WEIGHTS_AND_DATA, f"CLIP {clip}"):
                self.add(weights_row(clip))
            if self.rows[-1].state == "failure":
                failed.add(clip)

        for name, jobs in jobs_by_dataset.items():
            if failed & {"", name, *clips[name]}:
                reason = "its data or its CLIP model failed above"
                self.add(PreflightRow(zero_shot_gate.SECTION, name, "skipped", reason))
            else:
                with self.guard(zero_shot_gate.SECTION, name):
                    self.test_dataset(name, jobs)

        for recipe in group_into_recipes(self.jobs, self.datasets):
            if recipe.job.key.dataset in self.loading:
                with self.guard(ONE_STEP, recipe.label):
                    self.test_steps(recipe)
            else:
                reason = f"{recipe.job.key.dataset} failed above"
                self.add(PreflightRow(ONE_STEP, recipe.label, "skipped", reason))
        self.add_hours()

    def test_dataset(self, name: str, jobs: Sequence[Job]) -> None:
        """Add the rows of the zero-shot accuracies on a dataset, then measure its loaders."""
        targets = range(len(self.datasets[name].labels))
        for job in zero_shot_jobs(jobs):
            self.add(zero_shot_gate.gate_row(self.prepare(job, targets)))

        trainer = self.prepare(jobs[0])
        sizes = tuple(map(len, trainer.dataset))
        self.datasets[name] = replace(self.datasets[name], images=sizes)
        self.loading[name] = steps.measure_loading(trainer)

    def test_steps(self, recipe: Recipe) -> None:
        """Add the row of a step of a recipe, and record the costs of its jobs."""
        total = steps.total_memory()
        try:
            measures = steps.measure_steps(self.prepare(recipe.job))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            finding = f"a step does not fit into {total / 1e9:.1f} GB of memory"
            self.add(PreflightRow(ONE_STEP, recipe.label, "failure", finding, _NEED_LESS_MEMORY))
            return

        finding = (
            f"loss {measures.loss:.4f}, peak memory {measures.peak_memory / 1e9:.2f} of "
            f"{total / 1e9:.1f} GB"
        )
        if not math.isfinite(measures.loss):
            self.add(PreflightRow(ONE_STEP, recipe.label, "failure", finding, _FIX_LOSS))
            return
        self.add(PreflightRow(ONE_STEP, recipe.label, "pass", finding))

        reference_loading = self.loading[recipe.job.key.dataset]
        skips = bool(self.plan.skips_training_in_splits)
        for job in recipe.jobs:
            dataset = job.key.dataset
            loading = self.loading.get(dataset, reference_loading)
            counts = costs.estimate_job_cost(job, self.datasets[dataset], skips)
            training_seconds = measures.training_seconds(reference_loading, loading)
            evaluation_seconds = measures.evaluation_seconds(loading)
            self.cost_by_job[job.folder] = replace(
                counts,
                training_hours=training_seconds * counts.trained / 3600,
                evaluation_hours=evaluation_seconds * counts.evaluated / 3600,
                memory_gb=measures.peak_memory / 1e9,
            )

    def add_hours(self) -> None:
        """Add the rows of the hours of each dataset's jobs and of the sweep."""
        unmeasured = Cost(training_hours=math.nan)
        all_hours = []
        hours_by_name: dict[str, list[float]] = {}
        for job in self.jobs:
            cost = self.cost_by_job.get(job.folder, unmeasured)
            all_hours.append((cost.training_hours or 0.0) + (cost.evaluation_hours or 0.0))
            hours_by_name.setdefault(f"on {job.key.dataset}", []).append(all_hours[-1])
        for name, hours_of_jobs in {**hours_by_name, "of the sweep": all_hours}.items():
            self.add(hours_row(name, hours_of_jobs))
        if math.isfinite(math.fsum(all_hours)):
            self.hours = math.fsum(all_hours)

    def get_costs(self) -> dict[str, dict[str, dict[str, Cost]]]:
        """Return the costs of the measured jobs by variant, dataset and algorithm."""
        costs_by_row: dict[costs.CostRow, list[Cost]] = {}
        for job in self.jobs:
            cost = self.cost_by_job.get(job.folder)
            if cost and math.isfinite(cost.evaluated):
                row = (job.variant, job.key.dataset, job.key.algorithm)
                costs_by_row.setdefault(row, []).append(cost)

        nested: dict[str, dict[str, dict[str, Cost]]] = {}
        for (variant, dataset, algorithm), row_costs in costs_by_row.items():
            by_dataset = nested.setdefault(variant, {})
            by_dataset.setdefault(dataset, {})[algorithm] = costs.add(row_costs)
        return nested

    def prepare(self, job: Job, targets: Sequence[int] | None = None) -> Trainer:
        return steps.prepare(job, job.variables, self.folder, targets)


def _get_problem(finding: DataFinding) -> str | None:
    return finding.broken or finding.missing


def data_row(finding: DataFinding) -> PreflightRow:
    """Return the row of a dataset: its edition, or the reason why its jobs would fail."""
    name = f"data {finding.dataset}".rstrip()
    problem = _get_problem(finding)
    if problem:
        return PreflightRow(WEIGHTS_AND_DATA, name, "failure", problem, _GET_DATA)
    description = finding.description.removeprefix(f"{finding.dataset}: ")
    return PreflightRow(WEIGHTS_AND_DATA, name, "pass", description)


def weights_row(clip: str) -> PreflightRow:
    """Return the row of a CLIP checkpoint with its digest, after downloading it if necessary.

    Raises CarftError if the digest differs from the published one.
    """
    digest = backbone.find_clip_facts(clip, backbone.find_preprocessing(clip)).digest
    comparison = (
        "equal to the published one"
        if clip in openai.PUBLISHED
        else "no published one to compare with"
    )
    finding = f"SHA-256 {digest}, {comparison}"
    return PreflightRow(WEIGHTS_AND_DATA, f"CLIP {clip}", "pass", finding)


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
