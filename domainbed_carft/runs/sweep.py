"""All selected runs of a sweep measured, several at a time: image by image, or on a suite.

Each has a process of its own (`sweep_job`), a fork of a server that has imported torch. What it
measured is in the run's folder when it ends, so an interrupted command goes on where it was.
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
from domainbed_carft.jobs.folder import RECORDS, WEIGHTS, last_line
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.manifest import NAME as MANIFEST
from domainbed_carft.jobs.records import DEPTH
from domainbed_carft.launchers.attempt import Children, stopping
from domainbed_carft.results import collection
from domainbed_carft.results.collection import Collection, Group
from domainbed_carft.results.columns import figures_of
from domainbed_carft.results.evaluations import RunFigures, SplitFigures
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.suites import SuiteRun, selected_runs
from domainbed_carft.runs import BATCH_SIZE, sweep_job
from domainbed_carft.runs.saved import choose_weights
from domainbed_carft.suites import catalogue, records
from domainbed_carft.text import log, progress, quantity

# Bytes of weights that one pass over a suite holds at a time: hundreds of small CLIPs, five
# ViT-B/16. More runs need more passes, so that neither memory nor an interruption costs much.
_MAX_PASS_BYTES = 2 << 30


@dataclass(frozen=True)
class SweepOptions:
    """How the runs of a sweep are measured.

    ``original``: the CLIP that the runs started from, needed unless that is a published one.
    ``jobs``: how many runs at a time, as of the launcher pool. Others as in
    `predictions.LoadingOptions`.
    """

    device: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    data_dir: str | None = None
    original: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class EvaluatedRun:
    """One selected run of a table, and its figures at its step.

    ``environment``: the label of the column; ``figures``: None where there is a ``problem``.
    """

    setting: str
    method: str
    selected: Selected
    environment: str
    figures: RunFigures | None
    problem: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run's job."""
        return Path(self.selected.run.folder)

    @property
    def step(self) -> int:
        """The step that was selected."""
        return int(self.selected.outcome.step)

    @property
    def on_target(self) -> SplitFigures | None:
        """The figures on the environment left out; of a job that left out none, on this one."""
        return self.figures.of_environment(self.selected.target) if self.figures else None

    def as_dict(self) -> dict[str, Any]:
        """The run and its figures, for JSON; accuracies are shares of 1."""
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

    ``measured``, ``current``: how many were measured now, and how many had been before.
    """

    folder: Path
    collection: Collection
    runs: list[EvaluatedRun]
    measured: int = 0
    current: int = 0

    @property
    def problems(self) -> dict[tuple[Path, int], str]:
        """Why runs have no figures, by folder and step."""
        return {(run.folder, run.step): run.problem for run in self.runs if run.problem}

    def as_dict(self) -> dict[str, Any]:
        """The evaluation, for JSON."""
        return {
            "sweep": str(self.folder),
            "measured": self.measured,
            "current": self.current,
            "runs": [run.as_dict() for run in self.runs],
        }


def is_sweep_folder(path: Path) -> bool:
    """Whether a path is the output folder of a sweep, and not that of a job."""
    if not path.is_dir() or any((path / name).exists() for name in (RECORDS, *WEIGHTS.values())):
        return False
    patterns = ["*/" * levels + RECORDS for levels in range(1, DEPTH + 1)]
    return (path / MANIFEST).exists() or any(any(path.glob(pattern)) for pattern in patterns)


def evaluate_sweep(
    folder: Path, options: SweepOptions, methods: Sequence[str] | None = None
) -> SweepEvaluation:
    """Evaluate every run that a selection method chose, unless its figures are there and true.

    ``methods``: names of selection methods; None for those that the tables show. A run that cannot
    be evaluated has a problem instead. Raises CarftError if there is no record, for an unknown
    selection method, and for an ``original`` that does not exist; KeyboardInterrupt and SystemExit
    after signals, which lose only the runs in progress.
    """
    if options.original is not None:
        _require_original(options.original)
    gathered = collection.gather([folder], methods)
    selected = [
        (group, method, chosen)
        for group in gathered.groups
        for method in gathered.methods
        for chosen in _in_order_of_tables(group, method)
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
        runs=[_evaluated_run(group, method, chosen, ends) for group, method, chosen in selected],
        measured=statuses.count(0),
        current=statuses.count(sweep_job.CURRENT),
    )


def _in_order_of_tables(group: Group, method: str) -> list[Selected]:
    """What a method selects from a group, in the order of its tables, rows, columns and trials."""
    selected = group.selected(method)
    datasets = list(group.environments)
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


def _evaluated_run(
    group: Group, method: str, chosen: Selected, ends: Mapping[tuple[str, int], End]
) -> EvaluatedRun:
    end = ends[chosen.run.folder, int(chosen.outcome.step)]
    figures: RunFigures | str = end.message
    if end.status in (0, sweep_job.CURRENT):
        figures = figures_of(chosen)
    if isinstance(figures, RunFigures) and not figures.of_environment(chosen.target):
        figures = f"environment {chosen.target} has no images"

    return EvaluatedRun(
        setting=group.title,
        method=method,
        selected=chosen,
        environment=group.environments[chosen.dataset][chosen.target],
        figures=figures if isinstance(figures, RunFigures) else None,
        problem=figures if isinstance(figures, str) else None,
    )


@dataclass(frozen=True)
class SweepSuiteEvaluation:
    """How many runs were measured, and why others were not."""

    measured: int
    problems: list[str]


def _require_original(name: str) -> None:
    is_published = name.startswith(open_clip.PREFIX) or name in openai.PUBLISHED
    if not is_published and not Path(name).is_file():
        raise CarftError(invalid("original", name, "an existing file, or the name of a CLIP"))


def evaluate_sweep_on_suite(
    folder: Path, suite: str, options: SweepOptions
) -> SweepSuiteEvaluation:
    """Measure each run that validation chose on the sets of a suite that it was not trained on.

    The records are added to the jobs' suites.jsonl. Runs with a record of their weights are not
    measured again. What keeps some runs from being measured keeps no others. Raises CarftError for
    an unknown suite.
    """
    catalogue.get(suite)
    groups = collection.gather([folder]).groups
    tasks = list(_passes([run for group in groups for run in selected_runs(group)], suite))
    ends = run_in_pool(tasks, options)

    measured = 0
    problems = []
    for task, end in zip(tasks, ends):
        n_runs = len(task["weights"])
        if end.status == 0:
            measured += n_runs
        else:
            first = Path(task["weights"][0]).parent
            problems.append(f"{quantity(n_runs, 'run')}, {first} first: {end.message}")
    return SweepSuiteEvaluation(measured, problems)


def _passes(runs: Sequence[SuiteRun], suite: str) -> Iterator[dict[str, Any]]:
    """The tasks of the runs without a record, by the environments that they were trained on."""
    weights: dict[frozenset[str], list[Path]] = defaultdict(list)
    for run in runs:
        file = choose_weights(run.folder, None)
        if not _has_record(file, suite):
            weights[run.trained_on].append(file)

    for trained_on, files in weights.items():
        for part in _parts(files):
            yield {
                "suite": suite,
                "weights": [str(file) for file in part],
                "skipped": sorted(trained_on),
            }


def _parts(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files in order, as lists of at most _MAX_PASS_BYTES, or of one file that is larger."""
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
    """Whether the job's records have this suite by these very weights."""
    return any(
        (record["suite"], record["weights"], record["wise_ft_alpha"])
        == (suite, weights_file.name, None)
        and record.get("weights_digest") == cached_sha256(weights_file)
        for record in records.read(weights_file.parent, warnings=[])
    )


