"""Which jobs of a sweep are rehearsed: one for each way to compute that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from domainbed_carft.jobs.job import Job, overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method.algorithms import CLASSES, recorded_hparams
from domainbed_carft.method.hparams import PINNABLE
from domainbed_carft.method.prompts import WITHOUT_TARGET
from domainbed_carft.sweep import costs, host

# Hparams on which the zero-shot accuracy depends.
_ZERO_SHOT = ("clip_backbone", "class_names", "contexts", "protocol", "preprocessing")
_MAX_WRITTEN = 60  # characters of an hparam in a label
_WEIGHT = "_weight"  # of a term, which is computed unless it is 0


@dataclass(frozen=True)
class Recipe:
    """Jobs of one algorithm whose steps cost the same, for each image.

    ``job``: the one with the largest batch, which is rehearsed; ``label``: the algorithm and the
    hparams by which it differs from other recipes of the sweep.
    """

    label: str
    job: Job
    jobs: Sequence[Job]

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Variant, dataset and algorithm of its jobs, each once: the rows of the costs."""
        keys = [(job.variant, job.key.dataset, job.key.algorithm) for job in self.jobs]
        return [*dict.fromkeys(keys)]


def recipes_of(jobs: Sequence[Job], datasets: Mapping[str, Dataset]) -> list[Recipe]:
    """The recipes of a sweep, in the order of its jobs."""
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
    """The algorithm, and the hparams of a job in which others of the algorithm differ."""
    hparams = _costly_hparams(job)
    of_algorithm = [_costly_hparams(job) for job in jobs if job.key.algorithm == algorithm]
    differing = [
        f"{name}={value!r}"[:_MAX_WRITTEN]
        for name, value in hparams.items()
        if any(values.get(name) != value for values in of_algorithm)
    ]
    return " ".join([algorithm, *differing])


def clip_of(job: Job) -> str:
    """The hparam clip_backbone of a job; "" if its algorithm has none."""
    return str(host.job_hparams(job.args).get("clip_backbone", ""))


def zero_shot_jobs(jobs: Sequence[Job]) -> list[Job]:
    """A job of CLIPZeroShot for each CLIP, prompts and protocol that a dataset is used with."""
    job_of_setting: dict[tuple[str, str], Job] = {}
    for job in jobs:
        hparams = host.job_hparams(job.args)
        shared = {name: hparams[name] for name in _ZERO_SHOT if name in hparams}
        if shared.get("contexts") == WITHOUT_TARGET:  # nothing would be left
            shared["contexts"] = "domains"
        text = json.dumps(shared, sort_keys=True)
        args = {**job.args, "algorithm": "CLIPZeroShot", "hparams": text}
        job_of_setting.setdefault((job.key.dataset, text), replace(job, args=args))
    return [*job_of_setting.values()]


def _costly_hparams(job: Job) -> dict[str, Any]:
    """The hparams that a job sets and that change what a step costs for an image."""
    known = recorded_hparams(job.key.algorithm) if job.key.algorithm in CLASSES else {}
    costless = {name for name, hparam in known.items() if not hparam.changes_cost}
    costless |= {*PINNABLE} - {"preprocessing"}
    costly = {}
    for name, value in overrides(job.args).items():
        if name.endswith(_WEIGHT):
            costly[name] = bool(value)
        elif name not in costless:
            costly[name] = value
    return costly


def _images_per_step(job: Job, datasets: Mapping[str, Dataset]) -> float:
    cost = costs.job_cost(job, datasets[job.key.dataset])
    return cost.trained / cost.steps
