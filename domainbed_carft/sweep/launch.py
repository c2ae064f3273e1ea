"""Launching a sweep: a plan that is made and checked once, and running it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers
from domainbed_carft.errors import CarftError, as_problem, problems_of, raise_for
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.search import Search
from domainbed_carft.launchers import Launcher
from domainbed_carft.launchers.attempt import Outcome
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import (
    data_checks,
    declaration_file,
    host,
    printing,
    second_stage,
    stages,
    states,
)
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.job_settings import (
    JobSettings,
    JobVariables,
    skips_training_in_splits,
)
from domainbed_carft.sweep.launch_plan import LaunchPlan, launchable_jobs
from domainbed_carft.sweep.queue import queue_of
from domainbed_carft.sweep.states import Status

# How often a launch that has no more jobs looks whether another one still runs some.
OTHER_LAUNCH_POLL_SECONDS = 1.0


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

    launch_plan = _plan_without_checks(
        declaration,
        data_dir,
        output,
        launcher_object,
        launcher_name=launcher,
        job_variables=lambda job: settings.variables(job, output.absolute().name),
        skip_training_in_splits=skip_training_in_splits,
    )
    command = stages.launch_command(
        output,
        data_dir,
        launcher,
        options=options or {},
        settings=settings,
        skips_training_in_splits=launch_plan.skips_training_in_splits,
    )
    all_jobs = [*launch_plan.jobs, *launch_plan.waiting_jobs]
    log_problems: Sequence[str] = ()
    if settings.log:  # as each job would refuse it: a train that cannot log, a missing library
        log_problems = host.module("lib.scalar_logs").problems(settings.log)
    return replace(
        launch_plan,
        verdicts=data_checks.verdicts(declaration.datasets, all_jobs, data_dir),
        launcher_problems=[*map(as_problem, launchers.problems(launcher_object, [output]))],
        log_problems=[*map(as_problem, log_problems)],
        command=command,
    )


def run(
    declaration: Declaration,
    data_dir: AnyPath,
    output: AnyPath,
    launcher: Launcher,
    launcher_name: str = "pool",
    job_variables: JobVariables | None = None,
    skip_training_in_splits: bool | None = None,
) -> list[Status]:
    """Run the jobs of a sweep that are not done, by a launcher of `launchers.make`.

    ``job_variables`` gives each job more process variables. ``skip_training_in_splits`` is resolved
    as by the function `skips_training_in_splits`. Returns what `run_plan` does.
    """
    launch_plan = _plan_without_checks(
        declaration,
        os.fspath(data_dir),
        as_path(output),
        launcher,
        launcher_name=launcher_name,
        job_variables=job_variables or (lambda job: {}),
        skip_training_in_splits=skip_training_in_splits,
    )
    return run_plan(launch_plan)


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

    unfinished = _run_launchable_jobs(launch_plan)
    if launch_plan.launcher_name == "slurm":
        is_followed = launch_plan.waiting_jobs and launch_plan.command
        if is_followed and isinstance(launch_plan.launcher, Slurm):
            second_stage.submit(launch_plan.launcher, launch_plan.output, launch_plan.command)
        return unfinished

    if launch_plan.waiting_jobs and not unfinished:
        return _run_launchable_jobs(_planned_anew(launch_plan))
    return unfinished


def _run_launchable_jobs(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs of a plan whose values are known; returns what `run_plan` does."""
    # Others may have launched since the plan was made.
    jobs = launch_plan.jobs
    statuses = _statuses(jobs, launch_plan)
    jobs_to_run = launchable_jobs(statuses, launch_plan.launcher_name)
    write_manifest(
        launch_plan.declaration,
        launch_plan.output,
        jobs,
        launch_plan.skips_training_in_splits,
        stages.search_entry(launch_plan.declaration, launch_plan.staged_jobs, launch_plan.command),
    )

    variables = launch_plan.variables
    if launch_plan.launcher_name == "slurm":
        launch_plan.launcher(jobs_to_run, variables)
        return [] if jobs_to_run else [s for s in statuses if s.state == states.FAILED]

    endings: Sequence[Outcome] = ()
    if jobs_to_run or any(status.state == states.RUNNING for status in statuses):
        with printing.bar(statuses, launch_plan.declaration.facts):
            if jobs_to_run:
                endings = launch_plan.launcher(jobs_to_run, variables) or ()
            statuses = _statuses_after_other_launches(jobs, launch_plan)
    # Where there could be no attempt, such as for a full disk, only the launcher knows why.
    last_words = {Path(ending.folder): ending.last_words for ending in endings}
    unfinished = [status for status in statuses if status.state != states.DONE]
    return [
        replace(status, detail=status.detail or last_words.get(status.job.folder, ""))
        for status in unfinished
    ]


def _planned_anew(launch_plan: LaunchPlan) -> LaunchPlan:
    """A plan with the jobs and states of now, which may be those of a second stage."""
    declaration = launch_plan.declaration
    output = launch_plan.output
    jobs = stages.staged_jobs(declaration, launch_plan.data_dir, output)
    statuses = states.statuses_of(jobs.launchable, declaration.facts, queue_of(output))
    return replace(launch_plan, staged_jobs=jobs, statuses=statuses)


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
        raise_for([*error.problems, *problems_of(launchers.make, launcher, options)])
        raise
    return declaration, launchers.make(launcher, options)


def _plan_without_checks(
    declaration: Declaration,
    data_dir: str,
    output: Path,
    launcher: Launcher,
    *,
    launcher_name: str,
    job_variables: JobVariables,
    skip_training_in_splits: bool | None,
) -> LaunchPlan:
    """A plan that has looked neither at the data nor at what the launcher needs."""
    jobs = stages.staged_jobs(declaration, data_dir, output)
    statuses = states.statuses_of(jobs.launchable, declaration.facts, queue_of(output))
    skips = skips_training_in_splits(output, jobs.launchable, skip_training_in_splits)
    return LaunchPlan(
        declaration=declaration,
        data_dir=data_dir,
        output=output,
        launcher=launcher,
        launcher_name=launcher_name,
        staged_jobs=jobs,
        statuses=statuses,
        job_variables=job_variables,
        skips_training_in_splits=skips,
    )


def _statuses(jobs: Sequence[Job], launch_plan: LaunchPlan) -> list[Status]:
    """The states of the plan's jobs now."""
    queue = queue_of(launch_plan.output)
    return states.statuses_of(jobs, launch_plan.declaration.facts, queue)


def _statuses_after_other_launches(jobs: Sequence[Job], launch_plan: LaunchPlan) -> list[Status]:
    """The states of the plan's jobs once no other launch that is alive runs one of them."""
    while True:
        queue = queue_of(launch_plan.output)
        statuses = states.statuses_of(jobs, launch_plan.declaration.facts, queue)
        is_running = any(status.state == states.RUNNING for status in statuses)
        if not (queue.live_launches and is_running):
            return statuses
        time.sleep(OTHER_LAUNCH_POLL_SECONDS)
