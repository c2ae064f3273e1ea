"""The preparation of a job: hyperparameters, seeds, the dataset, its splits and images.

Follows upstream file domainbed/scripts/train.py at b93c22a, the splits to the item.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import few_shots, image_batches, misc
from domainbed.lib.image_batches import Images
from domainbed.lib.job_batches import JobBatches
from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs.job import READ_BY_TRAIN, unset_hparams
from domainbed_carft.jobs.splits import (
    EnvironmentSplits,
    NamedSplit,
    select_evaluated,
    split_environments,
)
from domainbed_carft.machine import devices


@dataclass(frozen=True)
class PreparedJob:
    """What a job has before its algorithm is built; `prepare` makes it."""

    args: argparse.Namespace
    hparams: dict[str, Any]  # those that the dataset was built with
    dataset: Any
    environments: Sequence[EnvironmentSplits]
    images: Images

    @property
    def training_envs(self) -> list[int]:
        """The numbers of the environments that are trained on."""
        return [i for i in range(len(self.environments)) if i not in self.args.test_envs]

    def build_algorithm(self, hparams: Mapping[str, Any]) -> Any:
        """The job's algorithm with these hyperparameters, on the processor."""
        algorithm_class = algorithms.get_algorithm_class(self.args.algorithm)
        return algorithm_class(
            self.dataset.input_shape,
            self.dataset.num_classes,
            len(self.training_envs),
            dict(hparams),
        )

    def batches(self, evaluated: Mapping[str, Any], **options: Any) -> JobBatches:
        """The batches of the job's steps and evaluations; draws the seed of its training.

        ``options``: the other fields of `JobBatches`. Raises CarftError for too few `shots`.
        """
        in_splits = few_shots.training_splits(
            self.dataset, self.environments, self.training_envs, self.hparams
        )
        return JobBatches(
            in_splits=in_splits,
            evaluated=evaluated,
            hparams=self.hparams,
            seed=self.args.seed,
            **options,
        )


def choose_hparams(args: argparse.Namespace, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults, or for a seed other than 0 a random draw, with `overrides` on top.

    `overrides` are those of --hparams. In between comes what the algorithm's class takes as implied
    by them.
    """
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    unset = unset_hparams(hparams_registry, algorithm_class, vars(args), overrides)
    return {**unset, **overrides}


def changed_hparams(
    args: argparse.Namespace, overrides: Mapping[str, Any], hparams: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of the chosen `hparams` that differ from the defaults of the algorithm and dataset."""
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    undrawn = {**vars(args), "hparams_seed": 0}
    defaults = unset_hparams(hparams_registry, algorithm_class, undrawn, overrides)
    return {
        name: value
        for name, value in hparams.items()
        if name not in defaults or defaults[name] != value
    }


def unused_hparams(args: argparse.Namespace, overrides: Mapping[str, Any]) -> Sequence[str]:
    """Return the names among `overrides` that change nothing for the job's algorithm."""
    names = [name for name in overrides if name not in READ_BY_TRAIN]
    return algorithms.get_algorithm_class(args.algorithm).unused_hparams(names)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and make cuDNN repeatable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def share_cores(requested: int | None, dataset: Any, on_gpu: bool, processes: int = 1) -> int:
    """Return the loader processes of each of the job's `processes`; torch gets the other cores."""
    cores = max(1, machine.job_cores() // processes)

    workers = requested
    if workers is None:
        workers = min(int(dataset.N_WORKERS), machine.share(cores, on_gpu)[1])

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores - workers))
    return workers


def warn_of_small_environments(
    labels: Sequence[str],
    environments: Sequence[EnvironmentSplits],
    training_envs: Iterable[int],
    batch_size: int,
) -> None:
    """Print a warning for each training environment with fewer items than a batch."""
    for index in training_envs:
        size = len(environments[index].in_split)
        if size < batch_size:
            print(
                f"Warning: environment {labels[index]!r} has {size} training items, fewer than "
                f"the batch size {batch_size}; batches repeat items."
            )


def evaluated_names(
    named_splits: Iterable[NamedSplit],
    dataset: datasets.MultipleDomainDataset,
    skipped_environments: Collection[int],
) -> list[str]:
    """The names of the splits that each record has, in their order."""
    kinds = dataset.EVALUATED_SPLITS
    return [split.name for split in select_evaluated(named_splits, kinds, skipped_environments)]


def steps_per_epoch(environments: Sequence[EnvironmentSplits], batch_size: int) -> float:
    """Upstream's count: the smallest in-split of all, test environments included."""
    return min(len(environment.in_split) for environment in environments) / batch_size


def recorded_facts(dataset: datasets.MultipleDomainDataset) -> dict[str, Any]:
    """What each record says of the dataset, beside upstream's keys.

    The labels of a user's own environments are recorded so that tables have their columns where
    the folder is missing.
    """
    known_facts = {"data_edition": dataset.data_edition, "protocol": dataset.protocol}
    facts: dict[str, Any] = {name: value for name, value in known_facts.items() if value}
    if isinstance(dataset, datasets.OwnData):
        facts["environments"] = list(dataset.ENVIRONMENTS or ())
    return facts


def cost_facts(
    algorithm: torch.nn.Module, device: torch.device, n_processes: int
) -> dict[str, str | int]:
    """What each record says beside times and memory: on which device, and how much is trained.

    Times of jobs may be compared where the device's name is the same.
    """
    name = devices.gpu_facts().name if devices.is_gpu(device) else machine.processor_name()
    trained = sum(value.numel() for value in algorithm.parameters() if value.requires_grad)
    return {
        "device": f"{n_processes} x {name}" if n_processes > 1 else name,
        "trained_parameters": trained,
    }


def load_environments(
    args: argparse.Namespace, hparams: dict[str, Any]
) -> tuple[Any, list[EnvironmentSplits]]:
    """Build the dataset and split it.

    Raises CarftError if the data does not have the declared environments, or a split is empty.
    """
    dataset = datasets.get_dataset_class(args.dataset)(args.data_dir, args.test_envs, hparams)
    labels = dataset.ENVIRONMENTS
    if len(dataset) != len(labels):
        raise CarftError(
            f"{args.dataset} has {len(labels)} environments ({', '.join(labels)}), but the data "
            f"has {len(dataset)}"
        )

    environments = split_environments(
        environments=dataset,
        targets=args.test_envs,
        trial_seed=args.trial_seed,
        holdout_fraction=args.holdout_fraction,
        uda_holdout_fraction=args.uda_holdout_fraction,
        host_functions=misc,
    )
    # Every split is evaluated, and the accuracy on no items is not a number.
    raise_for(
        f"environment {label!r} has {len(splits.in_split)} in-split and {len(splits.out_split)} "
        f"out-split items; neither may be empty (--holdout_fraction {args.holdout_fraction})"
        for label, splits in zip(labels, environments, strict=True)
        if not (len(splits.in_split) and len(splits.out_split))
    )
    return dataset, environments


def prepare(args: argparse.Namespace, hparams: dict[str, Any], memory_limit: int) -> PreparedJob:
    """Seed all random numbers, load the data and choose how its images are read.

    ``hparams``: by `choose_hparams`. ``memory_limit``: the bytes of evaluation images that may
    stay in memory. Raises what `load_environments` does.
    """
    seed_everything(args.seed)
    dataset, environments = load_environments(args, hparams)
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    images = image_batches.choose(
        dataset,
        memory_limit,
        ask_model=functools.partial(algorithm_class.wanted_images, hparams),
    )
    return PreparedJob(args, hparams, dataset, environments, images)
