"""Select the jobs that a preflight tries: one for each group of jobs with equal costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from domainbed_carft.jobs.job import Job, parse_overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method.algorithms import CLASSES, recorded_hparams
from domainbed_carft.method.hparams import PINNABLE
from domainbed_carft.method.prompts import WITHOUT_TARGET
from domainbed_carft.sweep import costs, host

# Hparams on which the zero-shot accuracy depends.
_ZERO_SHOT = ("clip_backbone", "class_names", "contexts", "protocol", "preprocessing")
_MAX_WRITTEN = 60  # characters of one hparam in a label
_WEIGHT = "_weight"  # weight of a loss term, which costs time unless its weight is 0


@dataclass(frozen=True)
class Recipe:
    """Jobs of one algorithm whose steps cost the same per image."""

    label: str  # the algorithm, and the hparams that distinguish it from the sweep's other recipes
    job: Job  # the job with the largest batch, which the preflight tries
    jobs: Sequence[Job]


def group_into_recipes(jobs: Sequence[Job], datasets: Mapping[str, Dataset]) -> list[Recipe]:
    """Group the jobs of a sweep into recipes, in the order of the jobs."""
    jobs_by_key: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        key = (job.key.algorithm, json.dumps(_costly_hparams(job), sort_keys=True))
        jobs_by_key.setdefault(key, []).append(job)

    return [
        Recipe(
            label=_label(algorithm, members[0], jobs),
            job=max(members, key=lambda job: _images_per_step(job, datasets)),
            jobs=members,
        )
        for (algorithm, _), members in jobs_by_key.items()
    ]


def _label(algorithm: str, job: Job, jobs: Sequence[Job]) -> str:
    """Return the algorithm and the hparams in which its jobs differ, with the job's values."""
    hparams = _costly_hparams(job)
    all_hparams = [_costly_hparams(job) for job in jobs if job.key.algorithm == algorithm]
    differing = [
        f"{name}={value!r}"[:_MAX_WRITTEN]
        for name, value in hparams.items()
        if any(values.get(name) != value for values in all_hparams)
    ]
    return " ".join([algorithm, *differing])


def get_clip(job: Job) -> str:
    """Return the hparam clip_backbone of a job, or "" if its algorithm does not have it."""
    return str(host.get_job_hparams(job.args).get("clip_backbone", ""))


def zero_shot_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return a CLIPZeroShot job for each dataset, CLIP model, prompts and protocol of the jobs."""
    jobs_by_setting: dict[tuple[str, str], Job] = {}
    for job in jobs:
        hparams = host.get_job_hparams(job.args)
        shared = {name: hparams[name] for name in _ZERO_SHOT if name in hparams}
        if shared.get("contexts") == WITHOUT_TARGET:  # with all targets, none would remain
            shared["contexts"] = "domains"
        text = json.dumps(shared, sort_keys=True)
        args = {**job.args, "algorithm": "CLIPZeroShot", "hparams": text}
        jobs_by_setting.setdefault((job.key.dataset, text), replace(job, args=args))
    return [*jobs_by_setting.values()]


def _costly_hparams(job: Job) -> dict[str, Any]:
    """Return the hparams that a job sets and that change the cost of a step per image."""
    hparams = recorded_hparams(job.key.algorithm) if job.key.algorithm in CLASSES else {}
    costless = {name for name, hparam in hparams.items() if not hparam.changes_cost}
    costless |= {*PINNABLE} - {"preprocessing"}
    costly = {}
    for name, value in parse_overrides(job.args).items():
        if name.endswith(_WEIGHT):
            costly[name] = bool(value)
        elif name not in costless:
            costly[name] = value
    return costly


def _images_per_step(job: Job, datasets: Mapping[str, Dataset]) -> float:
    cost = costs.estimate_job_cost(job, datasets[job.key.dataset])
    return cost.trained / cost.steps
