"""What a sweep will cost: jobs, steps, pictures, and hours where something was measured."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names
from domainbed_carft.sweep.states import DONE, Status
from domainbed_carft.text import table

Group = tuple[str, str]  # data set, algorithm

_MEASURED_STEPS = 3
_EVALUATION_BATCH = 64  # DomainBed's


Pace = tuple[float, float]  # seconds a picture trained on, and one evaluated


class Cost(NamedTuple):
    """Of some jobs: pictures trained on and evaluated, hours of those not done, one after another.

    nan stands for what is not known.
    """

    jobs: float = 0
    done: float = 0
    steps: float = 0
    trained: float = 0
    evaluated: float = 0
    hours: float = 0.0


def costs(
    statuses: Sequence[Status],
    facts: Mapping[str, Dataset],
    paces: Mapping[Group, Pace],
    skips: bool = False,
) -> dict[tuple[str, str, str], Cost]:
    """Costs by variant, data set and algorithm, then their total; ``skips`` as in ``cost``."""
    found: dict[tuple[str, str, str], Cost] = {}
    total = Cost()
    for status in statuses:
        group = status.job.args["dataset"], status.job.args["algorithm"]
        one = cost(status.job, facts[group[0]], skips)
        training, evaluation = paces.get(group, (math.nan, 0.0))
        seconds = training * one.trained + (evaluation and evaluation * one.evaluated)
        done = status.state == DONE
        one = one._replace(done=int(done), hours=0.0 if done else seconds / 3600)
        key = (status.job.variant, *group)
        found[key] = Cost(*map(sum, zip(found.get(key, Cost()), one)))
        total = Cost(*map(sum, zip(total, one)))
    return {**found, ("all", "", ""): total}


def shown(found: Mapping[tuple[str, str, str], Cost], skips: bool, measured: bool) -> str:
    """The costs that ``--dry_run`` shows, and what they are."""
    head = ["variant", "data set", "algorithm", "jobs", "done", "steps", "trained", "evaluated"]
    rows = [
        [*key, *(_number(count) for count in one[:-1]), _number(one.hours, 2)]
        for key, one in found.items()
    ]
    splits = "both splits of every environment"
    if skips:
        splits = "both splits of test environments, out-splits of the others"
    hours = "step_time in the records, which leaves evaluation out"
    if measured:
        hours += f", else {_MEASURED_STEPS} steps on random pictures here, which leave decoding out"
    else:
        hours += "; --measure times algorithms without records"
    return (
        f"{table([*head, 'hours left'], rows)}\n"
        f"Trained, evaluated: pictures; {splits}.\nHours: of one job after another, by {hours}."
    )


def hparams(job: Job) -> dict[str, Any]:
    """All hyperparameters of a job, as train will have them."""
    registry, args = names.module("hparams_registry"), job.args
    pair, choice = (args["algorithm"], args["dataset"]), args["hparams_seed"]
    if choice:
        found = registry.random_hparams(*pair, seed_hash(choice, args["trial_seed"]))
    else:
        found = registry.default_hparams(*pair)
    return {**found, **json.loads(args.get("hparams") or "{}")}


def cost(job: Job, facts: Dataset, skips: bool = False) -> Cost:
    """Steps and pictures of a job; ``skips``: it evaluates no training environment's in-split."""
    steps = int(job.args.get("steps") or facts.steps)
    left_out = set(job.args["test_envs"])
    batch = int(hparams(job)["batch_size"]) * (len(facts.labels) - len(left_out))
    if facts.pictures is None:
        return Cost(1, 0, steps, steps * batch, math.nan)
    # At step 0, every checkpoint_freq steps, and at the last one.
    last, every = steps - 1, facts.checkpoint_freq
    checkpoints = last // every + 1 + bool(last % every)
    # As train splits them: upstream file domainbed/scripts/train.py at b93c22a.
    share = job.args["holdout_fraction"] if skips else 1.0
    a_pass = sum(n if i in left_out else int(n * share) for i, n in enumerate(facts.pictures))
    return Cost(1, 0, steps, steps * batch, checkpoints * a_pass)


def recorded(jobs: Iterable[Job], facts: Mapping[str, Dataset]) -> dict[Group, Pace]:
    """What the times of steps in the records tell, which leave evaluation out."""
    seconds: dict[Group, list[float]] = {}
    for job in jobs:
        record = records.last(job.folder) if job.folder.is_dir() else None
        taken = record.get("step_time") if record else None
        # The first record is of the first step alone, which is slower than the others.
        if record and record["step"] and isinstance(taken, float):
            group = job.args["dataset"], job.args["algorithm"]
            done = cost(job, facts[group[0]])
            seconds.setdefault(group, []).append(taken * done.steps / done.trained)
    return {group: (statistics.mean(each), 0.0) for group, each in seconds.items()}


def measure(
    jobs: Iterable[Job], facts: Mapping[str, Dataset], known: Mapping[Group, Pace],
    say: Callable[[str], None],
) -> dict[Group, Pace]:  # fmt: skip
    """Time one job of each data set and algorithm of which nothing is known, on random pictures.

    ``say`` is told which cannot be measured, and why.
    """
    paces = dict(known)
    first = {(job.args["dataset"], job.args["algorithm"]): job for job in reversed(list(jobs))}
    for group, job in first.items():
        if group not in known:
            try:
                paces[group] = _measured(job, facts[group[0]])
            except Exception as error:  # of an algorithm, a download, a device out of memory
                say(f"{' '.join(group)} cannot be measured here: {error}")
    return paces


def _measured(job: Job, facts: Dataset) -> Pace:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = hparams(job)
    name, algorithm_name = job.args["dataset"], job.args["algorithm"]
    if name not in benchmarks.BENCHMARKS:
        raise CarftError(f"it is not known how many classes {name} has")
    classes = len(benchmarks.BENCHMARKS[name].classes)
    size = 48 if name == "EmojiStyles" and algorithm_name in ours.ALGORITHMS else 224
    shape, batch_size = (3, size, size), int(values["batch_size"])
    domains = len(facts.labels) - len(job.args["test_envs"])
    algorithm = names.algorithm_class(algorithm_name)(shape, classes, domains, values)
    algorithm.to(device)

    def batch(count: int) -> tuple[Any, Any]:
        labels = torch.randint(classes, (count,), device=device)
        return torch.randn(count, *shape, device=device), labels

    def median(action: Callable[[], object]) -> float:
        times = []
        for _ in range(_MEASURED_STEPS + 1):  # the first is to warm up
            started = time.perf_counter()
            action()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    step = median(lambda: algorithm.update([batch(batch_size) for _ in range(domains)]))
    algorithm.eval()
    with torch.no_grad():
        evaluation = median(lambda: algorithm.predict(batch(_EVALUATION_BATCH)[0]))
    return step / (batch_size * domains), evaluation / _EVALUATION_BATCH


def _number(count: float, digits: int = 0) -> str:
    return "?" if math.isnan(count) else f"{count:,.{digits}f}"
