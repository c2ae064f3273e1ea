"""What a host's own transform does: the only place that looks into the steps of a transform."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torchvision import transforms

from domainbed_carft.pictures.plan import INTERPOLATIONS, N_CHANNELS, Augmentation, PicturePlan
from domainbed_carft.pictures.preprocessing import IMAGENET_MEAN, Normalisation
from domainbed_carft.pictures.transforms import PlanTransform

# Of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a, ending in ImageNet's mean.
UPSTREAM_STEPS = (
    "Resize ToTensor Normalize",
    "RandomResizedCrop RandomHorizontalFlip ColorJitter RandomGrayscale ToTensor Normalize",
)


def is_upstream(transform: Any) -> bool:
    """Whether the steps are those of upstream, for training or for tests."""
    steps = _steps(transform)
    names = " ".join(type(step).__name__ for step in steps)
    return names in UPSTREAM_STEPS and list(steps[-1].mean) == list(IMAGENET_MEAN)


def normalisation_of(transform: Any) -> Normalisation | None:
    """Mean and standard deviation of the last normalising step, if any shows."""
    steps = _steps(transform) or [transform]
    normalising = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if not normalising:
        return None

    last = normalising[-1]
    return tuple(map(float, last.mean)), tuple(map(float, last.std))


def plan_of(transform: Any) -> PicturePlan | None:
    """The plan of a transform like ours and upstream's; None of any other.

    A transform with a step that is not known here has no plan; Pillow applies it as it is. In
    place of a random crop, the plan for tests squashes.
    """
    if type(transform) is PlanTransform and transform.plan is not None:
        return transform.plan
    if type(transform) in (PlanTransform, transforms.Compose):
        return _recognised_plan(transform)
    return None


def _recognised_plan(compose: transforms.Compose) -> PicturePlan | None:
    steps = list(compose.transforms)

    def take(kind: type) -> Any:
        return steps.pop(0) if steps and type(steps[0]) is kind else None

    crop = take(transforms.RandomResizedCrop)
    resize = take(transforms.Resize)
    centre = take(transforms.CenterCrop)
    flip = take(transforms.RandomHorizontalFlip)
    colours = take(transforms.ColorJitter)
    grey = take(transforms.RandomGrayscale)
    to_tensor = take(transforms.ToTensor)
    normalise = take(transforms.Normalize)
    if steps or to_tensor is None or normalise is None or (crop is None) == (resize is None):
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
    return PicturePlan(
        size=square.side,
        resize=square.resize,
        interpolation=interpolation,
        mean=tuple(map(float, normalise.mean)),
        std=tuple(map(float, normalise.std)),
        augmentation=augmentation if augmentation != Augmentation() else None,
    )


class _Square(NamedTuple):
    resize: str  # as in `PicturePlan`
    side: int  # px


def _square(crop: Any, resize: Any, centre: Any) -> _Square | None:
    """The square that a transform's crop or resize makes of a picture; None for another shape."""
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


def _steps(transform: Any) -> Any:
    return getattr(transform, "transforms", ())
