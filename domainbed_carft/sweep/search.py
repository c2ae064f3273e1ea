"""A search in two stages: its choice, the jobs of both stages, and how the second one follows.

The first stage trains every member; the one with the highest mean validation accuracy is trained on
the trials of the second. The choice looks at no target: the first selection method that a sweep
declares and that needs none gives each run's validation accuracy. A mean is over the first stage's
trials and, unless the choice is by target, over the targets. Of equally good members the last
counts, as in DomainBed.
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
from domainbed_carft.sweep.states import queue_of

# The name of the small job among the jobs of a launch, where others have the names of folders.
NAME = "second-stage"


@dataclass(frozen=True)
class StagedJobs:
    """The jobs of a sweep by stage, each in its folder; a sweep without stages has first ones only.

    ``chosen``: None until the first stage is done. Until then the jobs ``second`` stand for those
    that will follow: they train values that are not chosen yet.
    """

    first: Sequence[Job]
    second: Sequence[Job] = ()
    chosen: Sequence[ChosenValues] | None = None

    @property
    def launchable(self) -> list[Job]:
        """The jobs that may be launched now."""
        return [*self.first, *(self.second if self.chosen is not None else ())]

    @property
    def waiting(self) -> Sequence[Job]:
        """The jobs that stand for a second stage whose values are not chosen yet."""
        return self.second if self.chosen is None else ()


def staged_jobs(declaration: Declaration, data_dir: str, output: Path) -> StagedJobs:
    """All jobs of a sweep; chooses among the members of a search whose first stage is done.

    Raises CarftError if that is impossible, as where all members have diverged.
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


def search_entry(declaration: Declaration, jobs: StagedJobs) -> Search | None:
    """A search with stages for the manifest; None if the sweep has none."""
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
    """What a choice is for: a variant's jobs on a dataset, of an algorithm.

    ``test_envs``: those that leave these environments out, None for all.
    """

    cell: str
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...] | None

    def __str__(self) -> str:
        name = " ".join(filter(None, [self.cell, self.algorithm]))
        left_out = ""
        if self.test_envs is not None:
            left_out = f", test environments {' '.join(map(str, self.test_envs))}"
        return f"{name} on {self.dataset}{left_out}"


def choose(jobs: Sequence[Job], method: str, by_target: bool) -> tuple[ChosenValues, ...]:
    """What the finished ``jobs`` of a first stage choose, in the order of their rows.

    ``method``: the name of a selection method that needs no target; ``by_target``: choose for each
    environment left out. Raises CarftError, naming the rows, if no member of a row has validation
    accuracies in all of its jobs, as where all have diverged.
    """
    accuracies_of_row: dict[_Row, dict[Choice, list[float]]] = {}
    for row, choice, accuracy in _validation_accuracies(_runs_of(jobs), method, by_target):
        accuracies_of_row.setdefault(row, {}).setdefault(choice, []).append(accuracy)

    chosen = []
    problems = []
    for row, accuracies_of_choice in accuracies_of_row.items():
        means = {choice: statistics.fmean(each) for choice, each in accuracies_of_choice.items()}
        complete = [choice for choice in sorted(means) if not math.isnan(means[choice])]
        if not complete:
            problems.append(
                f"no member of the search has all validation accuracies: {row}; see carft collect "
                "for runs that diverged, and search other values"
            )
            continue

        best = max(reversed(complete), key=means.__getitem__)  # of equal ones the last
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


def _runs_of(jobs: Sequence[Job]) -> list[RecordedRun]:
    """The runs of these jobs, with the roles of the jobs."""
    job_of_folder = {job.folder: job for job in jobs}
    runs = []
    for run in records.read([job.folder for job in jobs]).runs:
        job = job_of_folder.get(Path(run.folder))
        if job and run.job.key == job.key:
            runs.append(replace(run, job=replace(run.job, role=job.role)))
    return runs


def _validation_accuracies(
    runs: Sequence[RecordedRun], method: str, by_target: bool
) -> Iterator[tuple[_Row, Choice, float]]:
    """The validation accuracy in [0, 1] of each run and target, nan if there is none."""
    runs_of_cell: dict[str, list[RecordedRun]] = {}
    for run in runs:
        runs_of_cell.setdefault(run.job.role.cell, []).append(run)

    for cell, cell_runs in runs_of_cell.items():
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
    """Submit a small job that calls a function after all jobs of the sweep that SLURM has.

    Does nothing if SLURM has none, or has a small job already that waits for all of them.
    """
    queue = queue_of(output)
    waiting_ids = _ids_of_small_jobs(output) & queue.slurm_states.keys()
    job_ids = queue.slurm_states.keys() - waiting_ids
    if not job_ids:
        return

    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
    if waiting_ids and max(map(int, waiting_ids)) > int(arrays[-1]):
        return  # it was submitted after all of them
    job_id = launcher.submit_job(launch_second_stage, output.absolute(), name=NAME, after=arrays)
    print(f"slurm: job {job_id} submits the second stage when these have ended")


def _ids_of_small_jobs(output: Path) -> set[str]:
    """The SLURM ids of all small jobs that were ever submitted and are still listed."""
    launches = launch_file.read(output)
    ids = (launch.jobs.get(NAME) for launch in launches if launch.launcher == "slurm")
    return {job_id for job_id in ids if job_id}
