"""The preparation of a run: hyperparameters, seeds, the data set and its splits.

Follows upstream file domainbed/scripts/train.py at b93c22a, the splits to the item.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import checks, misc
from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for


class Environment(NamedTuple):
    """One environment's splits."""

    in_split: misc.SplitDataset  # trained on, unless the environment is a test environment
    out_split: misc.SplitDataset  # for model selection
    uda_split: misc.SplitDataset  # of a test environment, for domain adaptation


def choose_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults, or for a seed other than 0 a random draw, with --hparams on top.

    In between comes what the algorithm's class takes as implied by --hparams.
    """
    overrides = checks.given_hparams(args.hparams)
    if args.hparams_seed:
        seed = misc.seed_hash(args.hparams_seed, args.trial_seed)
        hparams = hparams_registry.random_hparams(args.algorithm, args.dataset, seed)
    else:
        seed = None
        hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)

    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    return hparams | algorithm_class.implied_hparams(args.dataset, overrides, seed) | overrides


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and make cuDNN repeatable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def share_cores(requested: int | None, dataset: Any, on_gpu: bool, processes: int = 1) -> int:
    """Return the loader processes of each of the job's `processes`; torch gets the cores left."""
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


def split_environments(
    environments: Sequence[Any],
    test_envs: Sequence[int],
    trial_seed: int,
    holdout_fraction: float,
    uda_holdout_fraction: float,
) -> list[Environment]:
    """Divide each environment; the second share is that of a test environment's in-split."""
    result = []
    for index, environment in enumerate(environments):
        seed = misc.seed_hash(trial_seed, index)
        held_out = int(len(environment) * holdout_fraction)
        out_split, in_split = misc.split_dataset(environment, held_out, seed)
        uda_split = misc.SplitDataset(in_split, [])
        if index in test_envs:
            unlabeled = int(len(in_split) * uda_holdout_fraction)
            uda_split, in_split = misc.split_dataset(in_split, unlabeled, seed)
        result.append(Environment(in_split, out_split, uda_split))
    return result


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
    shares = args.holdout_fraction, args.uda_holdout_fraction
    environments = split_environments(list(dataset), args.test_envs, args.trial_seed, *shares)
    # Every split is evaluated, and the accuracy on no items is not a number.
    raise_for(
        f"environment {label!r} has {len(inside)} in-split and {len(outside)} out-split items; "
        f"neither may be empty (--holdout_fraction {args.holdout_fraction})"
        for label, (inside, outside, _) in zip(labels, environments, strict=True)
        if not (len(inside) and len(outside))
    )
    return dataset, environments
