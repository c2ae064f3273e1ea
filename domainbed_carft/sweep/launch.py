"""Launching a sweep: a plan that is made and checked once, and running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers
from domainbed_carft.errors import CarftError, Problem, as_problem, problems_of, raise_for
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import Launcher
from domainbed_carft.sweep import costs, data_checks, declaration_file, host, printing, states
from domainbed_carft.sweep.costs import Cost, Group
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.job_settings import (
    SKIP_VARIABLE,
    JobSettings,
    JobVariables,
    skips_training_in_splits,
)
from domainbed_carft.sweep.states import Status

RUN_HERE = ("local", "pool")


@dataclass(frozen=True)
class LaunchPlan:
    """A launch before it begins: nothing has been written, and nothing runs.

    ``statuses`` are the states of all jobs of the sweep when the plan was made, ``verdicts`` those
    on its data. ``skips_training_in_splits`` is None for a domainbed that cannot. ``log_problems``
    and ``launcher_problems`` are why the jobs could not log, and why the launcher could not run.
    """

    declaration: Declaration
    output: Path
    launcher: Launcher
    launcher_name: str
    statuses: Sequence[Status]
    job_variables: JobVariables
    skips_training_in_splits: bool | None
    verdicts: Sequence[DataVerdict] = ()
    launcher_problems: Sequence[Problem] = ()
    log_problems: Sequence[Problem] = ()

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the sweep, each in its folder."""
        return [status.job for status in self.statuses]

    @property
    def jobs_to_run(self) -> list[Job]:
        """The jobs that the launcher gets."""
        return _jobs_to_run(self.statuses, self.launcher_name)

    @property
    def runs_here(self) -> bool:
        """Whether the jobs run on this machine, which then needs their data."""
        return self.launcher_name in RUN_HERE

    @property
    def data_problems(self) -> list[Problem]:
        """Broken data, which jobs would refuse wherever they run."""
        return [verdict.broken for verdict in self.verdicts if verdict.broken]

    @property
    def problems(self) -> list[Problem]:
        """All that a launch would be refused for."""
        problems = [*self.launcher_problems, *self.log_problems]
        for verdict in self.verdicts:
            if verdict.broken:
                problems.append(verdict.broken)
            if verdict.missing and self.runs_here:
                problems.append(verdict.missing)
        return problems

    def costs(self) -> dict[Group, Cost]:
        """Jobs, steps, pictures and hours of each variant, data set and algorithm, and of all."""
        skips = bool(self.skips_training_in_splits)
        return costs.costs(self.statuses, self.declaration.facts, skips)


