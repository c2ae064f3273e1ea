"""A finished sweep that never ran: job folders with records of the size that real ones have."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job

DATA = "/data/benchmarks"
DATASETS = {"PACS": 4, "VLCS": 4}
ALGORITHMS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")
TRIALS = 3
STEPS = tuple(range(0, 4801, 300))
JOBS_OF_ONE_CHOICE = len(DATASETS) * len(ALGORITHMS) * TRIALS * (4 + 6)
WORDS = 12  # more hyperparameters: DomainBed's own, and those that a fork adds

ENVIRONMENT = (
    "Environment:\n\tPython: 3.11.2\n\tPyTorch: 2.4.1\n\tTorchvision: 0.19.1\n\tCUDA: 12.4\n"
    "\tCUDNN: 90100\n\tNumPy: 1.26.4\n\tPIL: 10.4.0\n"
)


def write(folder: Path, jobs: int, seed: int = 0) -> int:
    """Write ``jobs`` jobs below ``folder``, rounded to whole choices of hyperparameters.

    Each data set, algorithm and trial has the jobs with one test environment and those with two.
    The number of jobs written is returned. The folder has their manifest, as a launched one has.
    """
    draw = random.Random(seed)
    choices = max(1, round(jobs / JOBS_OF_ONE_CHOICE))
    listed = []
    for job in _jobs(folder, choices):
        place = Path(job["output_dir"])
        place.mkdir(parents=True)
        hparams = _hparams(job)
        lines = [json.dumps(_record(job, hparams, step, draw), sort_keys=True) for step in STEPS]
        (place / "results.jsonl").write_text("\n".join(lines) + "\n")
        (place / "out.txt").write_text(ENVIRONMENT + "step  loss\n" * len(STEPS))
        (place / "err.txt").touch()
        (place / "done").write_text("done")
        listed.append(Job({k: v for k, v in job.items() if k != "output_dir"}, place))
    facts = {
        name: manifest.Dataset(tuple(f"env{i}" for i in range(environments)), None, 5001, 300)
        for name, environments in DATASETS.items()
    }
    manifest.add(folder, manifest.Sweep(tuple(listed), facts))
    return len(listed)


def _jobs(folder: Path, choices: int) -> Iterator[dict[str, Any]]:
    """The arguments of each job, in DomainBed's words."""
    for (dataset, count), algorithm in itertools.product(DATASETS.items(), ALGORITHMS):
        targets = [[i] for i in range(count)]
        targets += [list(pair) for pair in itertools.combinations(range(count), 2)]
        for envs, trial, choice in itertools.product(targets, range(TRIALS), range(choices)):
            job = {
                "algorithm": algorithm, "checkpoint_freq": None, "data_dir": DATA,
                "dataset": dataset, "holdout_fraction": 0.2, "hparams": None,
                "hparams_seed": choice, "keep_weights": "last", "output_dir": "",
                "save_model_every_checkpoint": False, "seed": 0, "skip_model_save": False,
                "steps": None, "task": "domain_generalization", "test_envs": envs,
                "trial_seed": trial, "uda_holdout_fraction": 0, "workers": None,
            }  # fmt: skip
            name = hashlib.md5(json.dumps(job, sort_keys=True).encode()).hexdigest()
            yield job | {"output_dir": str(folder / name), "seed": int(name[:7], 16)}


def _hparams(job: dict[str, Any]) -> dict[str, Any]:
    trial = job["trial_seed"] if job["hparams_seed"] else None  # choice 0 is the defaults
    draw = random.Random(f"{job['hparams_seed']} {trial}")
    named = {
        "batch_size": 32, "class_balanced": False, "clip_backbone": "ViT-B/16",
        "contexts": "imagenet", "data_augmentation": True, "data_edition": "as published",
        "lr": 10 ** draw.uniform(-6, -4.5), "protocol": "domainbed", "prompts_digest": "0" * 16,
    }  # fmt: skip
    return named | {f"hyperparameter_{i}": draw.random() for i in range(WORDS)}


def _record(
    job: dict[str, Any], hparams: dict[str, Any], step: int, draw: random.Random
) -> dict[str, Any]:
    """Accuracies are shares of 400 pictures, so that some are equal."""
    record = {
        "args": job, "hparams": hparams, "step": step, "epoch": step / 41.75,
        "data_edition": "as published", "loss": draw.random(), "kl": draw.random(),
        "agreement": draw.random(), "step_time": draw.random(), "mem_gb": draw.random(),
        "evaluation_time": draw.random(), "device": "GPU", "trained_parameters": 149_620_737,
    }  # fmt: skip
    for index in range(DATASETS[job["dataset"]]):
        record[f"env{index}_in_acc"] = draw.randint(120, 400) / 400
        record[f"env{index}_out_acc"] = draw.randint(120, 400) / 400
    return record
