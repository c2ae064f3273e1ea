"""What a sweep will cost: jobs, steps, pictures, and hours where something was measured."""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names
from domainbed_carft.sweep.states import DONE, Status

Group = tuple[str, str]  # data set, algorithm

_MEASURED_STEPS = 3
_EVALUATION_BATCH = 64  # DomainBed's


class Work(NamedTuple):
    """What one job does. ``evaluated`` is None where the pictures are not known."""

    steps: int
    trained: int
    evaluated: int | None


class Pace(NamedTuple):
    """Seconds a picture trained on and a picture evaluated, where known, and from what."""

    training: float
    evaluation: float | None
    source: str

    def seconds(self, work: Work) -> float:
        """What a job takes."""
        return self.training * work.trained + (self.evaluation or 0) * (work.evaluated or 0)


@dataclass
class Row:
    """Totals of the jobs of one data set and algorithm, in one variant.

    ``hours`` are those of the jobs that are not done, one after another; None if not measured.
    """

    variant: str
    dataset: str
    algorithm: str
    jobs: int = 0
    done: int = 0
    steps: int = 0
    trained: int = 0
    evaluated: int | None = 0
    hours: float | None = 0.0


def make(
    statuses: Sequence[Status],
    facts: Mapping[str, Dataset],
    paces: Mapping[Group, Pace],
    skips: bool = False,
) -> list[Row]:
    """The rows, and their total behind them; ``skips`` as in ``work``."""
    rows: dict[tuple[str, str, str], Row] = {}
    total = Row("all", "", "")
    drawn = functools.cache(_drawn)
    for status in statuses:
        dataset, algorithm = status.job.args["dataset"], status.job.args["algorithm"]
        key = (status.job.variant, dataset, algorithm)
        one = work(status.job, facts[dataset], skips, drawn)
        pace = paces.get((dataset, algorithm))
        hours: float | None = 0.0
        if status.state != DONE:
            hours = None if pace is None else pace.seconds(one) / 3600
        for row in (rows.setdefault(key, Row(*key)), total):
            row.jobs += 1
            row.done += status.state == DONE
            row.steps += one.steps
            row.trained += one.trained
            row.evaluated = _plus(row.evaluated, one.evaluated)
            row.hours = _plus(row.hours, hours)
    return [*rows.values(), total]


def _drawn(algorithm: str, dataset: str, choice: int, trial: int) -> dict[str, Any]:
    registry = names.module("hparams_registry")
    if choice:
        return registry.random_hparams(algorithm, dataset, seed_hash(choice, trial))
    return registry.default_hparams(algorithm, dataset)


def hparams(job: Job, drawn: Callable[..., dict[str, Any]] = _drawn) -> dict[str, Any]:
    """All hyperparameters of a job, as train will have them."""
    args = job.args
    seeds = args["hparams_seed"], args["trial_seed"]
    found = drawn(args["algorithm"], args["dataset"], *seeds)
    return {**found, **json.loads(args.get("hparams") or "{}")}


def work(
    job: Job, facts: Dataset, skips: bool = False, drawn: Callable[..., dict[str, Any]] = _drawn
) -> Work:
    """Steps and pictures of a job; ``skips``: it evaluates no training environment's in-split."""
    steps = int(job.args.get("steps") or facts.steps)
    size = int(hparams(job, drawn)["batch_size"])
    environments = len(facts.labels) - len(job.args["test_envs"])
    if facts.pictures is None:
        return Work(steps, steps * size * environments, None)
    # At step 0, every checkpoint_freq steps, and at the last one.
    last, every = steps - 1, facts.checkpoint_freq
    checkpoints = last // every + 1 + bool(last % every)
    # As train splits them: upstream file domainbed/scripts/train.py at b93c22a.
    share = job.args["holdout_fraction"] if skips else 1.0
    left_out = set(job.args["test_envs"])
    a_pass = sum(n if i in left_out else int(n * share) for i, n in enumerate(facts.pictures))
    return Work(steps, steps * size * environments, checkpoints * a_pass)


def recorded(jobs: Iterable[Job], facts: Mapping[str, Dataset]) -> dict[Group, Pace]:
    """What the times of steps in the records of an output folder tell."""
    seconds: dict[Group, list[float]] = {}
    for job in jobs:
        record = records.last(job.folder) if job.folder.is_dir() else None
        taken = record.get("step_time") if record else None
        # The first record is of the first step alone, which is slower than the others.
        if record and record["step"] and isinstance(taken, float):
            args = job.args
            done = work(job, facts[args["dataset"]])
            group = args["dataset"], args["algorithm"]
            seconds.setdefault(group, []).append(taken * done.steps / done.trained)
    return {
        group: Pace(
            sum(each) / len(each), None, f"step_time in the records of {len(each)} jobs, without "
            "evaluation",
        )
        for group, each in seconds.items()
    }  # fmt: skip


def measure(
    jobs: Iterable[Job],
    facts: Mapping[str, Dataset],
    known: Mapping[Group, Pace],
    say: Callable[[str], None],
) -> dict[Group, Pace]:
    """Time one job of each data set and algorithm of which nothing is known, on random pictures.

    ``say`` is told which cannot be measured, and why.
    """
    paces, tried = dict(known), set(known)
    for job in jobs:
        group = (job.args["dataset"], job.args["algorithm"])
        if group not in tried:
            tried.add(group)
            try:
                paces[group] = _measured(job, facts[group[0]])
            except Exception as error:  # of an algorithm, a download, a device out of memory
                say(f"{' '.join(group)} cannot be measured here: {error}")
    return paces


def _measured(job: Job, facts: Dataset) -> Pace:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    values = hparams(job)
    shape, classes = _pictures(job, values)
    domains = len(facts.labels) - len(job.args["test_envs"])
    algorithm = names.algorithm_class(job.args["algorithm"])(shape, classes, domains, values)
    algorithm.to(device)
    size = int(values["batch_size"])

    def batch(count: int) -> tuple[Any, Any]:
        labels = torch.randint(classes, (count,), device=device)
        return torch.randn(count, *shape, device=device), labels

    step = _median(lambda: algorithm.update([batch(size) for _ in range(domains)]), settle)
    algorithm.eval()
    with torch.no_grad():
        evaluation = _median(lambda: algorithm.predict(batch(_EVALUATION_BATCH)[0]), settle)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores"
    return Pace(
        step / (size * domains),
        evaluation / _EVALUATION_BATCH,
        f"{_MEASURED_STEPS} steps and evaluation batches on random pictures, just now on {where}, "
        "without decoding",
    )


def _median(action: Callable[[], object], settle: Callable[[], object]) -> float:
    """Median seconds, after one time to warm up."""
    times = []
    for _ in range(_MEASURED_STEPS + 1):
        settle()
        started = time.perf_counter()
        action()
        settle()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _pictures(job: Job, values: dict[str, Any]) -> tuple[tuple[int, int, int], int]:
    """Shape of a picture and number of classes; tells CLIP some names where there is no table."""
    name, own = job.args["dataset"], job.args["algorithm"] in ours.ALGORITHMS
    if name in benchmarks.BENCHMARKS:
        size = 48 if name == "EmojiStyles" and own else 224
        return (3, size, size), len(benchmarks.BENCHMARKS[name].classes)
    if os.sep not in name:
        raise CarftError(f"it is not known how many classes {name} has")
    domain = next(entry.path for entry in os.scandir(name) if entry.is_dir())
    classes = sorted(entry.name for entry in os.scandir(domain) if entry.is_dir())
    if own:
        values["class_names"] = classes
    return (3, 224, 224), len(classes)


def _plus(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b
