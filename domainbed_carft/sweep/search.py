"""Search hyperparameters in two stages.

The first stage trains every member of the search, and the second stage trains the member with the
highest mean validation accuracy on other trials. The mean is over the first stage's trials and,
unless the search chooses by target, over the targets. Validation accuracies come from the first
declared selection method that does not look at the target. If members are equally good, the last
one is chosen, as in DomainBed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from domainbed_carft.errors import raise_for
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.job import Choice, Job
from domainbed_carft.jobs.manifest import ChosenValues, Search
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.launchers import launch_file
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.results import selection
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import read_queue

# Other jobs of a launch have the names of their folders.
NAME = "second-stage"


@dataclass(frozen=True)
class StagedJobs:
    """The jobs of a sweep by stage, each in its folder; without stages all jobs are first ones."""

    first: Sequence[Job]
    second: Sequence[Job] = ()  # placeholders until values are chosen
    chosen: Sequence[ChosenValues] | None = None  # None until the first stage is done

    @property
    def launchable(self) -> list[Job]:
        """The jobs that can be launched now."""
        return [*self.first, *(self.second if self.chosen is not None else ())]

    @property
    def waiting(self) -> Sequence[Job]:
        """Placeholders for the jobs of a second stage whose values are not chosen yet."""
        return self.second if self.chosen is None else ()


def make_staged_jobs(declaration: Declaration, data_dir: str, output: Path) -> StagedJobs:
    """Make all jobs of a sweep, and choose values if the first stage of a search is done.

    Raises CarftError if no values can be chosen, for example because all members diverged.
    """
    first = manifest.reuse_folders(declaration.jobs(data_dir, output), output)
    if not declaration.has_stages:
        return StagedJobs(first)

    if not all(JobFolder(job.folder).done for job in first):
        return StagedJobs(first, declaration.repeated_jobs(data_dir, output, chosen=()))

    by_target = declaration.search is not None and declaration.search.choose_by == "target"
    chosen = choose(first, str(declaration.choosing_method), by_target)
    second = declaration.repeated_jobs(data_dir, output, chosen)
    return StagedJobs(first, manifest.reuse_folders(second, output), chosen)


def make_manifest_entry(declaration: Declaration, jobs: StagedJobs) -> Search | None:
    """Make the manifest's entry for a search with stages; None for a sweep without stages."""
    search = declaration.search
    if search is None or not declaration.has_stages:
        return None
    return Search(
        method=str(declaration.choosing_method),
        choose_by=search.choose_by,
        choose_on=tuple(declaration.choosing_trials),
        repeat_on=tuple(declaration.trial_seeds),
        repeats=len(jobs.second),
        chosen=tuple(jobs.chosen or ()),
    )


@dataclass(frozen=True)
class _Row:
    """The jobs among which one choice is made: of a variant, dataset and algorithm."""

    cell: str
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...] | None  # None for a choice over all targets

    def __str__(self) -> str:
        name = " ".join(filter(None, [self.cell, self.algorithm]))
        held_out = ""
        if self.test_envs is not None:
            held_out = f", test environments {' '.join(map(str, self.test_envs))}"
        return f"{name} on {self.dataset}{held_out}"


def choose(jobs: Sequence[Job], method: str, by_target: bool) -> tuple[ChosenValues, ...]:
    """Choose values from the finished ``jobs`` of a first stage, in the order of their rows.

    Args:
        jobs: the jobs of the first stage.
        method: name of a selection method that does not look at the target.
        by_target: True to choose separately for each target.

    Raises:
        CarftError: in these rows no member has validation accuracies in all jobs, for example
            because all members diverged.
    """
    accuracies_by_row: dict[_Row, dict[Choice, list[float]]] = {}
    for row, choice, accuracy in _validation_accuracies(_read_runs(jobs), method, by_target):
        accuracies_by_row.setdefault(row, {}).setdefault(choice, []).append(accuracy)

    chosen = []
    problems = []
    for row, accuracies_by_choice in accuracies_by_row.items():
        means = {choice: statistics.fmean(each) for choice, each in accuracies_by_choice.items()}
        complete = [choice for choice in sorted(means) if not math.isnan(means[choice])]
        if not complete:
            problems.append(
                f"no member of the search has validation accuracies in all of its runs: {row}; "
                "see carft collect for runs that diverged, and search other values"
            )
            continue

        best = max(reversed(complete), key=means.__getitem__)  # the last of equally good members
        chosen.append(
            ChosenValues(
                cell=row.cell,
                dataset=row.dataset,
                algorithm=row.algorithm,
                test_envs=row.test_envs,
                values=best.searched_values,
                members=len(means),
                validation=means[best],
            )
        )
    raise_for(problems)
    return tuple(chosen)


def _read_runs(jobs: Sequence[Job]) -> list[RecordedRun]:
    """Read the runs of these jobs, and give them the roles of the jobs."""
    job_by_folder = {job.folder: job for job in jobs}
    runs = []
    for run in records.read([job.folder for job in jobs]).runs:
        job = job_by_folder.get(Path(run.folder))
        if job and run.job.key == job.key:
            runs.append(replace(run, job=replace(run.job, role=job.role)))
    return runs


def _validation_accuracies(
    runs: Sequence[RecordedRun], method: str, by_target: bool
) -> Iterator[tuple[_Row, Choice, float]]:
    """Iterate over the validation accuracies in [0, 1] of runs and targets; nan if missing."""
    runs_by_cell: dict[str, list[RecordedRun]] = {}
    for run in runs:
        runs_by_cell.setdefault(run.job.role.cell, []).append(run)

    for cell, cell_runs in runs_by_cell.items():
        for run in cell_runs:
            if not run.test_envs:
                row = _Row(cell, run.dataset, run.algorithm, test_envs=None)
                yield row, run.job.choice, selection.final_out_accuracy(run)

        for candidates in selection.candidates_by_target(cell_runs):
            for choice, run in candidates.singles.items():
                test_envs = tuple(sorted(run.test_envs)) if by_target else None
                row = _Row(cell, run.dataset, run.algorithm, test_envs)
                outcome = selection.METHODS[method].outcome(candidates, choice)
                yield row, choice, outcome.validation if outcome else math.nan


def submit(launcher: Slurm, output: Path, launch_second_stage: Callable[[], None]) -> None:
    """Submit a small job that calls a function after all jobs that the sweep has in SLURM.

    Does nothing if the sweep has no jobs in SLURM, or if a small job already waits for all of them.
    """
    queue = read_queue(output)
    waiting_ids = _read_small_job_ids(output) & queue.slurm_states.keys()
    job_ids = queue.slurm_states.keys() - waiting_ids
    if not job_ids:
        return

    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
    if waiting_ids and max(map(int, waiting_ids)) > int(arrays[-1]):
        return  # a small job was submitted after all of these
    job_id = launcher.submit_job(launch_second_stage, output.absolute(), name=NAME, after=arrays)
    print(f"slurm: job {job_id} submits the second stage when these have ended")


def _read_small_job_ids(output: Path) -> set[str]:
    """Read the SLURM ids of all small jobs from the launch files."""
    launches = launch_file.read(output)
    ids = (launch.jobs.get(NAME) for launch in launches if launch.launcher == "slurm")
    return {job_id for job_id in ids if job_id}
