"""A picture plan as a transform of torchvision, which data sets apply to Pillow's pictures."""

from __future__ import annotations

from typing import Any

from torchvision import transforms

from domainbed_carft.pictures.plan import PicturePlan


class PlanTransform(transforms.Compose):
    """The transform of a plan, from a Pillow picture to a normalised tensor (3, S, S)."""

    def __init__(self, plan: PicturePlan) -> None:
        super().__init__(_steps(plan))
        self._plan = plan
        self._steps = tuple(self.transforms)

    @property
    def plan(self) -> PicturePlan | None:
        """The plan; None if somebody has changed the list of steps since."""
        return self._plan if tuple(self.transforms) == self._steps else None


def _steps(plan: PicturePlan) -> list[Any]:
    """The plan's steps, each a transform of torchvision."""
    augmentation = plan.augmentation
    crop_scale = augmentation.crop_scale if augmentation else None
    steps = _resizing_steps(plan) if crop_scale is None else [_random_crop(plan)]

    if augmentation and augmentation.flip_probability is not None:
        steps.append(transforms.RandomHorizontalFlip(augmentation.flip_probability))
    if augmentation and augmentation.jitter_ranges is not None:
        brightness, contrast, saturation, hue = (
            limits or 0 for limits in augmentation.jitter_ranges
        )
        steps.append(transforms.ColorJitter(brightness, contrast, saturation, hue))
    if augmentation and augmentation.grey_probability is not None:
        steps.append(transforms.RandomGrayscale(augmentation.grey_probability))
    return [*steps, transforms.ToTensor(), transforms.Normalize(plan.mean, plan.std)]


def _random_crop(plan: PicturePlan) -> Any:
    augmentation = plan.augmentation
    assert augmentation
    return transforms.RandomResizedCrop(
        plan.size,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        interpolation=transforms.InterpolationMode(plan.interpolation),
    )


def _resizing_steps(plan: PicturePlan) -> list[Any]:
    mode = transforms.InterpolationMode(plan.interpolation)
    if plan.resize == "squash":
        return [transforms.Resize((plan.size, plan.size), mode)]
    return [transforms.Resize(plan.size, mode), transforms.CenterCrop(plan.size)]
