"""The preparation of a run: hyperparameters, seeds, the data set and its splits.

Follows upstream file domainbed/scripts/train.py at b93c22a.
"""

from __future__ import annotations

import argparse
import os
import random
from typing import Any

import numpy as np
import torch

from domainbed import datasets, hparams_registry
from domainbed.lib import checks, misc
from domainbed.lib.splits import Environment, split_environments
from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for


def choose_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults, or for a seed other than 0 a random draw, with --hparams on top."""
    names = (args.algorithm, args.dataset)
    overrides = checks.given_hparams(args.hparams)
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


def share_cores(requested: int | None, dataset: Any, on_gpu: bool, processes: int = 1) -> int:
    """Return the number of loader processes: as requested, else the data set's, at most our share.

    That of one of the job's `processes` on this machine.

    Unless the user has set OMP_NUM_THREADS, torch gets as many threads as cores are left.
    """
    cores = machine.cores()
    share = os.environ.get(machine.CORES, "")
    if share.isdigit() and int(share):
        cores = min(cores, int(share))
    cores = max(1, cores // processes)
    workers = requested
    if workers is None:
        workers = min(int(dataset.N_WORKERS), machine.share(cores, on_gpu)[1])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores - workers))
    return workers


def load_environments(
    args: argparse.Namespace, hparams: dict[str, Any]
) -> tuple[Any, list[Environment]]:
    """Build the data set and split it.

    Raises CarftError if the data does not have the declared environments, or a split is empty.
    """
    dataset = datasets.get_dataset_class(args.dataset)(args.data_dir, args.test_envs, hparams)
    labels = dataset.ENVIRONMENTS
    if len(dataset) != len(labels):
        found = f"{args.dataset} has {len(labels)} environments ({', '.join(labels)})"
        raise CarftError(f"{found}, but the data has {len(dataset)}")
    environments = split_environments(
        list(dataset),
        args.test_envs,
        args.trial_seed,
        args.holdout_fraction,
        args.uda_holdout_fraction,
        hparams["class_balanced"],
    )
    # Every split is evaluated, and the accuracy on no items is not a number.
    raise_for(
        f"environment {label!r} has {len(environment.in_split)} in-split and "
        f"{len(environment.out_split)} out-split items; neither may be empty "
        f"(--holdout_fraction {args.holdout_fraction})"
        for label, environment in zip(labels, environments, strict=True)
        if not (len(environment.in_split) and len(environment.out_split))
    )
    return dataset, environments
