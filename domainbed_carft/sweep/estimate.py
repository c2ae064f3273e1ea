"""The cost of a sweep: jobs, steps, pictures, and hours where times are known."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks, tasks
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.suites import imagenet
from domainbed_carft.sweep import names
from domainbed_carft.sweep.states import DONE, Status
from domainbed_carft.text import table

Group = tuple[str, str]  # data set, algorithm

_MEASURED_STEPS = 3


class Cost(NamedTuple):
    """The cost of some jobs: pictures trained on and evaluated, hours left, one after another.

    nan means unknown.
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
    paces: Mapping[Group, float],
    skips: bool = False,
) -> dict[tuple[str, str, str], Cost]:
    """Costs by variant, data set and algorithm, then their total.

    ``paces`` are seconds a picture trained on; ``skips`` is as in ``cost``.
    """
    found: dict[tuple[str, str, str], Cost] = {}
    for status in statuses:
        group = status.job.args["dataset"], status.job.args["algorithm"]
        one = cost(status.job, facts[group[0]], skips)
        done = status.state == DONE
        hours = 0.0 if done else paces.get(group, math.nan) * one.trained / 3600
        one = one._replace(done=int(done), hours=hours)
        key = (status.job.variant, *group)
        found[key] = Cost(*map(sum, zip(found.get(key, Cost()), one)))
    return {**found, ("all", "", ""): Cost(*map(sum, zip(*found.values())))}


def shown(found: Mapping[tuple[str, str, str], Cost], skips: bool) -> str:
    """The costs that ``--dry_run`` prints, with an explanation."""
    head = ["variant", "data set", "algorithm", "jobs", "done", "steps", "trained", "evaluated"]
    rows = [
        [*key, *(_number(count) for count in one[:-1]), _number(one.hours, 2)]
        for key, one in found.items()
    ]
    splits = "both splits of every environment"
    if skips:
        splits = "both splits of test environments, out-splits of the others"
    elif "ImageNet" in {dataset for _, dataset, _ in found}:
        splits += ", of ImageNet the out-split"
    return (
        f"{table([*head, 'hours left'], rows)}\n"
        f"Trained, evaluated: pictures; {splits}.\n"
        "Hours: training time of one job after another, without evaluation, from step_time in the "
        "records; for algorithms without records, add --measure."
    )


def hparams(job: Job) -> dict[str, Any]:
    """All hyperparameters of a job, as train will set them."""
    registry, args = names.module("hparams_registry"), job.args
    pair, choice = (args["algorithm"], args["dataset"]), args["hparams_seed"]
    if choice:
        found = registry.random_hparams(*pair, seed_hash(choice, args["trial_seed"]))
    else:
        found = registry.default_hparams(*pair)
    return {**found, **json.loads(args.get("hparams") or "{}")}


def cost(job: Job, facts: Dataset, skips: bool = False) -> Cost:
    """Steps and pictures of a job; ``skips``: without the training environments' in-splits."""
    steps = int(job.args.get("steps") or facts.steps)
    left_out = set(job.args["test_envs"])
    batch = int(hparams(job)["batch_size"]) * (len(facts.labels) - len(left_out))
    if facts.pictures is None:
        return Cost(1, 0, steps, steps * batch, math.nan)
    # At step 0, every checkpoint_freq steps, and at the last one.
    last, every = steps - 1, facts.checkpoint_freq
    checkpoints = last // every + 1 + bool(last % every)
    # As train splits them: upstream file domainbed/scripts/train.py at b93c22a.
    share = job.args["holdout_fraction"] if skips or facts.held_out else 1.0
    a_pass = sum(n if i in left_out else int(n * share) for i, n in enumerate(facts.pictures))
    return Cost(1, 0, steps, steps * batch, checkpoints * a_pass)


def recorded(jobs: Iterable[Job], facts: Mapping[str, Dataset]) -> dict[Group, float]:
    """Seconds per training picture, from the step times in the records."""
    seconds: dict[Group, list[float]] = {}
    for job in jobs:
        record = records.last(job.folder) if job.folder.is_dir() else None
        taken = record.get("step_time") if record else None
        # The first record is of the first step alone, which is slower than the others.
        if record and record["step"] and isinstance(taken, float):
            group = job.args["dataset"], job.args["algorithm"]
            done = cost(job, facts[group[0]])
            seconds.setdefault(group, []).append(taken * done.steps / done.trained)
    return {group: statistics.mean(each) for group, each in seconds.items()}


def measured(job: Job, facts: Dataset) -> float:
    """Seconds per training picture, measured now by a few steps on random pictures."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, name, algorithm = hparams(job), job.args["dataset"], job.args["algorithm"]
    if "protocol" in values:
        values["protocol"] = "domainbed"  # there is no data set to follow another
    if name in tasks.TASKS:
        classes = tasks.TASKS[name].classes
    else:
        known = imagenet.ids() if name == "ImageNet" else benchmarks.get(name).classes
        classes = len(known)
    size = 48 if name in ours.EMBEDDED and algorithm in ours.ALGORITHMS else 224
    batch_size = int(values["batch_size"])
    domains = len(facts.labels) - len(job.args["test_envs"])
    made = names.algorithm_class(algorithm)((3, size, size), classes, domains, values).to(device)
    times = []
    for _ in range(_MEASURED_STEPS + 1):  # the first is to warm up
        pictures = torch.randn(domains, batch_size, 3, size, size, device=device)
        labels = torch.randint(classes, (domains, batch_size), device=device)
        started = time.perf_counter()
        made.update(list(zip(pictures, labels)))
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) / (batch_size * domains)


def _number(count: float, digits: int = 0) -> str:
    return "?" if math.isnan(count) else f"{count:,.{digits}f}"