def plan(
    sweep: str | Path | Declaration,
    data_dir: str | None,
    output: Path,
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
    declaration, launcher_object = _load(sweep, launcher, options or {})
    settings = settings or JobSettings()
    if data_dir is None:
        data_dir = data_checks.default_data_dir(declaration.datasets)

    launch_plan = _plan_without_checks(
        declaration,
        data_dir,
        output,
        launcher_object,
        launcher_name=launcher,
        job_variables=lambda job: settings.variables(job, output.absolute().name),
        skip_training_in_splits=skip_training_in_splits,
    )
    log_problems: Sequence[str] = ()
    if settings.log:  # as each job would refuse it: a train that cannot log, a missing library
        log_problems = host.module("lib.scalar_logs").problems(settings.log)
    return replace(
        launch_plan,
        verdicts=data_checks.verdicts(declaration.datasets, launch_plan.jobs, data_dir),
        launcher_problems=[*map(as_problem, launchers.problems(launcher_object, [output]))],
        log_problems=[*map(as_problem, log_problems)],
    )


def run(
    declaration: Declaration,
    data_dir: str,
    output: Path,
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
        data_dir,
        output,
        launcher,
        launcher_name=launcher_name,
        job_variables=job_variables or (lambda job: {}),
        skip_training_in_splits=skip_training_in_splits,
    )
    return run_plan(launch_plan)


def run_plan(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs of a plan that are not done; shows a progress bar if the launcher waits.

    Returns the jobs that are not done at the end, each with the reason as its detail; if the
    launcher does not wait, those that failed before, if there was nothing to submit. Call it from
    the main thread, where Ctrl-C arrives. The launcher `dummy` prints and writes nothing else.
    """
    variables = _with_skip_variable(launch_plan)
    if launch_plan.launcher_name == "dummy":
        launch_plan.launcher(launch_plan.jobs_to_run, variables)
        return []

    # Others may have launched since the plan was made.
    jobs = launch_plan.jobs
    statuses = _statuses(jobs, launch_plan)
    jobs_to_run = _jobs_to_run(statuses, launch_plan.launcher_name)
    write_manifest(
        launch_plan.declaration, launch_plan.output, jobs, launch_plan.skips_training_in_splits
    )
    if launch_plan.launcher_name == "slurm":
        launch_plan.launcher(jobs_to_run, variables)
        return [] if jobs_to_run else [s for s in statuses if s.state == states.FAILED]

    last_words: dict[Path, str] = {}
    if jobs_to_run:
        with printing.bar(statuses, launch_plan.declaration.facts):
            endings = launch_plan.launcher(jobs_to_run, variables) or ()
        # Where there could be no attempt, such as for a full disk, only the launcher knows why.
        last_words = {Path(ending.folder): ending.last_words for ending in endings}
        statuses = _statuses(jobs, launch_plan)

    unfinished = [status for status in statuses if status.state != states.DONE]
    return [
        replace(status, detail=status.detail or last_words.get(status.job.folder, ""))
        for status in unfinished
    ]


def write_manifest(
    declaration: Declaration, output: Path, jobs: Sequence[Job], skips: bool | None = None
) -> None:
    """Write the manifest for other commands, and a copy of the sweep file for people.

    ``skips``: whether the jobs leave out the training environments' in-splits.
    """
    sweep = manifest.Sweep(
        jobs=tuple(jobs),
        datasets=declaration.facts,
        selection=tuple(declaration.selection),
        compare_with=tuple(declaration.compare_with),
        algorithms=tuple(declaration.algorithms),
        skip_training_in_splits=skips,
    )
    manifest.add(output, sweep)
    files.save_text(output / "sweep.yaml", declaration.text)


def _load(
    sweep: str | Path | Declaration, launcher: str, options: Mapping[str, Any]
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
    jobs = manifest.reuse_folders(declaration.jobs(data_dir, output), output)
    statuses = states.statuses_of(jobs, declaration.facts, states.queue_of(output))
    return LaunchPlan(
        declaration=declaration,
        output=output,
        launcher=launcher,
        launcher_name=launcher_name,
        statuses=statuses,
        job_variables=job_variables,
        skips_training_in_splits=skips_training_in_splits(output, jobs, skip_training_in_splits),
    )


def _statuses(jobs: Sequence[Job], launch_plan: LaunchPlan) -> list[Status]:
    """The states of the plan's jobs now."""
    queue = states.queue_of(launch_plan.output)
    return states.statuses_of(jobs, launch_plan.declaration.facts, queue)


def _jobs_to_run(statuses: Sequence[Status], launcher_name: str) -> list[Job]:
    """The jobs for a launcher; one that runs jobs here also gets those queued by others."""
    launchable = [states.NOT_LAUNCHED, states.INTERRUPTED]
    if launcher_name in RUN_HERE:
        launchable.append(states.QUEUED)
    return [status.job for status in statuses if status.state in launchable]


def _with_skip_variable(launch_plan: LaunchPlan) -> JobVariables:
    """The plan's job variables, and unless they have it, the one for what is evaluated."""
    skip_variable: dict[str, str] = {}
    if launch_plan.skips_training_in_splits is not None:
        skip_variable[SKIP_VARIABLE] = "1" if launch_plan.skips_training_in_splits else "0"
    return lambda job: {**skip_variable, **launch_plan.job_variables(job)}
