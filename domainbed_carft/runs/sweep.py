"""Evaluate all selected runs of a sweep, several at a time: image by image, or on a suite.

Each run has its own process (`sweep_job`), forked from a server that has imported torch. A process
saves its results in the run's folder before it ends, so an interrupted command can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft import launchers
from domainbed_carft.clips import open_clip, openai
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.files.weights import cached_sha256
from domainbed_carft.jobs.folder import RECORDS, WEIGHTS, read_last_line
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.manifest import NAME as MANIFEST
from domainbed_carft.jobs.records import DEPTH
from domainbed_carft.launchers.attempt import Children, stop_on_signals
from domainbed_carft.results import collection
from domainbed_carft.results.collection import Collection, Group
from domainbed_carft.results.columns import find_run_metrics
from domainbed_carft.results.evaluations import RunMetrics, SplitMetrics
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.suites import SuiteRun, selected_runs
from domainbed_carft.runs import BATCH_SIZE, sweep_job
from domainbed_carft.runs.saved import choose_weights
from domainbed_carft.suites import catalogue, records
from domainbed_carft.text import log, progress, quantity

# Bytes of weights that one pass over a suite holds: hundreds of small CLIP models, or five
# ViT-B/16. A limit bounds the memory, and the work that an interruption loses.
_MAX_PASS_BYTES = 2 << 30


@dataclass(frozen=True)
class SweepOptions:
    """Options for evaluating the runs of a sweep.

    Attributes:
        device: such as "cpu" or "cuda:1"; None for the GPU if there is one.
        batch_size: images per batch.
        workers: number of processes that load images; None for one per core if there are many
            images.
        data_dir: folder of the data; None for the recorded one.
        original: the CLIP checkpoint that the runs started from; required unless it is a published
            one.
        jobs: number of runs evaluated at a time; None for the default of the launcher pool.
    """

    device: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    original: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class EvaluatedRun:
    """A selected run of a table, and its figures at the selected step.

    Attributes:
        setting: title of the group of runs, the heading of its tables.
        method: name of the selection method.
        selected: the selected run.
        environment: label of the column.
        figures: accuracy and calibration, or None if there is a problem.
        problem: reason why the run could not be evaluated, or None.
    """

    setting: str
    method: str
    selected: SelectedRun
    environment: str
    figures: RunMetrics | None
    problem: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run's job."""
        return Path(self.selected.run.folder)

    @property
    def step(self) -> int:
        """The selected step."""
        return int(self.selected.outcome.step)

    @property
    def on_target(self) -> SplitMetrics | None:
        """The figures on the target, or on the column's environment if the job has no target."""
        return self.figures.get_environment(self.selected.target) if self.figures else None

    def as_dict(self) -> dict[str, Any]:
        """Return the run and its figures for JSON; accuracies are shares of 1."""
        return {
            "setting": self.setting,
            "selection": self.method,
            "dataset": self.selected.dataset,
            "algorithm": self.selected.row,
            "environment": self.environment,
            "trial": self.selected.trial,
            "folder": str(self.folder),
            "step": self.step,
            "figures": dataclasses.asdict(self.on_target) if self.on_target else None,
            "in_domain": self.figures.in_domain if self.figures else None,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class SweepEvaluation:
    """The selected runs of a sweep, in the order of its tables.

    Attributes:
        folder: output folder of the sweep.
        collection: the collected records of the sweep.
        runs: the selected runs with their figures.
        measured: number of runs that were evaluated by this call.
        current: number of runs whose earlier evaluation was still valid.
    """

    folder: Path
    collection: Collection
    runs: list[EvaluatedRun]
    measured: int = 0
    current: int = 0

    @property
    def problems(self) -> dict[tuple[Path, int], str]:
        """Reasons why runs have no figures, by folder and step."""
        return {(run.folder, run.step): run.problem for run in self.runs if run.problem}

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation for JSON."""
        return {
            "sweep": str(self.folder),
            "measured": self.measured,
            "current": self.current,
            "runs": [run.as_dict() for run in self.runs],
        }


def is_sweep_folder(path: Path) -> bool:
    """Return True if a path is the output folder of a sweep, not the folder of a job."""
    if not path.is_dir() or any((path / name).exists() for name in (RECORDS, *WEIGHTS.values())):
        return False
    patterns = ["*/" * levels + RECORDS for levels in range(1, DEPTH + 1)]
    return (path / MANIFEST).exists() or any(any(path.glob(pattern)) for pattern in patterns)


def evaluate_sweep(
    folder: Path, options: SweepOptions, methods: Sequence[str] | None = None
) -> SweepEvaluation:
    """Evaluate every run that a selection method chose, unless its figures are up to date.

    A run that cannot be evaluated has a problem instead of figures. After a signal, only the runs
    in progress are lost.

    Args:
        folder: output folder of the sweep.
        options: how to evaluate the runs.
        methods: names of selection methods. Default: the methods shown in the tables.

    Raises:
        CarftError: if there are no records, a selection method is unknown, or ``options.original``
            does not exist.
        KeyboardInterrupt, SystemExit: after signals.
    """
    if options.original is not None:
        _require_original(options.original)
    gathered = collection.gather([folder], methods)
    selected = [
        (group, method, chosen)
        for group in gathered.groups
        for method in gathered.methods
        for chosen in _select_in_table_order(group, method)
    ]
    steps = dict.fromkeys(
        (chosen.run.folder, int(chosen.outcome.step)) for _, _, chosen in selected
    )
    tasks = [{"folder": run_folder, "step": step} for run_folder, step in steps]
    ends = dict(zip(steps, run_in_pool(tasks, options)))

    statuses = [end.status for end in ends.values()]
    return SweepEvaluation(
        folder=folder,
        collection=gathered,
        runs=[_read_run(group, method, chosen, ends) for group, method, chosen in selected],
        measured=statuses.count(0),
        current=statuses.count(sweep_job.CURRENT),
    )


def _select_in_table_order(group: Group, method: str) -> list[SelectedRun]:
    """Return the runs that a method selects, in the order of tables, rows, columns and trials."""
    selected = group.select(method)
    datasets = list(group.environments)
    rows = group.order_rows(chosen.row for chosen in selected)
    return sorted(
        selected,
        key=lambda chosen: (
            datasets.index(chosen.dataset),
            rows.index(chosen.row),
            chosen.target,
            chosen.trial,
        ),
    )


def _read_run(
    group: Group, method: str, chosen: SelectedRun, ends: Mapping[tuple[str, int], ProcessEnd]
) -> EvaluatedRun:
    """Return a selected run with the figures that its process has saved."""
    end = ends[chosen.run.folder, int(chosen.outcome.step)]
    figures: RunMetrics | str = end.message
    if end.status in (0, sweep_job.CURRENT):
        figures = find_run_metrics(chosen)
    if isinstance(figures, RunMetrics) and not figures.get_environment(chosen.target):
        figures = f"environment {chosen.target} has no images"

    return EvaluatedRun(
        setting=group.title,
        method=method,
        selected=chosen,
        environment=group.environments[chosen.dataset][chosen.target],
        figures=figures if isinstance(figures, RunMetrics) else None,
        problem=figures if isinstance(figures, str) else None,
    )


@dataclass(frozen=True)
class SweepSuiteEvaluation:
    """Number of runs that were evaluated on a suite, and problems of the others."""

    measured: int
    problems: list[str]


def _require_original(name: str) -> None:
    if name.startswith(open_clip.PREFIX) or name in openai.PUBLISHED:
        return
    if not Path(name).is_file():
        raise CarftError(
            invalid("original", name, "an existing file, or the name of a CLIP checkpoint")
        )


def evaluate_sweep_on_suite(
    folder: Path, suite: str, options: SweepOptions
) -> SweepSuiteEvaluation:
    """Evaluate each run that validation chose on the sets of a suite that it was not trained on.

    Records are added to the jobs' suites.jsonl. Runs with a record of their current weights are
    skipped. Problems of one run do not affect the others. Raises CarftError if the suite is
    unknown.
    """
    catalogue.get(suite)
    groups = collection.gather([folder]).groups
    tasks = list(_make_tasks([run for group in groups for run in selected_runs(group)], suite))
    ends = run_in_pool(tasks, options)

    measured = 0
    problems = []
    for task, end in zip(tasks, ends):
        n_runs = len(task["weights"])
        if end.status == 0:
            measured += n_runs
        else:
            first = Path(task["weights"][0]).parent
            problems.append(f"{quantity(n_runs, 'run')}, starting with {first}: {end.message}")
    return SweepSuiteEvaluation(measured, problems)


def _make_tasks(runs: Sequence[SuiteRun], suite: str) -> Iterator[dict[str, Any]]:
    """Return tasks for the runs without a record, grouped by their training environments."""
    weights: dict[frozenset[str], list[Path]] = defaultdict(list)
    for run in runs:
        file = choose_weights(run.folder, None)
        if not _has_record(file, suite):
            weights[run.trained_on].append(file)

    for trained_on, files in weights.items():
        for part in _divide_by_size(files):
            yield {
                "suite": suite,
                "weights": [str(file) for file in part],
                "skipped": sorted(trained_on),
            }


def _divide_by_size(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Divide files, in order, into lists of at most _MAX_PASS_BYTES or one larger file."""
    part: list[Path] = []
    held_bytes = 0
    for file in files:
        size = file.stat().st_size
        if part and held_bytes + size > _MAX_PASS_BYTES:
            yield part
            part = []
            held_bytes = 0
        part.append(file)
        held_bytes += size

    if part:
        yield part


def _has_record(weights_file: Path, suite: str) -> bool:
    """Return True if the job's records contain this suite, evaluated with these weights."""
    return any(
        (record["suite"], record["weights"], record["wise_ft_alpha"])
        == (suite, weights_file.name, None)
        and record.get("weights_digest") == cached_sha256(weights_file)
        for record in records.read(weights_file.parent, warnings=[])
    )


class ProcessEnd(NamedTuple):
    """The exit status of a process, and the last line that it wrote to standard error."""

    status: int
    message: str


def run_in_pool(tasks: Sequence[Mapping[str, Any]], options: SweepOptions) -> list[ProcessEnd]:
    """Run a process for each task, several at a time, and return how each process ended.

    Raises KeyboardInterrupt or SystemExit after signals.
    """
    pool: Any = launchers.make("pool", {"jobs": options.jobs})
    raise_for(pool.problems())
    slots = pool.slots(len(tasks)) if tasks else []
    ends = [ProcessEnd(1, "not evaluated: the command was stopped") for _ in tasks]
    waiting = deque(enumerate(tasks))
    fork_server = ForkServer(detached=True, module=sweep_job.MODULE)
    children = Children(fork_server)
    n_runs = [len(task.get("weights", ["one"])) for task in tasks]
    bar = progress(total=sum(n_runs), unit="run", description="evaluate", delay=2)

    def work(slot: Mapping[str, str]) -> None:
        while waiting and children.stopped_by is None:
            try:
                number, task = waiting.popleft()
            except IndexError:  # another thread has taken the last task
                return
            content = {**dataclasses.asdict(options), **task}
            command = [sys.executable, "-m", sweep_job.MODULE, json.dumps(content)]
            ends[number] = run_process(command, slot, children)
            if "folder" in task and ends[number].status not in (0, sweep_job.CURRENT):
                log(f"evaluate: {task['folder']}: {ends[number].message}")
            bar.update(n_runs[number])

    workers = ThreadPoolExecutor(max_workers=max(1, len(slots)))
    with fork_server, stop_on_signals(children, "evaluate"), workers, bar:
        for _ in workers.map(work, slots):
            pass
    return ends


def run_process(command: Sequence[str], slot: Mapping[str, str], children: Children) -> ProcessEnd:
    """Run a process with the process variables of a slot, and return how it ended."""
    with tempfile.NamedTemporaryFile(prefix="carft-evaluate-") as stderr:
        # Stands for the lock's descriptor that a fork server passes to training jobs.
        descriptor = os.open(os.devnull, os.O_RDONLY)
        try:
            status = children.run(command, {**os.environ, **slot}, descriptor, stderr.file)
        finally:
            os.close(descriptor)
        message = read_last_line(stderr.name) or f"the process ended with status {status}"
        return ProcessEnd(status, message)
