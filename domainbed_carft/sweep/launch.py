"""Plan the launch of a sweep, and run the plan."""

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
from domainbed_carft.launchers.slurm import Slurm, clear_job_variables
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
from domainbed_carft.sweep.data_checks import DataCheck
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.search import StagedJobs
from domainbed_carft.sweep.states import Status, read_queue

SKIP_VARIABLE = process_variables.SKIP_TRAINING_IN_SPLITS.name

RUN_HERE = ("local", "pool")

# The interval at which a launch without further jobs checks the jobs of other launches.
OTHER_LAUNCH_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class JobSettings:
    """Settings of all jobs that are not part of their identity."""

    keep_weights: str | None = None  # None is the job's default
    log: Sequence[str] = ()  # scalar logs: tensorboard, wandb

    def variables(self, job: Job, sweep_name: str) -> dict[str, str]:
        """Return the process variables that pass these settings to a job of the sweep."""
        variables = {
            process_variables.KEEP_WEIGHTS.name: self.keep_weights,
            process_variables.LOG.name: " ".join(self.log),
        }
        if "wandb" in self.log and "WANDB_RUN_GROUP" not in os.environ:
            variables["WANDB_RUN_GROUP"] = f"{sweep_name}/{job.variant}".rstrip("/")
        return {name: value for name, value in variables.items() if value}


