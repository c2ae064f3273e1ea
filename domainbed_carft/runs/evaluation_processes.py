"""The processes that evaluate the runs of a sweep, several at a time, and what they leave.

Each is a fork of a server that has imported torch. What it measured is in the run's folder when it
ends, so an interrupted command goes on where it was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError, Problem, raise_for
from domainbed_carft.jobs.folder import last_line
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.launchers.attempt import Children, stopping
from domainbed_carft.results import alignment_scores, picture_rows, run_figures
from domainbed_carft.results.run_figures import RunFigures
from domainbed_carft.runs import BATCH_SIZE, evaluate_job
from domainbed_carft.text import log, progress

Task = TypeVar("Task")


@dataclass(frozen=True)
class SweepOptions:
    """How the runs of a sweep are evaluated.

    ``methods``: names of selection methods; None for those that the tables show. ``threshold``: the
    alignment that divides pictures in and out of pre-training. ``original``: the CLIP that the runs
    started from, needed unless that is a published one. ``jobs``, ``jobs_per_gpu``: how
    many runs at a time, as of the pool. Others as in `measuring.LoadingOptions`.
    """

    methods: Sequence[str] | None = None
    threshold: float = alignment_scores.THRESHOLD
    device: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    original: str | None = None
    jobs: int | None = None
    jobs_per_gpu: int | None = None


@dataclass(frozen=True, order=True)
class RunStep:
    """The folder of a run, and the step whose weights were selected."""

    folder: Path
    step: int


@dataclass(frozen=True)
class EvaluationEnd:
    """How the process of a run ended: its exit status, and the problem that it reported."""

    status: int
    problem: Problem | None = None
    figures: RunFigures | None = None


@dataclass
class EvaluationProcesses:
    """The processes that evaluate runs, one at a time in each slot of the pool."""

    run_steps: Sequence[RunStep]
    options: SweepOptions
    ended: dict[RunStep, EvaluationEnd] = field(default_factory=dict)

    def run(self) -> dict[RunStep, EvaluationEnd]:
        """How each run ended."""

        def evaluate(run_step: RunStep, slot: Mapping[str, str], children: Children) -> None:
            self.ended[run_step] = self._evaluate(run_step, slot, children)

        evaluate_in_pool(self.run_steps, evaluate, self.options, evaluate_job.MODULE)
        return self.ended

    def _evaluate(
        self, run_step: RunStep, slot: Mapping[str, str], children: Children
    ) -> EvaluationEnd:
        """Evaluate one run in a process, then make its figures of its rows."""
        status, message = run_process(self._command(run_step), slot, children)
        if status in (0, evaluate_job.CURRENT):
            try:
                return EvaluationEnd(status, figures=self._figures(run_step, is_new=status == 0))
            except CarftError as error:
                return EvaluationEnd(evaluate_job.FAILED, problem=error.problems[0])

        log(f"evaluate: {run_step.folder}: {message}")
        return EvaluationEnd(status, problem=Problem(message=message))

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


def evaluate_in_pool(
    tasks: Sequence[Task],
    evaluate: Callable[[Task, Mapping[str, str], Children], None],
    options: SweepOptions,
    module: str,
    count_runs: Callable[[Task], int] = lambda _: 1,
) -> None:
    """Call ``evaluate`` for each task, several at a time, with a slot's variables and the children.

    ``module``: what the processes that it starts run as ``python -m``. ``count_runs``: how many
    runs a task measures, for the line of progress. Raises KeyboardInterrupt and SystemExit after
    signals.
    """
    pool: Any = launchers.make(
        "pool",
        {"jobs": options.jobs, "jobs_per_gpu": options.jobs_per_gpu},
    )
    raise_for(pool.problems())
    slots = pool.slots(len(tasks)) if tasks else []
    waiting = deque(tasks)
    fork_server = ForkServer(detached=True, module=module)
    children = Children(fork_server)
    total = sum(map(count_runs, tasks))
    bar = progress(total=total, unit="run", description="evaluate", delay=2)

    def work(slot: Mapping[str, str]) -> None:
        while children.stopped_by is None:
            try:
                task = waiting.popleft()
            except IndexError:  # nothing is waiting
                return
            evaluate(task, slot, children)
            bar.update(count_runs(task))

    workers = ThreadPoolExecutor(max_workers=max(1, len(slots)))
    with fork_server, stopping(children, "evaluate"), workers, bar:
        for _ in workers.map(work, slots):
            pass


def run_process(command: list[str], slot: Mapping[str, str], children: Children) -> tuple[int, str]:
    """The exit status of a process, and the last line that it wrote to standard error."""
    with tempfile.NamedTemporaryFile(prefix="carft-evaluate-") as stderr:
        # The process needs no lock of ours, but a fork server hands one on.
        descriptor = os.open(os.devnull, os.O_RDONLY)
        try:
            status = children.run(command, {**os.environ, **slot}, descriptor, stderr.file)
        finally:
            os.close(descriptor)
        return status, last_line(stderr.name) or f"the process ended with status {status}"
