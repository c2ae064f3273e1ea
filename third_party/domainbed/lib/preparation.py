"""Preparation of a job: hyperparameters, seeds, the dataset, its splits and images.

Follows upstream file domainbed/scripts/train.py at b93c22a; the splits are identical.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from domainbed import algorithms, datasets
from domainbed.lib import misc
from domainbed_carft import machine
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.images import stages
from domainbed_carft.images.dataset_facts import takes_dataset_facts
from domainbed_carft.images.image_lists import get_file_plan
from domainbed_carft.images.plan import FAST, ImagePlan
from domainbed_carft.jobs.splits import (
    EnvironmentSplits,
    Split,
    select_evaluated,
    split_environments,
)
from domainbed_carft.machine import devices


@dataclass(frozen=True)
class PreparedJob:
    """A job before its algorithm is built; created by `prepare`."""

    args: argparse.Namespace
    hparams: dict[str, Any]  # the dataset was built with these
    dataset: Any
    environments: Sequence[EnvironmentSplits]
    # Of the first augmented environment, or of the first; None if no images are read by a plan.
    plan: ImagePlan | None
    memory_limit: int  # largest size of evaluation images in memory, bytes

    @property
    def lacks_numba(self) -> bool:
        """True if a CPU does the colour jitter without numba, which makes it the slowest part."""
        augmentation = self.plan.augmentation if self.plan else None
        if augmentation is None or augmentation.jitter_ranges is None:
            return False
        return not devices.is_gpu(devices.default_device()) and not stages.has_numba()

    @property
    def training_envs(self) -> list[int]:
        """Numbers of the training environments."""
        return [i for i in range(len(self.environments)) if i not in self.args.test_envs]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and make cuDNN deterministic."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def share_cores(requested: int | None, dataset: Any, on_gpu: bool, processes: int = 1) -> int:
    """Divide the cores between loader processes and torch's threads.

    Args:
        requested: the value of --workers, or None.
        dataset: the dataset, with its default number of workers.
        on_gpu: True if the job trains on a GPU.
        processes: number of the job's processes on this machine.

    Returns:
        Number of loader processes of each of the job's processes.
    """
    cores = max(1, machine.job_cores() // processes)

    workers = requested
    if workers is None:
        workers = min(int(dataset.N_WORKERS), machine.divide_cores(cores, on_gpu)[1])

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
    named_splits: Iterable[Split],
    dataset: datasets.MultipleDomainDataset,
    skipped_environments: Collection[int],
) -> list[str]:
    """Return the names of the splits that each record has, in their order."""
    kinds = dataset.EVALUATED_SPLITS
    return [split.name for split in select_evaluated(named_splits, kinds, skipped_environments)]


def steps_per_epoch(environments: Sequence[EnvironmentSplits], batch_size: int) -> float:
    """Return upstream's count, from the smallest in-split (including test environments)."""
    return min(len(environment.in_split) for environment in environments) / batch_size


def recorded_facts(dataset: datasets.MultipleDomainDataset) -> dict[str, Any]:
    """Return facts about the dataset, which are added to each record.

    The names of a user's own environments are recorded so that tables can have their columns even
    if the folder is missing.
    """
    known_facts = {"data_edition": dataset.data_edition, "protocol": dataset.protocol}
    facts: dict[str, Any] = {name: value for name, value in known_facts.items() if value}
    if isinstance(dataset, datasets.OwnData):
        facts["environments"] = list(dataset.ENVIRONMENTS or ())
    return facts


def recorded_image_facts(plan: ImagePlan | None) -> dict[str, Any]:
    """Return facts about the images for records and weights files."""
    return {"images": plan.describe(), "image_plan": plan.as_json()} if plan else {}


def cost_facts(
    algorithm: torch.nn.Module, device: torch.device, n_processes: int
) -> dict[str, str | int]:
    """Return the device's name and the number of trained parameters, for each record.

    Times of jobs can be compared if the device's name is the same.
    """
    name = devices.gpu_facts().name if devices.is_gpu(device) else machine.get_cpu_name()
    trained = sum(value.numel() for value in algorithm.parameters() if value.requires_grad)
    return {
        "device": f"{n_processes} x {name}" if n_processes > 1 else name,
        "trained_parameters": trained,
    }


def load_environments(
    args: argparse.Namespace, hparams: dict[str, Any]
) -> tuple[Any, list[EnvironmentSplits]]:
    """Build the dataset and split its environments.

    Raises:
        CarftError: the data does not have the declared environments, or a split is empty.
    """
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    model_input = None
    if takes_dataset_facts(algorithm_class):
        model_input = algorithm_class.image_format(hparams)
    dataset = datasets.get_dataset_class(args.dataset).for_job(
        args.data_dir, args.test_envs, hparams, model_input
    )
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
    # Every split is evaluated, and the accuracy on an empty split would be nan.
    raise_for(
        f"environment {label!r} has {len(splits.in_split)} in-split and {len(splits.out_split)} "
        f"out-split items; neither can be empty (--holdout_fraction {args.holdout_fraction})"
        for label, splits in zip(labels, environments, strict=True)
        if not (len(splits.in_split) and len(splits.out_split))
    )
    return dataset, environments


def prepare(args: argparse.Namespace, hparams: dict[str, Any], memory_limit: int) -> PreparedJob:
    """Seed all random numbers, load the data and choose the way to read its images.

    Args:
        args: arguments of the job.
        hparams: all hyperparameters of the job.
        memory_limit: largest size of evaluation images in memory, in bytes.

    Raises:
        CarftError: the data does not have the declared environments, or a split is empty.
    """
    seed_everything(args.seed)
    dataset, environments = load_environments(args, hparams)
    return PreparedJob(args, hparams, dataset, environments, find_job_plan(dataset), memory_limit)


def find_job_plan(dataset: Iterable[Any]) -> ImagePlan | None:
    """Return the plan of a dataset's training images, None if no images are read by a plan."""
    plans = [plan for plan in map(get_file_plan, dataset) if plan]
    if not plans:
        return None
    plan = next((plan for plan in plans if plan.augmentation), plans[0])
    jitter = stages.jitter_backend(devices.default_device())
    return dataclasses.replace(plan, mode=FAST, jitter=jitter)
