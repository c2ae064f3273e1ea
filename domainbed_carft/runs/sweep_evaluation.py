"""All selected runs of a sweep, evaluated picture by picture: several at a time, resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.errors import Problem
from domainbed_carft.jobs.folder import RECORDS, WEIGHTS
from domainbed_carft.jobs.manifest import NAME as MANIFEST
from domainbed_carft.results import collection, selection
from domainbed_carft.results.collection import Group
from domainbed_carft.results.run_figures import SplitFigures
from domainbed_carft.runs import evaluate_job
from domainbed_carft.runs.evaluation_processes import (
    EvaluationEnd,
    EvaluationProcesses,
    RunStep,
    SweepOptions,
)


@dataclass(frozen=True)
class EvaluatedRun:
    """One selected run of a table, and its figures on the environment left out.

    ``environment``: the label of the column; ``figures``: None where there is a ``problem``.
    """

    setting: str
    method: str
    dataset: str
    algorithm: str
    environment: str
    target: int
    trial: int
    run_step: RunStep
    figures: SplitFigures | None
    problem: Problem | None = None

    def as_dict(self) -> dict[str, Any]:
        """The run and its figures, for JSON; accuracies are shares of 1."""
        return {
            "setting": self.setting,
            "selection": self.method,
            "dataset": self.dataset,
            "algorithm": self.algorithm,
            "environment": self.environment,
            "trial": self.trial,
            "folder": str(self.run_step.folder),
            "step": self.run_step.step,
            "figures": dataclasses.asdict(self.figures) if self.figures else None,
            "problem": str(self.problem) if self.problem else None,
        }


@dataclass(frozen=True)
class SweepEvaluation:
    """The selected runs of a sweep, in the order of its tables."""

    folder: Path
    threshold: float
    runs: list[EvaluatedRun]
    measured: int = 0
    current: int = 0

    @property
    def problems(self) -> dict[RunStep, Problem]:
        """Why runs have no figures."""
        return {run.run_step: run.problem for run in self.runs if run.problem}

    def as_dict(self) -> dict[str, Any]:
        """The evaluation, for JSON."""
        return {
            "sweep": str(self.folder),
            "threshold": self.threshold,
            "measured": self.measured,
            "current": self.current,
            "runs": [run.as_dict() for run in self.runs],
        }


def is_sweep_folder(path: Path) -> bool:
    """Whether a path is the output folder of a sweep, and not that of a job."""
    if not path.is_dir() or any((path / name).exists() for name in (RECORDS, *WEIGHTS.values())):
        return False
    has_jobs = any(True for pattern in ("*", "*/*") for _ in path.glob(f"{pattern}/{RECORDS}"))
    return has_jobs or (path / MANIFEST).exists()


def evaluate_sweep(folder: Path, options: SweepOptions) -> SweepEvaluation:
    """Evaluate every run that a selection method chose, unless its figures are there and true.

    A run that cannot be evaluated has a problem instead. Raises CarftError if there is no record,
    or for an unknown selection method; KeyboardInterrupt and SystemExit after signals, which lose
    only the runs in progress.
    """
    gathered = collection.gather([folder], options.methods)
    labels = {group.title: group.environments for group in gathered.groups}
    selected = [
        (group, method, chosen)
        for group in gathered.groups
        for method in gathered.methods
        for chosen in _selected_in_order(group, method, list(labels[group.title]))
    ]
    run_steps = dict.fromkeys(_run_step(chosen) for _, _, chosen in selected)
    ended = EvaluationProcesses(list(run_steps), options).run()

    runs = [
        _evaluated_run(group, method, chosen, labels[group.title], ended.get(_run_step(chosen)))
        for group, method, chosen in selected
    ]
    statuses = [end.status for end in ended.values()]
    return SweepEvaluation(
        folder=folder,
        threshold=options.threshold,
        runs=runs,
        measured=statuses.count(0),
        current=statuses.count(evaluate_job.CURRENT),
    )


def _selected_in_order(
    group: Group, method: str, datasets: Sequence[str]
) -> list[selection.Selected]:
    """What a method selects from a group, in the order of its tables, rows, columns and trials."""
    selected = group.selected(method)
    rows = group.ordered(chosen.row for chosen in selected)
    return sorted(
        selected,
        key=lambda chosen: (
            datasets.index(chosen.dataset),
            rows.index(chosen.row),
            chosen.target,
            chosen.trial,
        ),
    )


def _run_step(chosen: selection.Selected) -> RunStep:
    return RunStep(Path(chosen.outcome.run.folder), int(chosen.outcome.step))


def _evaluated_run(
    group: Group,
    method: str,
    chosen: selection.Selected,
    labels: Mapping[str, Sequence[str]],
    end: EvaluationEnd | None,
) -> EvaluatedRun:
    figures = end.figures if end else None
    split_figures = figures.of_environment(chosen.target) if figures else None
    problem = end.problem if end else Problem(message="not evaluated: the command was stopped")
    if split_figures is None and problem is None:
        problem = Problem(message=f"environment {chosen.target} has no pictures")

    return EvaluatedRun(
        setting=group.title,
        method=method,
        dataset=chosen.dataset,
        algorithm=chosen.row,
        environment=labels[chosen.dataset][chosen.target],
        target=chosen.target,
        trial=chosen.trial,
        run_step=_run_step(chosen),
        figures=split_figures,
        problem=problem,
    )
