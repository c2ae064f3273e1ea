"""A launch before it begins: its jobs, their states, the verdicts on its data, and problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft.errors import Problem
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import Launcher
from domainbed_carft.sweep import costs, states
from domainbed_carft.sweep.costs import Cost, Group
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.job_settings import SKIP_VARIABLE, JobVariables
from domainbed_carft.sweep.preflight_file import Preflight
from domainbed_carft.sweep.stages import StagedJobs
from domainbed_carft.sweep.states import Status

RUN_HERE = ("local", "pool")


@dataclass(frozen=True)
class LaunchPlan:
    """A launch before it begins: nothing has been written, and nothing runs.

    ``statuses`` are the states of all jobs of the sweep when the plan was made, ``verdicts`` those
    on its data. Of a search with stages the second one's jobs are known, and have states, once the
    first is done; ``command`` has the words after ``carft`` that launch them then.
    ``skips_training_in_splits`` is None for a domainbed that cannot. ``log_problems`` and
    ``launcher_problems`` are why the jobs could not log, and why the launcher could not run.
    """

    declaration: Declaration
    data_dir: str
    output: Path
    launcher: Launcher
    launcher_name: str
    staged_jobs: StagedJobs
    statuses: Sequence[Status]
    job_variables: JobVariables
    skips_training_in_splits: bool | None
    verdicts: Sequence[DataVerdict] = ()
    launcher_problems: Sequence[Problem] = ()
    log_problems: Sequence[Problem] = ()
    command: Sequence[str] = ()

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
        """The jobs that the launcher gets."""
        return launchable_jobs(self.statuses, self.launcher_name)

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

    def variables(self, job: Job) -> dict[str, str]:
        """The process variables of a job: one for what is evaluated, unless the plan's set it."""
        skip_variable: dict[str, str] = {}
        if self.skips_training_in_splits is not None:
            skip_variable[SKIP_VARIABLE] = "1" if self.skips_training_in_splits else "0"
        return {**skip_variable, **self.job_variables(job)}

    def costs(self, preflight: Preflight | None = None) -> dict[Group, Cost]:
        """Jobs, steps, pictures and hours of each variant, data set and algorithm, and of all.

        ``preflight``: the sweep's rehearsal, for what no record tells.
        """
        facts = self.declaration.facts
        waiting = [states.status(job, facts) for job in self.waiting_jobs]
        skips = bool(self.skips_training_in_splits)
        return costs.costs([*self.statuses, *waiting], facts, skips, preflight)


def launchable_jobs(statuses: Sequence[Status], launcher_name: str) -> list[Job]:
    """The jobs for a launcher; one that runs jobs here also gets those queued by others."""
    launchable = [states.NOT_LAUNCHED, states.INTERRUPTED]
    if launcher_name in RUN_HERE:
        launchable.append(states.QUEUED)
    return [status.job for status in statuses if status.state in launchable]
