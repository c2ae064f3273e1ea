"""Launching a sweep: a plan that is made and checked once, and running it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers, process_variables
from domainbed_carft.errors import CarftError, collect_problems, invalid, raise_for
from domainbed_carft.jobs import manifest, own_methods
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Search
from domainbed_carft.launchers import Launcher
from domainbed_carft.launchers.attempt import JobOutcome
from domainbed_carft.launchers.slurm import Slurm, forget_own_job
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import (
    costs,
    data_checks,
    declaration_file,
    host,
    printing,
    search,
    states,
)
from domainbed_carft.sweep.costs import CostGroup, JobsCost
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.search import StagedJobs
from domainbed_carft.sweep.states import Status, queue_of

SKIP_VARIABLE = process_variables.SKIP_TRAINING_IN_SPLITS.name

RUN_HERE = ("local", "pool")

# How often a launch that has no more jobs looks whether another one still runs some.
OTHER_LAUNCH_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class JobSettings:
    """Settings of all jobs that are not part of their identity; None leaves each to its default.

    ``log`` names the scalar logs: tensorboard, wandb.
    """

    keep_weights: str | None = None
    log: Sequence[str] = ()

    def variables(self, job: Job, sweep_name: str) -> dict[str, str]:
        """The process variables by which a job of the sweep gets these settings."""
        variables = {
            process_variables.KEEP_WEIGHTS.name: self.keep_weights,
            process_variables.LOG.name: " ".join(self.log),
        }
        if "wandb" in self.log and "WANDB_RUN_GROUP" not in os.environ:  # a user's own stays
            variables["WANDB_RUN_GROUP"] = f"{sweep_name}/{job.variant}".rstrip("/")
        return {name: value for name, value in variables.items() if value}


def skips_training_in_splits(output: Path, chosen: bool | None = None) -> bool | None:
    """Whether the jobs leave out the accuracies on the training environments' in-splits.

    The first of these decides: ``chosen``, the user's variable, the manifest of the sweep. A new
    sweep leaves them out. Returns None for a domainbed whose train always has them. Raises
    CarftError for another value of the variable.
    """
    if not host.skips_in_splits():
        return None
    if chosen is not None:
        return chosen

    variable = process_variables.SKIP_TRAINING_IN_SPLITS.read()
    if variable not in ("", "0", "1"):
        raise CarftError(invalid(SKIP_VARIABLE, variable, "0 or 1"))
    if variable:
        return variable == "1"

    sweep = manifest.read(output) if output.is_dir() else None
    if sweep and sweep.skip_training_in_splits is not None:
        return sweep.skip_training_in_splits
    return True


@dataclass(frozen=True)
class LaunchPlan:
    """A launch before it begins: nothing has been written, and nothing runs.

    ``statuses`` are the states of all jobs of the sweep when the plan was made, ``verdicts`` those
    on its data. Of a search with stages the second one's jobs are known, and have states, once the
    first is done. ``options`` are the caller's, of the launcher. ``skips_training_in_splits`` is
    None for a domainbed that cannot. ``log_problems`` and ``launcher_problems`` are why the jobs
    could not log, and why the launcher could not run.
    """

    declaration: Declaration
    data_dir: str
    output: Path
    launcher: Launcher
    launcher_name: str
    options: Mapping[str, Any]
    settings: JobSettings
    skips_training_in_splits: bool | None
    staged_jobs: StagedJobs
    statuses: Sequence[Status]
    verdicts: Sequence[DataVerdict]
    launcher_problems: Sequence[str]
    log_problems: Sequence[str]

    @property
    def waiting_jobs(self) -> Sequence[Job]:
        """Jobs that stand for a second stage whose values are not chosen yet."""
        return self.staged_jobs.waiting

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the sweep, each in its folder."""
        return [status.job for status in self.statuses]

    @property
    def jobs_to_run(self) -> list[Job]:
        """The jobs that the launcher gets; one that runs them here also those queued by others."""
        launchable = [states.NOT_LAUNCHED, states.INTERRUPTED]
        if self.runs_here:
            launchable.append(states.QUEUED)
        return [status.job for status in self.statuses if status.state in launchable]

    @property
    def runs_here(self) -> bool:
        """Whether the jobs run on this machine, which then needs their data."""
        return self.launcher_name in RUN_HERE

    @property
    def statuses_by_stage(self) -> dict[str, list[Status]]:
        """Stage -> the states of its jobs; "" for those of a sweep without stages."""
        by_stage: dict[str, list[Status]] = {}
        for status in self.statuses:
            by_stage.setdefault(status.job.role.stage, []).append(status)
        return by_stage

    @property
    def data_problems(self) -> list[str]:
        """Broken data, which jobs would refuse wherever they run."""
        return [verdict.broken for verdict in self.verdicts if verdict.broken]

    @property
    def problems(self) -> list[str]:
        """All that a launch would be refused for."""
        problems = [*self.launcher_problems, *self.log_problems]
        for verdict in self.verdicts:
            if verdict.broken:
                problems.append(verdict.broken)
            if verdict.missing and self.runs_here:
                problems.append(verdict.missing)
        return problems

    def variables(self, job: Job) -> dict[str, str]:
        """The process variables of a job: its settings, and which splits it evaluates."""
        variables = self.settings.variables(job, self.output.absolute().name)
        if self.skips_training_in_splits is not None:
            variables[SKIP_VARIABLE] = "1" if self.skips_training_in_splits else "0"
        return variables

    def costs(self, preflight: Preflight | None = None) -> dict[CostGroup, JobsCost]:
        """Jobs, steps, images and hours of each variant, dataset and algorithm, and of all.

        ``preflight``: the sweep's rehearsal, for what no record tells.
        """
        facts = self.declaration.facts
        waiting = [states.status(job, facts) for job in self.waiting_jobs]
        skips = bool(self.skips_training_in_splits)
        return costs.costs([*self.statuses, *waiting], facts, skips, preflight)


