"""Plan the launch of a sweep, and run the plan."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers, process_variables
from domainbed_carft.errors import CarftError, collect_problems, invalid, raise_for
from domainbed_carft.jobs import manifest, own_methods
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Search
from domainbed_carft.launchers import Launcher
from domainbed_carft.launchers.slurm import Slurm, clear_job_variables
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import (
    costs,
    data_verification,
    declaration_file,
    host,
    printing,
    search,
    states,
)
from domainbed_carft.sweep.costs import CostRow
from domainbed_carft.sweep.data_verification import DataFinding
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.states import Status, SweepState

SKIP_VARIABLE = process_variables.SKIP_TRAINING_IN_SPLITS.name

# The launchers whose jobs do not run on this machine; all others do.
RUN_ELSEWHERE = ("dummy", "slurm")
OWN_LAUNCHER = "a launcher of your own"  # the name of a function that is passed as the launcher

# The interval at which a launch without further jobs checks the jobs of other launches.
OTHER_LAUNCH_POLL_SECONDS = 1.0


def _resolve_skipping(earlier: manifest.Sweep | None, chosen: bool | None) -> bool | None:
    """Return True if the jobs skip the accuracies on the training environments' in-splits.

    The user's choice comes first, then the process variable, then the manifest of earlier launches;
    new sweeps skip them. Returns None if the train of the domainbed in use cannot skip them.
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

    if earlier and earlier.skip_training_in_splits is not None:
        return earlier.skip_training_in_splits
    return True


