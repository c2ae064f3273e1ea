"""The cost of a sweep: jobs, steps, pictures, and hours where times are recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, overrides, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.sweep import name_checks
from domainbed_carft.sweep.states import DONE, Status
from domainbed_carft.text import table


class Cost(NamedTuple):
    """Of some jobs: pictures trained on and evaluated, hours left; nan means unknown."""

    jobs: float = 0
    done: float = 0
    steps: float = 0
    trained: float = 0
    evaluated: float = 0
    hours: float = 0.0


def costs(
    statuses: Sequence[Status], facts: Mapping[str, Dataset], skips: bool = False
) -> dict[tuple[str, str, str], Cost]:
    """Costs by variant, data set and algorithm, then their total; ``skips`` is as in ``cost``."""
    every = [cost(status.job, facts[status.job.key.dataset], skips) for status in statuses]
    paces: dict[tuple[str, str], list[float]] = {}  # seconds a picture trained on
    for status, one in zip(statuses, every):
        record = records.last_record(status.job.folder) or {}
        # The first record is of the first step alone, which is slower than the others.
        if record.get("step") and isinstance(record.get("step_time"), float):
            pace = record["step_time"] * one.steps / one.trained
            paces.setdefault(status.job.key[:2], []).append(pace)
    found: dict[tuple[str, str, str], Cost] = {}
    for status, one in zip(statuses, every):
        group = status.job.key[:2]
        if status.state == DONE:
            one = one._replace(done=1)
        else:
            pace = statistics.mean(paces.get(group, [math.nan]))
            one = one._replace(hours=pace * one.trained / 3600)
        key = (status.job.variant, *group)
        found[key] = Cost(*map(sum, zip(found.get(key, Cost()), one)))
    return {**found, ("all", "", ""): Cost(*map(sum, zip(*found.values())))}


def shown(found: Mapping[tuple[str, str, str], Cost], skips: bool) -> str:
    """The costs that ``--dry-run`` prints, with an explanation."""
    head = "variant,data set,algorithm,jobs,done,steps,trained,evaluated,hours left".split(",")
    rows = []
    for key, one in found.items():
        counts = ("?" if math.isnan(count) else f"{count:,.0f}" for count in one[:-1])
        rows.append([*key, *counts, "?" if math.isnan(one.hours) else f"{one.hours:,.2f}"])
    splits = "both splits of every environment"
    if skips:
        splits = "both splits of test environments, out-splits of the others"
    elif "ImageNet" in {dataset for _, dataset, _ in found}:
        splits += ", of ImageNet the out-split"
    return (
        f"{table(head, rows)}\n"
        f"Trained, evaluated: pictures; {splits}.\n"
        "Hours: training time of one job after another, without evaluation, from step_time in the "
        "records."
    )


def cost(job: Job, facts: Dataset, skips: bool = False) -> Cost:
    """Steps and pictures of a job; ``skips``: without the training environments' in-splits."""
    registry, args, key = name_checks.module("hparams_registry"), job.args, job.key
    if key.choice:
        seed = seed_hash(key.choice, key.trial)
        hparams = registry.random_hparams(key.algorithm, key.dataset, seed)
    else:
        seed = None
        hparams = registry.default_hparams(key.algorithm, key.dataset)
    implied = name_checks.implied_hparams(key.algorithm, key.dataset, overrides(args), seed)
    batch_size = {**hparams, **implied, **overrides(args)}["batch_size"]
    steps = int(args.get("steps") or facts.steps)
    trained = steps * int(batch_size) * (len(facts.labels) - len(key.test_envs))
    if facts.pictures is None:
        return Cost(1, 0, steps, trained, math.nan)
    # At step 0, every checkpoint_freq steps, and at the last one.
    last, every = steps - 1, facts.checkpoint_freq
    checkpoints = last // every + 1 + bool(last % every)
    # As train splits them: upstream file domainbed/scripts/train.py at b93c22a.
    share = args["holdout_fraction"] if skips or facts.held_out else 1.0
    a_pass = sum(n if i in key.test_envs else int(n * share) for i, n in enumerate(facts.pictures))
    return Cost(1, 0, steps, trained, checkpoints * a_pass)
