"""Batches of images in two stages: single images in a loader process, then the batch.

Used for environments that `image_folders` reads. The images equal those of upstream's transforms up
to rounding.
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
    """The image size and normalisation that a model expects, in place of upstream's."""

    size: int  # height and width, px
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]


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

        source_plan = environment_plan(environment)
        if self.plan is None or self.plan.mode != FAST or source_plan is None:
            return None
        plan = replace(source_plan, mode=FAST, jitter=self.plan.jitter)
        if self.plan.is_for_model:
            plan = plan.for_model(self.plan.size, self.plan.mean, self.plan.std)
        return ImageSource(environment, positions, plan, self.finished_by_loader)


def environment_plan(environment: Any) -> ImagePlan | None:
    """Return the plan of an environment's transform, or None for other transforms."""
    if not image_folders.is_image_folder(environment):
        return None
    return find_plan(environment.transform)


def choose(
    dataset: Any,
    memory_limit: int,
    get_image_format: Callable[[], Sequence[Any] | None] | None = None,
) -> Images:
    """Choose the way to read the images of a dataset.

    If the model expects another image size, the dataset's `input_shape` is changed.

    Args:
        dataset: The dataset.
        memory_limit: Largest size of evaluation images in memory, in bytes.
        get_image_format: Function that returns the fields of a ModelInput, or None; it is called
            only if all environments can be read in two stages.
    """
    readable = [environment for environment in dataset if environment_plan(environment)]
    if not readable:
        return Images()

    device = devices.default_device()
    jitter = stages.jitter_backend(device)
    plan = replace(_common_plan(readable), mode=FAST, jitter=jitter)
    image_format = None
    if get_image_format and len(readable) == len(dataset):
        image_format = get_image_format()
    if image_format:
        model_input = ModelInput(*image_format)
        # A size other than upstream's was chosen by the dataset.
        size = model_input.size if plan.size == UPSTREAM_SIZE else plan.size
        plan = plan.for_model(size, model_input.mean, model_input.std)
        dataset.input_shape = (3, plan.size, plan.size)
    return Images(plan, memory_limit, finished_by_loader=not devices.is_gpu(device))


def _common_plan(environments: Sequence[Any]) -> ImagePlan:
    """Return the plan of the first augmented environment, or of the first if none is augmented."""
    plans = [*filter(None, map(environment_plan, environments))]
    augmented = [plan for plan in plans if plan.augmentation]
    return (augmented or plans)[0]


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
