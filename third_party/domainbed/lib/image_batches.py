"""Batches of images in two stages: each image in a loader process, then the batch.

For the environments that `image_folders` reads; equal by rounding to upstream's transforms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from domainbed.lib import image_folders
from domainbed_carft.data import image_files
from domainbed_carft.images import loading, rng, stages
from domainbed_carft.images.plan import FAST, JITTERS, ImagePlan
from domainbed_carft.images.protocols import UPSTREAM_SIZE
from domainbed_carft.images.transforms import find_plan
from domainbed_carft.machine import devices


class ModelInput(NamedTuple):
    """The images that a model takes, in place of upstream's size and normalisation."""

    size: int  # px a side
    mean: tuple[float, ...]  # of [0, 1], a channel
    std: tuple[float, ...]


class UnfinishedBatch(NamedTuple):
    """A batch before its second stage."""

    plan: ImagePlan
    images: torch.Tensor  # (N, S, S, 3), uint8
    choices: torch.Tensor  # (N, 10), as `stages.first_stage` returns them
    labels: torch.Tensor  # (N,)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, (N, 3, S, S), float32 and normalised, and the labels, (N,)."""
        return stages.second_stage(self.plan, self.images, self.choices), self.labels

    def copy(self) -> UnfinishedBatch:
        """The batch in memory of its own, not in what it shares with a loader process."""
        return self._replace(
            images=self.images.clone(),
            choices=self.choices.clone(),
            labels=self.labels.clone(),
        )

    def pinned(self) -> UnfinishedBatch:
        """The batch, of which what a GPU needs is in memory that it copies from by itself."""
        return self._replace(images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Images:
    """How a job gets its images."""

    # What all environments share, with the augmentation of those that have one; None if the
    # dataset's own transforms make the images.
    plan: ImagePlan | None = None
    memory_limit: int = 0  # bytes of evaluation images that may stay in memory
    # Whether the loader does the second stage, too; a GPU does its own.
    finished_by_loader: bool = True

    @property
    def description(self) -> str:
        """The plan in words; "" if the dataset's own transforms make the images."""
        return self.plan.describe() if self.plan else ""

    @property
    def lacks_numba(self) -> bool:
        """Whether a processor does the colour jitter without numba, slower than all of the rest."""
        augmentation = self.plan.augmentation if self.plan else None
        if augmentation is None or augmentation.jitter_ranges is None:
            return False
        return self.finished_by_loader and not stages.has_numba()

    def recorded_facts(self) -> dict[str, Any]:
        """What records and files of weights say of the images."""
        if self.plan is None:
            return {}
        return {"images": self.description, "image_plan": self.plan.as_json()}

    def jittered_as(self, description: str) -> Images:
        """These images, with the jitter of a job whose images are described so.

        A job may resume on another device, whose jitter would differ by rounding. Images that
        differ in more stay as they are.
        """
        if self.plan is None:
            return self
        plans = [replace(self.plan, jitter=jitter) for jitter in JITTERS]
        same_plan = next((plan for plan in plans if plan.describe() == description), self.plan)
        return replace(self, plan=same_plan)

    def source(self, dataset: Any) -> ImageSource | None:
        """How to read a dataset, or a part of one; None if its own transforms do that."""
        environment = dataset
        positions = None
        while isinstance(environment, Subset):
            inner = environment.indices
            positions = inner if positions is None else [inner[position] for position in positions]
            environment = environment.dataset

        own_plan = environment_plan(environment)
        if self.plan is None or self.plan.mode != FAST or own_plan is None:
            return None
        plan = replace(own_plan, mode=FAST, jitter=self.plan.jitter)
        if self.plan.is_for_model:
            plan = plan.for_model(self.plan.size, self.plan.mean, self.plan.std)
        return ImageSource(environment, positions, plan, self.finished_by_loader)


def environment_plan(environment: Any) -> ImagePlan | None:
    """The plan of an environment's transform; None where only the transform itself can do it."""
    if not image_folders.is_image_folder(environment):
        return None
    return find_plan(environment.transform)


def choose(
    dataset: Any,
    memory_limit: int,
    ask_model: Callable[[], Sequence[Any] | None] | None = None,
) -> Images:
    """How a job gets the images of its dataset.

    ``memory_limit``: the bytes of evaluation images that may stay in memory. ``ask_model``
    returns the fields of a ModelInput, or None; it is called only if all environments can be read
    so, and then changes the dataset's `input_shape`.
    """
    readable = [environment for environment in dataset if environment_plan(environment)]
    if not readable:
        return Images()

    device = devices.default_device()
    jitter = stages.jitter_backend(device)
    plan = replace(_common_plan(readable), mode=FAST, jitter=jitter)
    wanted_input = ask_model() if ask_model and len(readable) == len(dataset) else None
    if wanted_input:
        model_input = ModelInput(*wanted_input)
        # Another size than upstream's is the dataset's own choice.
        size = model_input.size if plan.size == UPSTREAM_SIZE else plan.size
        plan = plan.for_model(size, model_input.mean, model_input.std)
        dataset.input_shape = (3, plan.size, plan.size)
    return Images(plan, memory_limit, finished_by_loader=not devices.is_gpu(device))


def _common_plan(environments: Sequence[Any]) -> ImagePlan:
    """The plan of the first environment that is augmented; of the first if none is."""
    plans = [*filter(None, map(environment_plan, environments))]
    augmented = [plan for plan in plans if plan.augmentation]
    return (augmented or plans)[0]


@dataclass(frozen=True)
class ImageSource:
    """An environment, or a part of it, whose images are read by a plan."""

    folder: ImageFolder
    positions: Sequence[int] | None  # of the part's items in the environment; None for all
    plan: ImagePlan
    finished_by_loader: bool = True

    def batch(self, requests: Sequence[tuple[int, int, tuple[int, ...]]]) -> Any:
        """Read a batch: images (N, 3, S, S) and labels (N,).

        An UnfinishedBatch where a GPU does the second stage, and of a plan that draws nothing:
        such images may stay in memory. Raises TransientError for an image that cannot be read.
        """
        load = functools.partial(loading.load, self.plan)
        squares = []
        choices = []
        labels = []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.folder.samples[position]
            if self.plan.is_random:  # from this generator, as transforms do
                torch.default_generator.manual_seed(rng.derive_seed(*key))
            square, square_choices = image_files.read_image(load, path)
            squares.append(square)
            choices.append(square_choices)
            labels.append(label)

        batch = UnfinishedBatch(
            self.plan, torch.stack(squares), torch.stack(choices), torch.tensor(labels)
        )
        is_finished = self.finished_by_loader and self.plan.is_random
        return batch.finish() if is_finished else batch