def _resolve_skipping(output: Path, chosen: bool | None) -> bool | None:
    """Return True if the jobs skip the accuracies on the training environments' in-splits.

    The user's choice comes first, then the process variable, then the manifest; new sweeps skip
    them. Returns None if the train of the domainbed in use cannot skip them.
    """
    if not host.can_skip_in_splits():
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

    Attributes:
        declaration: the declared sweep.
        data_dir: folder that contains the datasets' folders.
        output: output folder of the sweep.
        launcher: the launcher, a function of jobs and of a function that returns their variables.
        launcher_name: name of the launcher, such as ``pool``.
        options: the launcher's options by name.
        settings: settings of all jobs.
        skips_training_in_splits: True if the jobs do not evaluate the training environments'
            in-splits; None if the train of the domainbed in use cannot skip them.
        staged_jobs: jobs by stage; without a search in stages all are in the first.
        statuses: state of each job when the plan was made. Jobs of a second stage are included once
            the first stage is done.
        data_checks: results of checking the datasets.
        launcher_problems: reasons why the launcher cannot run.
        log_problems: reasons why the jobs cannot log.
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
    data_checks: Sequence[DataCheck]
    launcher_problems: Sequence[str]
    log_problems: Sequence[str]

    @property
    def waiting_jobs(self) -> Sequence[Job]:
        """Placeholders for the jobs of a second stage whose values are not chosen yet."""
        return self.staged_jobs.waiting

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the sweep, each in its folder."""
        return [status.job for status in self.statuses]

    @property
    def jobs_to_run(self) -> list[Job]:
        """The jobs for the launcher.

        A launcher that runs jobs on this machine also takes jobs queued by other launchers.
        """
        launchable = [states.NOT_LAUNCHED, states.INTERRUPTED]
        if self.runs_here:
            launchable.append(states.QUEUED)
        return [status.job for status in self.statuses if status.state in launchable]

    @property
    def runs_here(self) -> bool:
        """True if the jobs run on this machine, which then needs their data."""
        return self.launcher_name in RUN_HERE

    @property
    def statuses_by_stage(self) -> dict[str, list[Status]]:
        """Stage -> the states of its jobs; the key is "" for a sweep without stages."""
        by_stage: dict[str, list[Status]] = {}
        for status in self.statuses:
            by_stage.setdefault(status.job.role.stage, []).append(status)
        return by_stage

    @property
    def data_problems(self) -> list[str]:
        """Broken data, which jobs refuse on every machine."""
        return [check.broken for check in self.data_checks if check.broken]

    @property
    def problems(self) -> list[str]:
        """All problems for which the launch would be refused."""
        problems = [*self.launcher_problems, *self.log_problems]
        for check in self.data_checks:
            if check.broken:
                problems.append(check.broken)
            if check.missing and self.runs_here:
                problems.append(check.missing)
        return problems

    def variables(self, job: Job) -> dict[str, str]:
        """Return the process variables of a job: its settings, and the splits that it evaluates."""
        variables = self.settings.variables(job, self.output.absolute().name)
        if self.skips_training_in_splits is not None:
            variables[SKIP_VARIABLE] = "1" if self.skips_training_in_splits else "0"
        return variables

    def estimate_costs(self, preflight: Preflight | None = None) -> dict[CostGroup, JobsCost]:
        """Estimate jobs, steps, images and hours by variant, dataset and algorithm, and in total.

        Args:
            preflight: measured costs for jobs of which there are no records.
        """
        facts = self.declaration.facts
        waiting = [states.get_status(job, facts) for job in self.waiting_jobs]
        skips = bool(self.skips_training_in_splits)
        return costs.estimate([*self.statuses, *waiting], facts, skips, preflight)


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
    """Plan the launch of a sweep, without writing or starting anything.

    Args:
        sweep: a sweep file, the name of an included sweep, or a declaration.
        data_dir: folder that contains the datasets' folders; None if no dataset needs one.
        output: output folder of the sweep.
        launcher: ``local``, ``pool``, ``slurm`` or ``dummy``.
        options: the launcher's options, such as ``{"jobs": 2}``.
        settings: settings of all jobs that are not part of their identity.
        skip_training_in_splits: False to also evaluate the training environments' in-splits; None
            for the process variable, the sweep's earlier launches, or True.

    Returns:
        The jobs with their states, the checks of the data, and the problems for which the launch
        would be refused.

    Raises:
        CarftError: all problems of the declaration, the launcher and its options.
    """
    output = as_path(output)
    declaration, launcher_object = _load(sweep, launcher, options or {})
    settings = settings or JobSettings()
    if data_dir is None:
        data_dir = data_checks.default_data_dir(declaration.datasets)
    data_dir = os.fspath(as_path(data_dir))

    jobs = search.make_staged_jobs(declaration, data_dir, output)
    log_problems: Sequence[str] = ()
    if settings.log:  # each job would refuse a train that cannot log, or a missing library
        log_problems = host.import_module("lib.scalar_logs").problems(settings.log)

    return LaunchPlan(
        declaration=declaration,
        data_dir=data_dir,
        output=output,
        launcher=launcher_object,
        launcher_name=launcher,
        options=options or {},
        settings=settings,
        skips_training_in_splits=_resolve_skipping(output, skip_training_in_splits),
        staged_jobs=jobs,
        statuses=states.get_statuses(jobs.launchable, declaration.facts, read_queue(output)),
        data_checks=data_checks.check_datasets(
            declaration.datasets, [*jobs.first, *jobs.second], data_dir
        ),
        launcher_problems=launchers.problems(launcher_object, [output]),
        log_problems=log_problems,
    )


def run_plan(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs of a plan that are not done, with a progress bar.

    The second stage of a search follows when the first is done. Under SLURM the function returns
    after submitting the jobs, and a small job submits the second stage. The launcher ``dummy``
    prints the commands and writes nothing. Call the function from the main thread, which receives
    Ctrl-C.

    Args:
        launch_plan: a plan without ``problems``, which are not checked again.

    Returns:
        The jobs that are not done at the end, each with the reason as its ``detail``. Under SLURM,
        the jobs that failed earlier if there was no job to submit.
    """
    if launch_plan.launcher_name == "dummy":
        launch_plan.launcher(launch_plan.jobs_to_run, launch_plan.variables)
        return []

    write_manifest(
        launch_plan.declaration,
        launch_plan.output,
        launch_plan.jobs,
        launch_plan.skips_training_in_splits,
        search.make_manifest_entry(launch_plan.declaration, launch_plan.staged_jobs),
    )
    if launch_plan.launcher_name == "slurm":
        return _submit(launch_plan)

    unfinished = _run_here(launch_plan)
    if launch_plan.waiting_jobs and not unfinished:
        return run_plan(_plan_second_stage(launch_plan))
    return unfinished