def plan(
    sweep: AnyPath | Declaration,
    data_dir: AnyPath | None,
    output: AnyPath,
    launcher: str = "pool",
    options: Mapping[str, Any] | None = None,
    *,
    settings: JobSettings | None = None,
    skip_training_in_splits: bool | None = None,
) -> LaunchPlan:
    """The plan of a launch: jobs, their states, verdicts on the data, costs, and problems.

    ``sweep`` is a file, the name of an included sweep, or a declaration. ``options`` are those of
    the launcher. Raises CarftError, with all problems, for a wrong declaration, launcher or option.
    What else a launch would be refused for are the plan's ``problems``.
    """
    output = as_path(output)
    declaration, launcher_object = _load(sweep, launcher, options or {})
    settings = settings or JobSettings()
    if data_dir is None:
        data_dir = data_checks.default_data_dir(declaration.datasets)
    data_dir = os.fspath(as_path(data_dir))

    jobs = search.staged_jobs(declaration, data_dir, output)
    log_problems: Sequence[str] = ()
    if settings.log:  # as each job would refuse it: a train that cannot log, a missing library
        log_problems = host.module("lib.scalar_logs").problems(settings.log)

    return LaunchPlan(
        declaration=declaration,
        data_dir=data_dir,
        output=output,
        launcher=launcher_object,
        launcher_name=launcher,
        options=options or {},
        settings=settings,
        skips_training_in_splits=skips_training_in_splits(output, skip_training_in_splits),
        staged_jobs=jobs,
        statuses=states.statuses_of(jobs.launchable, declaration.facts, queue_of(output)),
        verdicts=data_checks.verdicts(declaration.datasets, [*jobs.first, *jobs.second], data_dir),
        launcher_problems=launchers.problems(launcher_object, [output]),
        log_problems=log_problems,
    )


