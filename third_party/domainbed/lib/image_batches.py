"""Batches of images in two stages: single images in a loader process, then the batch.

Used for environments that `image_folders` reads. The images equal those of upstream's transforms up
to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from domainbed_carft.data import image_files
from domainbed_carft.images import loading, rng, stages
from domainbed_carft.images.image_lists import get_file_plan
from domainbed_carft.images.plan import FAST, JITTERS, ImagePlan
from domainbed_carft.machine import devices


class UnfinishedBatch(NamedTuple):
    """A batch before its second stage."""

    plan: ImagePlan
    images: torch.Tensor  # (N, S, S, 3), uint8
    choices: torch.Tensor  # (N, 10), from `stages.first_stage`
    labels: torch.Tensor  # (N,)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised images, (N, 3, S, S) float32, and the labels, (N,)."""
        return stages.second_stage(self.plan, self.images, self.choices), self.labels

    def copy(self) -> UnfinishedBatch:
        """Copy the batch out of the memory that is shared with a loader process."""
        return self._replace(
            images=self.images.clone(),
            choices=self.choices.clone(),
            labels=self.labels.clone(),
        )

    def pinned(self) -> UnfinishedBatch:
        """Return the batch with images and labels in pinned memory."""
        return self._replace(images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Images:
    """A job's way to read and transform images."""

    # Common to all environments, with the augmentation of the augmented ones; None if the dataset's
    # transforms make the images.
    plan: ImagePlan | None = None
    memory_limit: int = 0  # largest size of evaluation images in memory, bytes
    finished_by_loader: bool = True  # False if a GPU does the second stage

    @property
    def description(self) -> str:
        """The plan in words; "" if the dataset's transforms make the images."""
        return self.plan.describe() if self.plan else ""

    @property
    def lacks_numba(self) -> bool:
        """True if a CPU does the colour jitter without numba, which makes it the slowest part."""
        augmentation = self.plan.augmentation if self.plan else None
        if augmentation is None or augmentation.jitter_ranges is None:
            return False
        return self.finished_by_loader and not stages.has_numba()

    def recorded_facts(self) -> dict[str, Any]:
        """Return facts about the images for records and weights files."""
        if self.plan is None:
            return {}
        return {"images": self.description, "image_plan": self.plan.as_json()}

    def jittered_as(self, description: str) -> Images:
        """Return the images with the jitter of the described ones, if they differ only in this.

        A job can resume on another device, whose jitter would differ by rounding.
        """
        if self.plan is None:
            return self
        plans = [replace(self.plan, jitter=jitter) for jitter in JITTERS]
        same_plan = next((plan for plan in plans if plan.describe() == description), self.plan)
        return replace(self, plan=same_plan)

    def source(self, dataset: Any) -> ImageSource | None:
        """Return the source of a dataset or subset; None if its transforms make the images."""
        environment = dataset
        positions = None
        while isinstance(environment, Subset):
            indices = environment.indices
            if positions is None:
                positions = indices
            else:
                positions = [indices[position] for position in positions]
            environment = environment.dataset

        plan = get_file_plan(environment)
        if self.plan is None or self.plan.mode != FAST or plan is None:
            return None
        return ImageSource(environment, positions, plan, self.finished_by_loader)


def choose(dataset: Any, memory_limit: int) -> Images:
    """Choose the way to read the images of a dataset.

    Args:
        dataset: The dataset.
        memory_limit: Largest size of evaluation images in memory, in bytes.
    """
    plans = [plan for plan in map(get_file_plan, dataset) if plan]
    if not plans:
        return Images()

    device = devices.default_device()
    common_plan = next((plan for plan in plans if plan.augmentation), plans[0])
    plan = replace(common_plan, mode=FAST, jitter=stages.jitter_backend(device))
    return Images(plan, memory_limit, finished_by_loader=not devices.is_gpu(device))


@dataclass(frozen=True)
class ImageSource:
    """An environment, or a subset of it, whose images are read by a plan."""

    folder: ImageFolder
    positions: Sequence[int] | None  # of the subset's items in the environment; None for all
    plan: ImagePlan
    finished_by_loader: bool = True

    def batch(self, requests: Sequence[tuple[int, int, tuple[int, ...]]]) -> Any:
        """Read a batch.

        Args:
            requests: Requests of the loader (`fast_data_loader.Request`).

        Returns:
            Images (N, 3, S, S) and labels (N,). An UnfinishedBatch if a GPU does the second stage,
            or if the plan draws no random numbers: such images can be kept in memory.

        Raises:
            TransientError: An image cannot be read.
        """
        load = functools.partial(loading.load, self.plan)
        squares = []
        choices = []
        labels = []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.folder.samples[position]
            if self.plan.is_random:  # the generator that torchvision's transforms use
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
