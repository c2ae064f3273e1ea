"""What a run needs before its first step: hyperparameters, seeds, the data set and its splits.

Follows upstream file domainbed/scripts/train.py at b93c22a.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from domainbed import datasets, hparams_registry
from domainbed.lib import checks, errors, misc
from domainbed.lib.splits import Environment, split_environments

# How many cores a job may take: a launcher that runs several at a time says so.
CORES = "DOMAINBED_CORES"


def choose_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults, or for a seed other than 0 a random draw, with --hparams on top."""
    names = (args.algorithm, args.dataset)
    overrides: dict[str, Any] = json.loads(args.hparams or "{}")
    if not args.hparams_seed:
        return hparams_registry.default_hparams(*names) | overrides
    draw = misc.seed_hash(args.hparams_seed, args.trial_seed)
    return hparams_registry.random_hparams(*names, draw) | overrides


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and make cuDNN repeatable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def workers_for(requested: int | None, dataset: Any) -> int:
    """Return how many loader processes to use: as requested, or as many as there is use for."""
    if requested is not None:
        return requested
    # Not os.cpu_count: in a container that is the whole machine's.
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = os.environ.get(CORES, "")
    if share.isdigit() and int(share):
        cpus = min(cpus, int(share))
    return min(int(dataset.N_WORKERS), cpus)


def load_environments(
    args: argparse.Namespace, hparams: dict[str, Any]
) -> tuple[Any, list[Environment]]:
    """Build the data set and split it.

    Raises:
        UsageError: the data does not have the declared environments, or a plugin has found it
            broken, or a split that the run needs is empty.
    """
    dataset = datasets.get_dataset_class(args.dataset)(args.data_dir, args.test_envs, hparams)
    # Of data in a folder that only the class knows: of all other `checks.data_problems` has told.
    checks.require(getattr(dataset, "data_faults", ()))
    labels = dataset.ENVIRONMENTS
    if len(dataset) != len(labels):
        found = f"{args.dataset} has {len(labels)} environments ({', '.join(labels)})"
        raise errors.UsageError([f"{found}, but the data has {len(dataset)}."])
    environments = split_environments(
        list(dataset),
        args.test_envs,
        args.trial_seed,
        args.holdout_fraction,
        args.uda_holdout_fraction,
        hparams["class_balanced"],
    )
    checks.require(_split_problems(args, labels, environments))
    return dataset, environments


def _split_problems(
    args: argparse.Namespace, labels: Sequence[str], environments: Sequence[Environment]
) -> list[str]:
    """Every split is evaluated, and the accuracy on no items is no number."""
    problems = [
        f"Environment {label!r} has {len(environment.in_split)} in-split and "
        f"{len(environment.out_split)} out-split items; neither may be empty "
        f"(--holdout_fraction {args.holdout_fraction})."
        for label, environment in zip(labels, environments, strict=True)
        if not (len(environment.in_split) and len(environment.out_split))
    ]
    if args.task == "domain_adaptation" and not any(len(e.uda_split) for e in environments):
        problems.append(no_unlabeled_items(args))
    return problems


def no_unlabeled_items(args: argparse.Namespace) -> str:
    """Say that domain adaptation has nothing to adapt to."""
    if not args.test_envs:
        return "--task domain_adaptation needs items of a test environment: give --test_envs."
    return (
        "--task domain_adaptation needs unlabeled items: "
        f"--uda_holdout_fraction {args.uda_holdout_fraction} leaves none."
    )