class End(NamedTuple):
    """The exit status of a process, and the last line that it wrote to standard error."""

    status: int
    message: str


def run_in_pool(tasks: Sequence[Mapping[str, Any]], options: SweepOptions) -> list[End]:
    """How the process of each task ended, several at a time.

    Raises KeyboardInterrupt and SystemExit after signals.
    """
    pool: Any = launchers.make("pool", {"jobs": options.jobs})
    raise_for(pool.problems())
    slots = pool.slots(len(tasks)) if tasks else []
    ends = [End(1, "not evaluated: the command was stopped") for _ in tasks]
    waiting = deque(enumerate(tasks))
    fork_server = ForkServer(detached=True, module=sweep_job.MODULE)
    children = Children(fork_server)
    n_runs = [len(task.get("weights", ["one"])) for task in tasks]
    bar = progress(total=sum(n_runs), unit="run", description="evaluate", delay=2)

    def work(slot: Mapping[str, str]) -> None:
        while waiting and children.stopped_by is None:
            try:
                number, task = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            content = {**dataclasses.asdict(options), **task}
            command = [sys.executable, "-m", sweep_job.MODULE, json.dumps(content)]
            ends[number] = run_process(command, slot, children)
            if "folder" in task and ends[number].status not in (0, sweep_job.CURRENT):
                log(f"evaluate: {task['folder']}: {ends[number].message}")
            bar.update(n_runs[number])

    workers = ThreadPoolExecutor(max_workers=max(1, len(slots)))
    with fork_server, stopping(children, "evaluate"), workers, bar:
        for _ in workers.map(work, slots):
            pass
    return ends


def run_process(command: Sequence[str], slot: Mapping[str, str], children: Children) -> End:
    """How a process with a slot's variables ended."""
    with tempfile.NamedTemporaryFile(prefix="carft-evaluate-") as stderr:
        # The process needs no lock of ours, but a fork server hands one on.
        descriptor = os.open(os.devnull, os.O_RDONLY)
        try:
            status = children.run(command, {**os.environ, **slot}, descriptor, stderr.file)
        finally:
            os.close(descriptor)
        message = last_line(stderr.name) or f"the process ended with status {status}"
        return End(status, message)