def run_plan(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs of a plan that are not done; shows a progress bar if the launcher waits.

    Of a search with stages, the second one follows when the first is done; under SLURM a small job
    submits it. Returns the jobs that are not done at the end, each with the reason as its detail;
    if the launcher does not wait, those that failed before, if there was nothing to submit. Call it
    from the main thread, where Ctrl-C arrives. The launcher `dummy` prints and writes nothing else.
    """
    if launch_plan.launcher_name == "dummy":
        launch_plan.launcher(launch_plan.jobs_to_run, launch_plan.variables)
        return []

    write_manifest(
        launch_plan.declaration,
        launch_plan.output,
        launch_plan.jobs,
        launch_plan.skips_training_in_splits,
        search.search_entry(launch_plan.declaration, launch_plan.staged_jobs),
    )
    if launch_plan.launcher_name == "slurm":
        return _submit(launch_plan)

    unfinished = _run_here(launch_plan)
    if launch_plan.waiting_jobs and not unfinished:
        return run_plan(_planned_second_stage(launch_plan))
    return unfinished


def _submit(launch_plan: LaunchPlan) -> list[Status]:
    """Submit the jobs, and a small one for a second stage; returns what `run_plan` does."""
    launcher = launch_plan.launcher
    launcher(launch_plan.jobs_to_run, launch_plan.variables)
    if launch_plan.waiting_jobs and isinstance(launcher, Slurm):
        second_stage = SecondStage(
            output=launch_plan.output.absolute(),
            data_dir=launch_plan.data_dir,
            options=launch_plan.options,
            settings=launch_plan.settings,
            skips_training_in_splits=launch_plan.skips_training_in_splits,
            method_variables=own_methods.variables(),
        )
        search.submit(launcher, launch_plan.output, second_stage)

    if launch_plan.jobs_to_run:
        return []
    return [status for status in launch_plan.statuses if status.state == states.FAILED]


def _run_here(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs on this machine, and wait for other launches; returns what `run_plan` does."""
    statuses = launch_plan.statuses
    outcomes: Sequence[JobOutcome] = ()
    if launch_plan.jobs_to_run or any(status.state == states.RUNNING for status in statuses):
        with printing.bar(statuses, launch_plan.declaration.facts):
            if launch_plan.jobs_to_run:
                outcomes = (
                    launch_plan.launcher(launch_plan.jobs_to_run, launch_plan.variables) or ()
                )
            statuses = _statuses_after_other_launches(launch_plan)

    # Where there could be no attempt, such as for a full disk, only the launcher knows why.
    last_words = {Path(outcome.folder): outcome.last_words for outcome in outcomes}
    unfinished = [status for status in statuses if status.state != states.DONE]
    return [
        replace(status, detail=status.detail or last_words.get(status.job.folder, ""))
        for status in unfinished
    ]


def _statuses_after_other_launches(launch_plan: LaunchPlan) -> list[Status]:
    """The states of the plan's jobs once no other launch that is alive runs one of them."""
    facts = launch_plan.declaration.facts
    while True:
        queue = queue_of(launch_plan.output)
        statuses = states.statuses_of(launch_plan.jobs, facts, queue)
        is_running = any(status.state == states.RUNNING for status in statuses)
        if not (queue.live_launches and is_running):
            return statuses
        time.sleep(OTHER_LAUNCH_POLL_SECONDS)


def _planned_second_stage(launch_plan: LaunchPlan) -> LaunchPlan:
    """The plan once the first stage is done: with the jobs of the second, and all states."""
    declaration = launch_plan.declaration
    output = launch_plan.output
    jobs = search.staged_jobs(declaration, launch_plan.data_dir, output)
    statuses = states.statuses_of(jobs.launchable, declaration.facts, queue_of(output))
    return replace(launch_plan, staged_jobs=jobs, statuses=statuses)


@dataclass(frozen=True)
class SecondStage:
    """What a small SLURM job calls when the first stage of a search has ended.

    It launches the copy of the declaration in the folder ``output``, with the data folder, options,
    settings and splits of the first stage. ``method_variables``: where own methods are.
    """

    output: Path
    data_dir: str
    options: Mapping[str, Any]
    settings: JobSettings
    skips_training_in_splits: bool | None
    method_variables: Mapping[str, str]

    def __call__(self) -> None:
        """Submit the jobs of the second stage.

        Raises CarftError, which SLURM shows, if the first is not done or SLURM takes no more.
        """
        forget_own_job()
        os.environ.update(self.method_variables)

        launch_plan = plan(
            self.output / manifest.DECLARATION_FILE,
            self.data_dir,
            self.output,
            "slurm",
            self.options,
            settings=self.settings,
            skip_training_in_splits=self.skips_training_in_splits,
        )
        if launch_plan.waiting_jobs:
            counts = printing.counts_phrase(launch_plan.statuses)
            raise CarftError(f"the first stage is not done: {counts}; launch the sweep again")

        raise_for(launch_plan.problems)
        run_plan(launch_plan)


def write_manifest(
    declaration: Declaration,
    output: Path,
    jobs: Sequence[Job],
    skips: bool | None = None,
    search: Search | None = None,
) -> None:
    """Write the manifest for other commands, and a copy of the sweep file for people.

    ``skips``: whether the jobs leave out the training environments' in-splits; ``search``: a search
    with stages, and what it has chosen.
    """
    sweep = manifest.Sweep(
        jobs=tuple(jobs),
        datasets=declaration.facts,
        selection=tuple(declaration.selection),
        compare_with=tuple(declaration.compare_with),
        algorithms=tuple(declaration.algorithms),
        skip_training_in_splits=skips,
        search=search,
    )
    manifest.add(output, sweep)
    files.save_text(output / manifest.DECLARATION_FILE, declaration.text)


def _load(
    sweep: AnyPath | Declaration, launcher: str, options: Mapping[str, Any]
) -> tuple[Declaration, Launcher]:
    """The declaration and the launcher, or the problems of both together."""
    if isinstance(sweep, Declaration):
        return sweep, launchers.make(launcher, options)

    try:
        declaration = declaration_file.load(sweep)
    except CarftError as error:
        raise_for([*error.problems, *collect_problems(launchers.make, launcher, options)])
        raise
    return declaration, launchers.make(launcher, options)
