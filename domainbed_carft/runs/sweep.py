"""Evaluate the selected runs of a sweep, several at a time: image by image, or on a suite.

The results of a run are saved in its folder at once, so that an interrupted command can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from domainbed_carft.clips import open_clip, openai
from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import load_run_metrics
from domainbed_carft.results.groups import Group
from domainbed_carft.results.metrics import ImageSetMetrics
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.suites import selected_runs
from domainbed_carft.runs.pool import Task, TaskEnd, run_tasks
from domainbed_carft.runs.suite_files import measure_recorded_run_on_suite
from domainbed_carft.runs.sweep_run import SweepOptions, measure_recorded_run
from domainbed_carft.suites import catalogue


@dataclass(frozen=True)
class SelectedScores:
    """The metrics of a selected run at its step; ``dataclasses.asdict`` makes the JSON.

    Attributes:
        setting: title of the group of runs, the heading of its tables.
        selection: name of the selection rule.
        dataset: name of the dataset.
        algorithm: name of the row.
        environment: label of the column.
        target: number of that environment.
        trial: the trial seed.
        folder: folder of the run's job.
        step: the selected step.
        metrics: metrics on the target, or on the column's environment if the job has no target;
            None if there is a problem.
        in_domain: mean accuracy over the out-splits of the training environments, without
            augmentation, or None.
        problem: reason why the run could not be evaluated, or None.
    """

    setting: str
    selection: str
    dataset: str
    algorithm: str
    environment: str
    target: int
    trial: int
    folder: str
    step: int
    metrics: ImageSetMetrics | None = None
    in_domain: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class SweepScores:
    """The selected runs of a sweep, in the order of its tables.

    Attributes:
        measured: number of runs that were evaluated by this call.
        current: number of runs whose earlier evaluation was still valid.
        runs: the selected runs with their metrics.
    """

    measured: int
    current: int
    runs: list[SelectedScores]


def measure_sweep(
    collected: Collection, options: SweepOptions, jobs: int | None = None
) -> SweepScores:
    """Evaluate every selected run, as `evaluate.evaluate_sweep` does."""
    _require_original(options.original)
    selected: list[tuple[Group, str, SelectedRun]] = []
    tasks: dict[str, Task] = {}  # several rules can select the same run
    names = []
    for group in collected.groups:
        for rule in collected.rules:
            for chosen in group.select_in_table_order(rule):
                step = int(chosen.outcome.step)
                names.append(f"{chosen.run.folder}, step {step}")
                tasks[names[-1]] = partial(measure_recorded_run, chosen.run, step, options)
                selected.append((group, rule, chosen))

    ends = run_tasks(tasks, jobs)
    return SweepScores(
        measured=sum(end.was_measured for end in ends.values()),
        current=sum(not (end.was_measured or end.problem) for end in ends.values()),
        runs=[_read_scores(*parts, ends[name]) for parts, name in zip(selected, names)],
    )


def _require_original(name: str | None) -> None:
    if name is None or name.startswith(open_clip.PREFIX) or name in openai.PUBLISHED:
        return
    if not Path(name).is_file():
        raise CarftError(
            invalid("original", name, "an existing file, or the name of a CLIP checkpoint")
        )


def _read_scores(group: Group, rule: str, chosen: SelectedRun, end: TaskEnd) -> SelectedScores:
    """Return a selected run with the metrics that are saved in its folder."""
    scores = SelectedScores(
        setting=group.title,
        selection=rule,
        dataset=chosen.dataset,
        algorithm=chosen.row,
        environment=group.environments[chosen.dataset][chosen.target],
        target=chosen.target,
        trial=chosen.trial,
        folder=chosen.run.folder,
        step=int(chosen.outcome.step),
    )
    if end.problem:
        return replace(scores, problem=end.problem)
    try:
        metrics = load_run_metrics(chosen)
    except CarftError as error:
        return replace(scores, problem=str(error))
    on_target = metrics.get_environment(chosen.target)
    if on_target is None:
        return replace(scores, problem=f"environment {chosen.target} has no images")
    return replace(scores, metrics=on_target, in_domain=metrics.in_domain)


def measure_sweep_on_suite(
    groups: Sequence[Group], suite: str, options: SweepOptions, jobs: int | None = None
) -> dict[str, TaskEnd]:
    """Evaluate each run that validation chose on the sets of a suite that it was not trained on.

    The evaluations are saved in the jobs' folders. Runs with a current one are skipped. Problems of
    one run do not affect the others.

    Returns:
        By folder of the run, the end of its evaluation.

    Raises:
        CarftError: if the suite is unknown, or the original CLIP model does not exist.
    """
    catalogue.get(suite)
    _require_original(options.original)
    tasks = {
        selected.run.folder: partial(
            measure_recorded_run_on_suite,
            selected.run,
            int(selected.outcome.step),
            suite,
            trained_on,
            options,
        )
        for group in groups
        for selected, trained_on in selected_runs(group)
    }
    return run_tasks(tasks, jobs)
