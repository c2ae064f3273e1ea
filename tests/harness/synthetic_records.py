"""Sweeps with random records that are the same on every machine.

The generator of the golden files and the tests write them, to compare the tables of upstream and of
this package.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENVIRONMENTS = {"Debug28": 3, "PACS": 4}
ALGORITHMS = ("ERM", "Mixup")
STEPS = (0, 100, 200)
KINDS = ("complete", "gaps", "single")


def write_sweep(folder: Path, kind: str) -> None:
    """Write a sweep of one of the KINDS under `folder`.

    "complete" has every job that leave-one-domain-out needs, in two trials of three choices of
    hyperparameters. "gaps" lacks a fifth of these jobs, and all jobs of Mixup on PACS with test
    environment 2. "single" has only the jobs with one test environment.
    """
    draw = random.Random(f"synthetic {kind}")
    for job in _jobs(kind):
        if kind == "gaps" and (draw.random() < 0.2 or _is_mixup_on_photos(job)):
            continue

        name = hashlib.md5(json.dumps(job, sort_keys=True).encode()).hexdigest()
        (folder / name).mkdir(parents=True)
        lines = [json.dumps(_record(job, step, draw), sort_keys=True) + "\n" for step in STEPS]
        (folder / name / "results.jsonl").write_text("".join(lines))


def _is_mixup_on_photos(job: dict[str, Any]) -> bool:
    return job["algorithm"] == "Mixup" and job["dataset"] == "PACS" and job["test_envs"] == [2]


def _jobs(kind: str) -> Iterator[dict[str, Any]]:
    for dataset, algorithm in itertools.product(ENVIRONMENTS, ALGORITHMS):
        indices = range(ENVIRONMENTS[dataset])
        choices = [[i] for i in indices]
        if kind != "single":
            choices += [list(pair) for pair in itertools.combinations(indices, 2)]

        for test_envs, trial_seed, hparams_seed in itertools.product(choices, range(2), range(3)):
            yield {
                "dataset": dataset,
                "algorithm": algorithm,
                "test_envs": test_envs,
                "trial_seed": trial_seed,
                "hparams_seed": hparams_seed,
                "seed": 0,
                "holdout_fraction": 0.2,
                "output_dir": f"sweep/{dataset}/{algorithm}",
            }


def _record(job: dict[str, Any], step: int, draw: random.Random) -> dict[str, Any]:
    """Return a random record whose accuracies are multiples of 1/20, so that ties occur."""
    record: dict[str, Any] = {
        "args": job,
        "hparams": {"lr": 0.1 ** (1 + job["hparams_seed"])},
        "step": step,
        "epoch": step / 10,
        "loss": draw.random(),
    }
    for i in range(ENVIRONMENTS[job["dataset"]]):
        record[f"env{i}_in_acc"] = draw.randint(6, 20) / 20
        record[f"env{i}_out_acc"] = draw.randint(6, 20) / 20
    return record
