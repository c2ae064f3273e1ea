"""Image plans as torchvision's transforms."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Subset
from torchvision import transforms

from domainbed_carft.images.plan import Augmentation, ImagePlan


class PlanTransform(transforms.Compose):
    """The transform of a plan, from a Pillow image to a normalised tensor (3, S, S).

    The steps are created at their first use.
    """

    def __init__(self, plan: ImagePlan) -> None:
        self._plan = plan
        self._planned_transforms: tuple[Any, ...] = ()
        self._transforms: list[Any] | None = None

    @property
    def plan(self) -> ImagePlan | None:
        """The plan, or None if the list of steps was changed."""
        if self._transforms is None or tuple(self._transforms) == self._planned_transforms:
            return self._plan
        return None

    @property
    def transforms(self) -> list[Any]:
        """The steps, as transforms of torchvision."""
        if self._transforms is None:
            self._planned_transforms = tuple(_planned_steps(self._plan))
            self._transforms = list(self._planned_transforms)
        return self._transforms

    @transforms.setter
    def transforms(self, steps: list[Any]) -> None:
        """Replace the steps, which removes the plan."""
        self._transforms = steps


def _planned_steps(plan: ImagePlan) -> Iterator[Any]:
    """Yield the plan's steps as transforms of torchvision."""
    augmentation = plan.augmentation or Augmentation()
    mode = transforms.InterpolationMode(plan.interpolation)

    if augmentation.crop_scale is not None:
        scale = augmentation.crop_scale
        ratio = augmentation.crop_ratio
        yield transforms.RandomResizedCrop(plan.size, scale, ratio, interpolation=mode)
    elif plan.resize == "squash":
        yield transforms.Resize((plan.size, plan.size), mode)
    else:
        yield transforms.Resize(plan.size, mode)
        yield transforms.CenterCrop(plan.size)

    if augmentation.flip_probability is not None:
        yield transforms.RandomHorizontalFlip(augmentation.flip_probability)
    if augmentation.jitter_ranges is not None:
        brightness, contrast, saturation, hue = augmentation.jitter_ranges
        yield transforms.ColorJitter(brightness or 0, contrast or 0, saturation or 0, hue or 0)
    if augmentation.grey_probability is not None:
        yield transforms.RandomGrayscale(augmentation.grey_probability)

    yield transforms.ToTensor()
    yield transforms.Normalize(plan.mean, plan.std)


def get_plan(transform: Any) -> ImagePlan | None:
    """Return the plan of an unchanged `PlanTransform`, or None."""
    return transform.plan if type(transform) is PlanTransform else None


def remove_augmentation(dataset: Any) -> Any:
    """Return a copy of an image dataset, or of a Subset, with the transform for test images.

    A transform without a plan is kept.
    """
    if isinstance(dataset, Subset):
        return Subset(remove_augmentation(dataset.dataset), dataset.indices)

    plan = get_plan(getattr(dataset, "transform", None))
    if plan is None or not plan.is_random:
        return dataset
    test_dataset = copy.copy(dataset)
    test_dataset.transform = PlanTransform(plan.without_augmentation())
    return test_dataset
