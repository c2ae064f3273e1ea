"""A picture plan as a transform of torchvision, which data sets apply to Pillow's pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchvision import transforms

from domainbed_carft.pictures.plan import Augmentation, PicturePlan


class PlanTransform(transforms.Compose):
    """The transform of a plan, from a Pillow picture to a normalised tensor (3, S, S).

    Its steps are made when somebody asks for the list ``transforms``, or applies it.
    """

    def __init__(self, plan: PicturePlan) -> None:
        self._plan = plan
        self._own_steps: tuple[Any, ...] = ()
        self._transforms: list[Any] | None = None

    @property
    def plan(self) -> PicturePlan | None:
        """The plan; None if somebody has changed the list of steps."""
        is_changed = self._transforms is not None and tuple(self._transforms) != self._own_steps
        return None if is_changed else self._plan

    @property
    def transforms(self) -> list[Any]:
        """The steps, each a transform of torchvision."""
        if self._transforms is None:
            self._own_steps = tuple(_steps(self._plan))
            self._transforms = list(self._own_steps)
        return self._transforms

    @transforms.setter
    def transforms(self, steps: list[Any]) -> None:
        self._transforms = steps


def _steps(plan: PicturePlan) -> Iterator[Any]:
    """The plan's steps, each a transform of torchvision."""
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
