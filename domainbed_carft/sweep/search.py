"""Search hyperparameters in two stages.

The first stage trains every member of the search, and the second stage trains the member with the
highest mean validation accuracy on other trials. The mean is over the first stage's trials and,
unless the search chooses by target, over the targets. Validation accuracies come from the first
declared selection rule that does not look at the target. If members are equally good, the last
one is chosen, as in DomainBed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import Choice, Job
from domainbed_carft.jobs.job_folder import JobFolder
from domainbed_carft.jobs.manifest import ChosenValues, Search
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.launchers import launch_file
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.results import selection
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import read_queue

# Other jobs of a launch have the names of their folders.
NAME = "second-stage"


# The jobs among which one choice is made: of a variant, dataset and algorithm, and of a target
# (None for all targets).
_Row = tuple[str, str, str, tuple[int, ...] | None]


def make_jobs(
    declaration: Declaration, data_dir: str, output: Path, known_jobs: Sequence[Job] = ()
) -> tuple[list[Job], list[Job], Search | None]:
    """Make the jobs of both stages of a sweep, and choose values if the first stage is done.

    Args:
        declaration: the declared sweep.
        data_dir: folder that contains the datasets' folders.
        output: output folder of the sweep.
        known_jobs: jobs of earlier launches, whose folders are used again.

    Returns:
        The jobs of the first stage, which are all jobs of a sweep without stages; the jobs of the
        second stage; and the manifest's entry for a search with stages. While the search is
        choosing, the second stage consists of placeholders.

    Raises:
        CarftError: no values can be chosen, for example because all members diverged.
    """
    first = manifest.reuse_folders(declaration.jobs(data_dir, output), known_jobs)
    search = declaration.search
    if search is None or not declaration.has_stages:
        return first, [], None

    rule = str(declaration.choosing_rule)
    chosen: tuple[ChosenValues, ...] = ()
    is_choosing = not all(JobFolder(job.folder).done for job in first)
    if not is_choosing:
        chosen = choose(first, rule, by_target=search.choose_by == "target")
    second = declaration.jobs(data_dir, output, chosen)
    entry = Search(
        rule=rule,
        choose_by=search.choose_by,
        choose_on=tuple(declaration.choosing_trials),
        repeat_on=tuple(declaration.trial_seeds),
        repeats=len(second),
        is_choosing=is_choosing,
        chosen=chosen,
    )
    return first, manifest.reuse_folders(second, known_jobs), entry


def choose(jobs: Sequence[Job], rule: str, by_target: bool) -> tuple[ChosenValues, ...]:
    """Choose values from the finished ``jobs`` of a first stage, in the order of their rows.

    Args:
        jobs: the jobs of the first stage.
        rule: name of a selection rule that does not look at the target.
        by_target: True to choose separately for each target.

    Raises:
        CarftError: in these rows no member has validation accuracies in all jobs, for example
            because all members diverged.
    """
    accuracies_by_row: dict[_Row, dict[Choice, list[float]]] = {}
    for row, choice, accuracy in _validation_accuracies(_read_runs(jobs), rule, by_target):
        accuracies_by_row.setdefault(row, {}).setdefault(choice, []).append(accuracy)

    rows_without_runs = {
        (job.role.cell, job.key.dataset, job.key.algorithm, None) for job in jobs
    } - {(*row[:3], None) for row in accuracies_by_row}
    accuracies_by_row.update((row, {}) for row in sorted(rows_without_runs))

    chosen = []
    problems: list[str] = []
    for row, accuracies_by_choice in accuracies_by_row.items():
        try:
            chosen.append(_choose_member(row, accuracies_by_choice))
        except CarftError as error:
            problems += error.problems
    raise_for(problems)
    return tuple(chosen)


def _choose_member(
    row: _Row, accuracies_by_choice: Mapping[Choice, Sequence[float]]
) -> ChosenValues:
    """Choose the member of a row with the highest mean accuracy; nan if a run has none."""
    cell, dataset, algorithm, test_envs = row
    means = {choice: statistics.fmean(each) for choice, each in accuracies_by_choice.items()}
    complete = [choice for choice in sorted(means) if not math.isnan(means[choice])]
    if not complete:
        place = f"{' '.join(filter(None, [cell, algorithm]))} on {dataset}"
        if test_envs is not None:
            place += f", test environments {' '.join(map(str, test_envs))}"
        raise CarftError(
            "no member of the search has validation accuracies in all of its runs: "
            f"{place}; see carft collect for runs that diverged, and search other values"
        )

    best = max(reversed(complete), key=means.__getitem__)  # the last of equally good members
    return ChosenValues(
        cell=cell,
        dataset=dataset,
        algorithm=algorithm,
        test_envs=test_envs,
        values=best.searched_values,
        members=len(means),
        validation=means[best],
    )


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
    runs: Sequence[RecordedRun], rule: str, by_target: bool
) -> Iterator[tuple[_Row, Choice, float]]:
    """Iterate over the validation accuracies in [0, 1] of runs and targets; nan if missing."""
    runs_by_cell: dict[str, list[RecordedRun]] = {}
    for run in runs:
        runs_by_cell.setdefault(run.job.role.cell, []).append(run)

    for cell, cell_runs in runs_by_cell.items():
        for run in cell_runs:
            if not run.test_envs:
                row: _Row = (cell, run.dataset, run.algorithm, None)
                yield row, run.job.choice, selection.final_out_accuracy(run)

        for candidates in selection.candidates_by_target(cell_runs):
            for choice, run in candidates.singles.items():
                test_envs = tuple(sorted(run.test_envs)) if by_target else None
                row = (cell, run.dataset, run.algorithm, test_envs)
                outcome = selection.METHODS[rule].outcome(candidates, choice)
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
