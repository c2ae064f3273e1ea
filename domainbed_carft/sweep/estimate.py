"""What a sweep will cost: jobs, pictures, disk, and hours where something was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names, output, rates
from domainbed_carft.sweep.jobs import Job, seed_hash
from domainbed_carft.sweep.states import DONE, Status

Group = tuple[str, str]  # data set, algorithm


class Work(NamedTuple):
    """What one job does. ``evaluated`` is None where the pictures are not known."""

    steps: int
    trained: int
    evaluated: int | None


class Pace(NamedTuple):
    """Measured seconds and bytes of jobs of one group.

    ``evaluation`` is None where the seconds a trained picture include it, or where it was not
    measured; ``source`` says how it was measured, ``left_out`` what is not in it.
    """

    training: float  # seconds a picture trained on
    evaluation: float | None  # seconds a picture evaluated
    source: str
    left_out: str
    bytes: int | None = None


@dataclass
class Row:
    """Totals of the jobs of one data set and algorithm, in one variant."""

    variant: str
    dataset: str
    algorithm: str
    jobs: int = 0
    done: int = 0
    steps: int = 0
    trained: int = 0
    evaluated: int | None = 0
    to_train: int = 0  # of the jobs that are not done
    to_evaluate: int | None = 0

    def add(self, work: Work, done: bool) -> None:
        """Count a job."""
        self.jobs += 1
        self.done += done
        self.steps += work.steps
        self.trained += work.trained
        self.evaluated = _plus(self.evaluated, work.evaluated)
        if not done:
            self.to_train += work.trained
            self.to_evaluate = _plus(self.to_evaluate, work.evaluated)


@dataclass
class Estimate:
    """The rows, what was measured of each group, and whether training in-splits are left out."""

    rows: list[Row]
    paces: Mapping[Group, Pace] = field(default_factory=dict)
    skips: bool = False

    def hours(self, row: Row) -> float | None:
        """Hours of a row's jobs that are not done, one after another; None if not measured."""
        pace = self.paces.get((row.dataset, row.algorithm))
        if pace is None:
            return None if row.done < row.jobs else 0.0
        seconds = pace.training * row.to_train
        if pace.evaluation is not None and row.to_evaluate is not None:
            seconds += pace.evaluation * row.to_evaluate
        return seconds / 3600

    def disk(self, row: Row) -> int | None:
        """Bytes that a row's jobs will take in the end; None if not measured."""
        pace = self.paces.get((row.dataset, row.algorithm))
        return None if pace is None or pace.bytes is None else pace.bytes * row.jobs


def make(statuses: Sequence[Status], paces: Mapping[Group, Pace], skips: bool = False) -> Estimate:
    """Sum up the jobs; ``skips`` are those of ``--skip_training_in_splits``."""
    rows: dict[tuple[str, str, str], Row] = {}
    for status in statuses:
        args = status.job.train_args
        key = (status.job.variant, args["dataset"], args["algorithm"])
        row = rows.setdefault(key, Row(*key))
        row.add(work(status.job, skips), status.state == DONE)
    return Estimate(list(rows.values()), paces, skips)


def work(job: Job, skips: bool = False) -> Work:
    """Steps and pictures of a job; ``skips``: it evaluates no training environment's in-split."""
    facts = names.dataset(job.train_args["dataset"])
    steps = int(job.train_args.get("steps") or facts.steps)
    size = int(given_or_drawn(job, "batch_size"))
    checkpoints = len({*range(0, steps, facts.checkpoint_freq), steps - 1})
    evaluated = None if facts.pictures is None else checkpoints * _a_pass(job, facts, skips)
    return Work(steps, steps * size * rates.training_environments(job), evaluated)


def _a_pass(job: Job, facts: names.Dataset, skips: bool) -> int:
    """Pictures of one checkpoint: both splits of every environment, as DomainBed evaluates them."""
    counts = facts.pictures or ()
    if not skips:
        return sum(counts)
    targets, holdout = job.train_args["test_envs"], job.train_args["holdout_fraction"]
    # The size of an out-split as in upstream file domainbed/scripts/train.py at b93c22a.
    return sum(n if i in targets else int(n * holdout) for i, n in enumerate(counts))


def given_or_drawn(job: Job, name: str) -> Any:
    """One of our hyperparameters in a job; DomainBed's own algorithms draw theirs alike."""
    args = job.train_args
    given = json.loads(args.get("hparams") or "{}")
    if name in given:
        return given[name]
    dataset, algorithm = args["dataset"], args["algorithm"]
    seed = int(args["hparams_seed"])
    if algorithm not in ours.ALGORITHMS:
        small = dataset in ("Debug28", "RotatedMNIST", "ColoredMNIST")
        if not seed and name == "batch_size":
            return 64 if small else 32
        dataset = "PACS" if dataset in ours.SMALL_DATASETS else dataset
    drawn = ours.overlay(algorithm, dataset, seed_hash(seed, int(args["trial_seed"])))
    return drawn[name][1 if seed else 0]


def recorded(jobs: Iterable[Job]) -> dict[Group, Pace]:
    """What jobs in the output folder tell by the time they took, or by their records."""
    by_group: dict[Group, list[Job]] = {}
    for job in jobs:
        if job.folder.is_dir():
            args = job.train_args
            by_group.setdefault((args["dataset"], args["algorithm"]), []).append(job)
    paces = {group: _pace(members) for group, members in by_group.items()}
    return {group: pace for group, pace in paces.items() if pace is not None}


def _pace(jobs: Sequence[Job]) -> Pace | None:
    done = [job for job in jobs if JobFolder(job.folder).done]
    size = sum(map(_bytes, done)) // len(done) if done else None
    timed = [(job, seconds) for job in done if (seconds := _whole_run(job))]
    if timed:
        trained = sum(work(job).trained for job, _ in timed)
        return Pace(
            sum(seconds for _, seconds in timed) / trained, None,
            f"the time that {len(timed)} finished jobs took beside what else ran then", "nothing",
            size,
        )  # fmt: skip
    stepped = [(job, seconds) for job in jobs if (seconds := _step_time(job))]
    if not stepped:
        return None
    each = [seconds * work(job).steps / work(job).trained for job, seconds in stepped]
    return Pace(
        sum(each) / len(each), None,
        f"step_time in the records of {len(stepped)} jobs",
        "evaluation, loading of data and model", size,
    )  # fmt: skip


def _whole_run(job: Job) -> float | None:
    """Seconds of a job that was done at the first attempt."""
    attempts = JobFolder(job.folder).attempts()
    if len(attempts) != 1 or attempts[0].status != 0:
        return None
    return attempts[0].ended - attempts[0].started


def _step_time(job: Job) -> float | None:
    # The first record is of the first step alone, which is slower than the others.
    times = [r["step_time"] for r in output.records(job.folder) if r.get("step_time")]
    return float(sum(times[1:]) / len(times[1:])) if len(times) > 1 else None


def _bytes(job: Job) -> int:
    return sum(path.stat().st_size for path in job.folder.iterdir() if path.is_file())


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