@dataclass(frozen=True)
class LaunchPlan:
    """A launch before it begins: nothing has been written, and nothing runs.

    Attributes:
        declaration: the declared sweep.
        state: output folder, jobs and search of the sweep when the plan was made. Jobs of a second
            stage are included once the first stage is done.
        waiting_jobs: placeholders for the jobs of a second stage whose values are not chosen yet.
        launcher: the launcher, a function of jobs.
        launcher_name: name of the launcher, such as ``pool``.
        skips_training_in_splits: True if the jobs do not evaluate the training environments'
            in-splits; None if the train of the domainbed in use cannot skip them.
        data_findings: the findings of verifying the datasets.
        launcher_problems: reasons why the launcher cannot run.
        log_problems: reasons why the jobs cannot log.
        plan_again: plans the next launch of the same sweep, such as the second stage's.
    """

    declaration: Declaration
    state: SweepState
    waiting_jobs: Sequence[Job]
    launcher: Launcher
    launcher_name: str
    skips_training_in_splits: bool | None
    data_findings: Sequence[DataFinding]
    launcher_problems: Sequence[str]
    log_problems: Sequence[str]
    plan_again: Callable[[], LaunchPlan]

    @property
    def output(self) -> Path:
        """Output folder of the sweep."""
        return self.state.output

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the sweep, each in its folder."""
        return [status.job for status in self.state.statuses]

    @property
    def jobs_to_run(self) -> list[Job]:
        """The jobs for the launcher.

        A launcher that runs jobs on this machine also takes jobs queued by other launchers.
        """
        launchable = [states.NOT_LAUNCHED, states.INTERRUPTED]
        if self.launcher_name not in RUN_ELSEWHERE:
            launchable.append(states.QUEUED)
        return [status.job for status in self.state.in_state(*launchable)]

    @property
    def data_problems(self) -> list[str]:
        """Broken data, which jobs refuse on every machine."""
        return [finding.broken for finding in self.data_findings if finding.broken]

    @property
    def problems(self) -> list[str]:
        """All problems for which the launch would be refused."""
        problems = [*self.launcher_problems, *self.log_problems]
        for finding in self.data_findings:
            if finding.broken:
                problems.append(finding.broken)
            if finding.missing and self.launcher_name not in RUN_ELSEWHERE:
                problems.append(finding.missing)
        return problems

    def estimate_costs(self, preflight: Preflight | None = None) -> dict[CostRow, Cost]:
        """Estimate jobs, steps, images and hours by variant, dataset and algorithm, and in total.

        Args:
            preflight: measured costs for jobs of which there are no records.
        """
        facts = self.declaration.facts
        waiting = [states.get_status(job, facts) for job in self.waiting_jobs]
        skips = bool(self.skips_training_in_splits)
        return costs.estimate([*self.state.statuses, *waiting], facts, skips, preflight)


def plan(
    sweep: AnyPath | Declaration,
    data_dir: AnyPath | None,
    output: AnyPath,
    launcher: str | Launcher = "pool",
    options: Mapping[str, Any] | None = None,
    *,
    keep_weights: str | None = None,
    log: Sequence[str] = (),
    skip_training_in_splits: bool | None = None,
) -> LaunchPlan:
    """Plan the launch of a sweep, without writing or starting anything.

    Args:
        sweep: a sweep file, the name of an included sweep, or a declaration.
        data_dir: folder that contains the datasets' folders; None if no dataset needs one.
        output: output folder of the sweep.
        launcher: ``local``, ``pool``, ``slurm``, ``dummy``, or a function that runs jobs.
        options: the launcher's options, such as ``{"jobs": 2}``.
        keep_weights: weights that each job keeps: ``both``, ``last``, ``best`` or ``none``; None
            for the jobs' default.
        log: scalar logs of the jobs: ``tensorboard``, ``wandb`` or both.
        skip_training_in_splits: False to also evaluate the training environments' in-splits; None
            for the process variable, the sweep's earlier launches, or True.

    Returns:
        The jobs with their states, the checks of the data, and the problems for which the launch
        would be refused.

    Raises:
        CarftError: all problems of the declaration, the launcher and its options.
    """
    output = as_path(output)
    declaration, run_jobs = _load(sweep, launcher, options)

    if data_dir is None:
        data_dir = data_verification.default_data_dir(declaration.datasets)
    data_dir = os.fspath(as_path(data_dir))
    earlier, known_jobs = manifest.read_jobs(output) if output.is_dir() else (None, [])
    skips = _resolve_skipping(earlier, skip_training_in_splits)

    first, second, entry = search.make_jobs(declaration, data_dir, output, known_jobs)
    all_jobs = [
        replace(job, variables=_get_variables(job, output, keep_weights, log, skips))
        for job in [*first, *second]
    ]
    is_waiting = entry is not None and entry.is_choosing
    jobs = all_jobs[: len(first)] if is_waiting else all_jobs

    return LaunchPlan(
        declaration=declaration,
        state=states.get_state(output, jobs, declaration.facts, entry),
        waiting_jobs=all_jobs[len(jobs) :],
        launcher=run_jobs,
        launcher_name=launcher if isinstance(launcher, str) else OWN_LAUNCHER,
        skips_training_in_splits=skips,
        data_findings=data_verification.verify_datasets(declaration.datasets, all_jobs, data_dir),
        launcher_problems=launchers.problems(run_jobs, [output]),
        # Each job would refuse a train that cannot log, or a missing library.
        log_problems=host.import_module("lib.scalar_logs").problems(log) if log else (),
        plan_again=functools.partial(
            plan,
            declaration,
            data_dir,
            output,
            launcher,
            options,
            keep_weights=keep_weights,
            log=log,
            skip_training_in_splits=skips,
        ),
    )


def _load(
    sweep: AnyPath | Declaration, launcher: str | Launcher, options: Mapping[str, Any] | None
) -> tuple[Declaration, Launcher]:
    """Load a declaration and a launcher; raise CarftError with the problems of both."""
    try:
        declaration = sweep if isinstance(sweep, Declaration) else declaration_file.load(sweep)
    except CarftError as error:
        launcher_problems = collect_problems(launchers.make, launcher, options)
        raise CarftError(*error.problems, *launcher_problems) from error
    return declaration, launchers.make(launcher, options)


def _get_variables(
    job: Job, output: Path, keep_weights: str | None, log: Sequence[str], skips: bool | None
) -> dict[str, str]:
    """Return a job's process variables: settings that are not part of its identity."""
    variables = {
        process_variables.KEEP_WEIGHTS.name: keep_weights,
        process_variables.LOG.name: " ".join(log),
    }
    if "wandb" in log and "WANDB_RUN_GROUP" not in os.environ:
        variables["WANDB_RUN_GROUP"] = f"{output.absolute().name}/{job.variant}".rstrip("/")
    if skips is not None:
        variables[SKIP_VARIABLE] = str(int(skips))
    return {name: value for name, value in variables.items() if value}


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

    Raises:
        CarftError: the jobs could not be started, or the second stage could not be planned.
    """
    if launch_plan.launcher_name == "dummy":
        launch_plan.launcher(launch_plan.jobs_to_run)
        return []

    write_manifest(
        launch_plan.declaration,
        launch_plan.output,
        launch_plan.jobs,
        launch_plan.skips_training_in_splits,
        launch_plan.state.search,
    )
    if launch_plan.launcher_name == "slurm":
        return _submit(launch_plan)

    unfinished = _run_here(launch_plan)
    if launch_plan.waiting_jobs and not unfinished:
        return run_plan(launch_plan.plan_again())
    return unfinished


def _submit(launch_plan: LaunchPlan) -> list[Status]:
    """Submit the jobs to SLURM, and a small job for a second stage; return failed jobs if none."""
    jobs = launch_plan.jobs_to_run
    launch_plan.launcher(jobs)
    if launch_plan.waiting_jobs and isinstance(launch_plan.launcher, Slurm):
        second_launch = functools.partial(
            launch_second_stage, launch_plan.plan_again, own_methods.get_variables()
        )
        search.submit(launch_plan.launcher, launch_plan.output, second_launch)
    return [] if jobs else launch_plan.state.in_state(states.FAILED)


def launch_second_stage(
    plan_again: Callable[[], LaunchPlan], method_variables: Mapping[str, str]
) -> None:
    """Submit the jobs of a second stage, in the small SLURM job after the first stage.

    Raises CarftError, shown in SLURM's log, if the first stage is not done or SLURM refuses.
    """
    clear_job_variables()
    os.environ.update(method_variables)

    launch_plan = plan_again()
    if launch_plan.waiting_jobs:
        counts = printing.counts_phrase(launch_plan.state.statuses)
        raise CarftError(f"the first stage is not done: {counts}; launch the sweep again")
    raise_for(launch_plan.problems)
    run_plan(launch_plan)


def _run_here(launch_plan: LaunchPlan) -> list[Status]:
    """Run the jobs on this machine, and wait for other launches; return the same as `run_plan`."""
    jobs, facts = launch_plan.jobs_to_run, launch_plan.declaration.facts
    state = launch_plan.state
    last_words: dict[Path, str] = {}
    if jobs or state.in_state(states.RUNNING):
        with printing.show_progress(state.statuses, facts):
            ends = launch_plan.launcher(jobs) if jobs else None
            state = states.get_state(launch_plan.output, launch_plan.jobs, facts)
            while state.queue.live_launches and state.in_state(states.RUNNING):
                time.sleep(OTHER_LAUNCH_POLL_SECONDS)
                state = states.get_state(launch_plan.output, launch_plan.jobs, facts)
        # If no attempt could be noted, such as on a full disk, only the launcher has the reason.
        last_words = {Path(end.folder): end.last_words for end in ends or ()}

    return [
        replace(status, detail=status.detail or last_words.get(status.job.folder, ""))
        for status in state.statuses
        if status.state != states.DONE
    ]


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
