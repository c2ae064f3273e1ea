"""Image plans as torchvision's transforms, and the plans of other hosts' transforms.

No other module reads the steps of a transform.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Subset
from torchvision import transforms

from domainbed_carft.images.plan import INTERPOLATIONS, N_CHANNELS, Augmentation, ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET_MEAN, Normalisation
from domainbed_carft.images.protocols import plan_for

# Steps of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a.
UPSTREAM_STEPS = (
    "Resize ToTensor Normalize",
    "RandomResizedCrop RandomHorizontalFlip ColorJitter RandomGrayscale ToTensor Normalize",
)


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


def is_upstream(transform: Any) -> bool:
    """Return True if the steps are upstream's, for training or for testing."""
    plan = _known_plan(transform)
    if plan is not None:
        return plan == plan_for("domainbed", plan.size, augment=plan.augmentation is not None)

    steps = _steps(transform)
    names = " ".join(type(step).__name__ for step in steps)
    return names in UPSTREAM_STEPS and list(steps[-1].mean) == list(IMAGENET_MEAN)


def get_normalisation(transform: Any) -> Normalisation | None:
    """Return mean and standard deviation of the last normalising step, or None without one."""
    plan = _known_plan(transform)
    if plan is not None:
        return plan.mean, plan.std

    steps = _steps(transform) or [transform]
    normalising = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if not normalising:
        return None
    last = normalising[-1]
    return tuple(map(float, last.mean)), tuple(map(float, last.std))


def find_plan(transform: Any) -> ImagePlan | None:
    """Return the plan of a transform, or None if the transform has unknown steps.

    From a random crop the resizing of test images does not follow: the plan squashes them.
    """
    plan = _known_plan(transform)
    if plan is None and type(transform) in (transforms.Compose, PlanTransform):
        return _recognised_plan(_steps(transform))
    return plan


def remove_augmentation(dataset: Any) -> Any:
    """Return a copy of an image dataset, or of a Subset, with the transform for test images.

    A transform without a plan is kept.
    """
    if isinstance(dataset, Subset):
        return Subset(remove_augmentation(dataset.dataset), dataset.indices)

    plan = find_plan(getattr(dataset, "transform", None))
    if plan is None or not plan.is_random:
        return dataset
    test_dataset = copy.copy(dataset)
    test_dataset.transform = PlanTransform(plan.without_augmentation())
    return test_dataset


def _known_plan(transform: Any) -> ImagePlan | None:
    """Return the plan of an unchanged `PlanTransform`, or None."""
    return transform.plan if type(transform) is PlanTransform else None


def _steps(transform: Any) -> Sequence[Any]:
    steps: Sequence[Any] = getattr(transform, "transforms", ())
    return steps


def _recognised_plan(steps: Sequence[Any]) -> ImagePlan | None:
    remaining_steps = list(steps)

    def take(kind: type) -> Any:
        if remaining_steps and type(remaining_steps[0]) is kind:
            return remaining_steps.pop(0)
        return None

    crop = take(transforms.RandomResizedCrop)
    resize = take(transforms.Resize)
    centre = take(transforms.CenterCrop)
    flip = take(transforms.RandomHorizontalFlip)
    colours = take(transforms.ColorJitter)
    grey = take(transforms.RandomGrayscale)
    to_tensor = take(transforms.ToTensor)
    normalise = take(transforms.Normalize)
    if remaining_steps or not (to_tensor and normalise) or (crop is None) == (resize is None):
        return None

    square = _square(crop, resize, centre)
    interpolation = (crop or resize).interpolation.value
    channels = {len(normalise.mean), len(normalise.std)}
    if square is None or interpolation not in INTERPOLATIONS or channels != {N_CHANNELS}:
        return None

    augmentation = Augmentation(
        crop_scale=crop and tuple(crop.scale),
        crop_ratio=crop and tuple(crop.ratio),
        flip_probability=flip and flip.p,
        jitter_ranges=colours
        and (colours.brightness, colours.contrast, colours.saturation, colours.hue),
        grey_probability=grey and grey.p,
    )
    return ImagePlan(
        size=square.side,
        resize=square.resize,
        interpolation=interpolation,
        mean=tuple(map(float, normalise.mean)),
        std=tuple(map(float, normalise.std)),
        augmentation=augmentation if augmentation != Augmentation() else None,
    )


class _Square(NamedTuple):
    resize: str  # see `ImagePlan`
    side: int  # in pixels


def _square(crop: Any, resize: Any, centre: Any) -> _Square | None:
    """Return the square produced by a transform's crop or resize, or None for another shape."""
    if getattr(resize, "max_size", None) is not None:
        return None

    sides = np.atleast_1d((crop or resize).size).tolist()
    if crop is not None:
        mode = "squash"
        is_known = centre is None
    elif centre is None:
        mode = "squash"
        is_known = len(sides) == 2 and not isinstance(resize.size, int)
    else:
        mode = "shortest"
        is_known = len(sides) == 1
        sides += centre.size
    return _Square(mode, sides[0]) if is_known and len({*sides}) == 1 else None
