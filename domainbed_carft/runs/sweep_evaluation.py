"""All selected runs of a sweep, evaluated picture by picture: several at a time, resumable.

Each run is evaluated by a process of its own, a fork of a server that has imported torch. What it
measured is in its folder when it ends, so an interrupted command goes on where it was.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError, Problem, raise_for
from domainbed_carft.jobs.folder import RECORDS, WEIGHTS, last_line
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.manifest import NAME as MANIFEST
from domainbed_carft.launchers.children import Children, stopping
from domainbed_carft.results import (
    alignment,
    collection,
    order,
    picture_rows,
    run_figures,
    selection,
)
from domainbed_carft.results.run_figures import RunFigures, SplitFigures
from domainbed_carft.results.settings import Group
from domainbed_carft.runs import BATCH_SIZE, evaluate_job
from domainbed_carft.text import log, progress


@dataclass(frozen=True)
class SweepOptions:
    """How the runs of a sweep are evaluated.

    ``methods``: names of selection methods; None for those that the tables show. ``threshold``: the
    alignment that divides pictures in and out of pre-training. ``original``: the CLIP that the runs
    started from, needed unless that is a published one. ``jobs``, ``gpus``, ``jobs_per_gpu``: how
    many runs at a time, as of the pool. Others as in `measuring.LoadingOptions`.
    """

    methods: Sequence[str] | None = None
    threshold: float = alignment.THRESHOLD
    device: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    original: str | None = None
    jobs: int | None = None
    gpus: int | None = None
    jobs_per_gpu: int | None = None


@dataclass(frozen=True, order=True)
class RunStep:
    """The folder of a run, and the step whose weights were selected."""

    folder: Path
    step: int


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
    temperature: float | None = None
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
            "temperature": self.temperature,
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
    selected = [
        (group, method, chosen)
        for group in gathered.groups
        for method in gathered.methods
        for chosen in selection.select(group.runs, method)
    ]
    run_steps = dict.fromkeys(_run_step(chosen) for _, _, chosen in selected)
    ended = _Evaluations(list(run_steps), options).run()

    labels = {}
    for group in gathered.groups:
        labels[group.title] = order.environment_labels(group.runs, group.planned, group.labels)
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


def _run_step(chosen: selection.Selected) -> RunStep:
    return RunStep(Path(chosen.outcome.runs[0].folder), int(chosen.outcome.step))


@dataclass(frozen=True)
class _End:
    """How the process of a run ended: its exit status, and the problem that it reported."""

    status: int
    problem: Problem | None = None
    figures: RunFigures | None = None


def _evaluated_run(
    group: Group,
    method: str,
    chosen: selection.Selected,
    labels: Mapping[str, Sequence[str]],
    end: _End | None,
) -> EvaluatedRun:
    figures = end.figures if end else None
    split_figures = figures.of_environment(chosen.target) if figures else None
    problem = end.problem if end else Problem(message="not evaluated: the command was stopped")
    if split_figures is None and problem is None:
        problem = Problem(message=f"environment {chosen.target} has no pictures")

    temperature = figures.facts.temperature if figures else None
    return EvaluatedRun(
        setting=group.title,
        method=method,
        dataset=chosen.dataset,
        algorithm=chosen.algorithm,
        environment=labels[chosen.dataset][chosen.target],
        target=chosen.target,
        trial=chosen.trial,
        run_step=_run_step(chosen),
        figures=split_figures,
        temperature=temperature.value if temperature else None,
        problem=problem,
    )


@dataclass
class _Evaluations:
    """The processes that evaluate runs, one at a time in each slot of the pool."""

    run_steps: Sequence[RunStep]
    options: SweepOptions
    ended: dict[RunStep, _End] = field(default_factory=dict)

    def run(self) -> dict[RunStep, _End]:
        """How each run ended."""
        options = self.options
        pool: Any = launchers.make(
            "pool",
            {"jobs": options.jobs, "gpus": options.gpus, "jobs_per_gpu": options.jobs_per_gpu},
        )
        raise_for(pool.problems())
        slots = pool.slots(len(self.run_steps)) if self.run_steps else []
        waiting = deque(self.run_steps)
        fork_server = ForkServer(detached=True, module=evaluate_job.MODULE)
        children = Children(fork_server)
        bar = progress(total=len(waiting), unit="run", description="evaluate", delay=2)

        def work(slot: Mapping[str, str]) -> None:
            while children.stopped_by is None:
                try:
                    run_step = waiting.popleft()
                except IndexError:  # no run is waiting
                    return
                self.ended[run_step] = self._evaluate(run_step, slot, children)
                bar.update()

        workers = ThreadPoolExecutor(max_workers=max(1, len(slots)))
        with fork_server, stopping(children, "evaluate"), workers, bar:
            for _ in workers.map(work, slots):
                pass
        return self.ended

    def _evaluate(self, run_step: RunStep, slot: Mapping[str, str], children: Children) -> _End:
        """Evaluate one run in a process, then make its figures of its rows."""
        status, message = _run_process(self._command(run_step), slot, children)
        if status in (0, evaluate_job.CURRENT):
            try:
                return _End(status, figures=self._figures(run_step, is_new=status == 0))
            except CarftError as error:
                return _End(evaluate_job.FAILED, problem=error.problems[0])

        log(f"evaluate: {run_step.folder}: {message}")
        return _End(status, problem=Problem(message=message))

    def _figures(self, run_step: RunStep, is_new: bool) -> RunFigures:
        """The figures at the threshold: those in the folder if they are true, else made anew."""
        if not is_new:
            earlier = run_figures.find_figures(run_step.folder, run_step.step)
            facts = picture_rows.load_facts(run_step.folder, run_step.step)
            if (
                isinstance(earlier, RunFigures)
                and earlier.facts == facts
                and (earlier.threshold == self.options.threshold)
            ):
                return earlier

        rows, facts = picture_rows.load_rows(run_step.folder, run_step.step)
        figures = run_figures.measure_run(rows, facts, self.options.threshold)
        run_figures.save_figures(run_step.folder, figures)
        return figures

    def _command(self, run_step: RunStep) -> list[str]:
        options = self.options
        command = [sys.executable, "-m", evaluate_job.MODULE, str(run_step.folder)]
        command += ["--step", str(run_step.step), "--batch_size", str(options.batch_size)]
        given = {
            "--device": options.device,
            "--workers": options.workers,
            "--data_dir": options.data_dir,
            "--original": options.original,
        }
        for flag, value in given.items():
            if value is not None:
                command += [flag, str(value)]
        return command


def _run_process(
    command: list[str], slot: Mapping[str, str], children: Children
) -> tuple[int, str]:
    """The exit status of a process, and the last line that it wrote to standard error."""
    with tempfile.NamedTemporaryFile(prefix="carft-evaluate-") as stderr:
        # The process needs no lock of ours, but a fork server hands one on.
        descriptor = os.open(os.devnull, os.O_RDONLY)
        try:
            status = children.run(command, {**os.environ, **slot}, descriptor, stderr.file)
        finally:
            os.close(descriptor)
        return status, last_line(stderr.name) or f"the process ended with status {status}"