def _submit(launch_plan: LaunchPlan) -> list[Status]:
    """Submit the jobs, and a small job for a second stage; return the same as `run_plan`."""
    launcher = launch_plan.launcher
    launcher(launch_plan.jobs_to_run, launch_plan.variables)
    if launch_plan.waiting_jobs and isinstance(launcher, Slurm):
        second_stage = SecondStage(
            output=launch_plan.output.absolute(),
            data_dir=launch_plan.data_dir,
            options=launch_plan.options,
            settings=launch_plan.settings,
            skips_training_in_splits=launch_plan.skips_training_in_splits,
            method_variables=own_methods.get_variables(),
        )
        search.submit(launcher, launch_plan.output, second_stage)

    if launch_plan.jobs_to_run:
        return []
    return [status for status in launch_plan.statuses if status.state == states.FAILED]


def _run_here(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs on this machine, and wait for other launches; return the same as `run_plan`."""
    statuses = launch_plan.statuses
    outcomes: Sequence[JobOutcome] = ()
    if launch_plan.jobs_to_run or any(status.state == states.RUNNING for status in statuses):
        with printing.show_progress(statuses, launch_plan.declaration.facts):
            if launch_plan.jobs_to_run:
                outcomes = (
                    launch_plan.launcher(launch_plan.jobs_to_run, launch_plan.variables) or ()
                )
            statuses = _wait_for_other_launches(launch_plan)

    # If no attempt could be noted, such as on a full disk, only the launcher has the reason.
    last_words = {Path(outcome.folder): outcome.last_words for outcome in outcomes}
    unfinished = [status for status in statuses if status.state != states.DONE]
    return [
        replace(status, detail=status.detail or last_words.get(status.job.folder, ""))
        for status in unfinished
    ]


def _wait_for_other_launches(launch_plan: LaunchPlan) -> list[Status]:
    """Wait until no other live launch runs a job of the plan; return the states of its jobs."""
    facts = launch_plan.declaration.facts
    while True:
        queue = read_queue(launch_plan.output)
        statuses = states.get_statuses(launch_plan.jobs, facts, queue)
        if not queue.live_launches or all(status.state != states.RUNNING for status in statuses):
            return statuses
        time.sleep(OTHER_LAUNCH_POLL_SECONDS)


def _plan_second_stage(launch_plan: LaunchPlan) -> LaunchPlan:
    """Return the plan with the chosen jobs of the second stage, after the first is done."""
    declaration = launch_plan.declaration
    output = launch_plan.output
    jobs = search.make_staged_jobs(declaration, launch_plan.data_dir, output)
    statuses = states.get_statuses(jobs.launchable, declaration.facts, read_queue(output))
    return replace(launch_plan, staged_jobs=jobs, statuses=statuses)


@dataclass(frozen=True)
class SecondStage:
    """The function that a small SLURM job calls when the first stage of a search has ended."""

    output: Path  # contains the copy of the declaration to launch
    data_dir: str
    options: Mapping[str, Any]
    settings: JobSettings
    skips_training_in_splits: bool | None
    method_variables: Mapping[str, str]  # process variables that locate the user's own methods

    def __call__(self) -> None:
        """Submit the jobs of the second stage.

        Raises CarftError, shown in SLURM's log, if the first stage is not done or SLURM refuses.
        """
        clear_job_variables()
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

    ``skips`` is True if the jobs do not evaluate the training environments' in-splits.
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
    """Load the declaration and make the launcher; raise the problems of both together."""
    if isinstance(sweep, Declaration):
        return sweep, launchers.make(launcher, options)

    try:
        declaration = declaration_file.load(sweep)
    except CarftError as error:
        raise_for([*error.problems, *collect_problems(launchers.make, launcher, options)])
        raise
    return declaration, launchers.make(launcher, options)
