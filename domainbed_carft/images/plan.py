"""The image plan: the transforms from an image file to a batch, as data.

`protocols` makes plans from settings. `stages` applies a plan to batches, and `transforms` applies
it to single images with torchvision. Records and weights files contain plans as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]

# Values of `ImagePlan.mode`: `stages`, or the dataset's own transform, which uses Pillow.
FAST = "fast"
PILLOW = "pillow"
MODES = (FAST, PILLOW)

# Backends of the colour jitter; "pillow" is the dataset's own transform.
JITTERS = ("torch", "numba", "pillow")
RESIZES = ("squash", "shortest")  # both sides; or the shorter side, then a central crop
INTERPOLATIONS = ("bilinear", "bicubic")
N_CHANNELS = 3
N_JITTER_RANGES = 4  # of brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Augmentation:
    """Random steps for training images, in their order; None skips a step.

    A crop replaces the plan's resizing.
    """

    crop_scale: Range | None = None  # area of the crop, as a share of the image's
    crop_ratio: Range | None = None  # width of the crop, divided by its height
    flip_probability: float | None = None
    jitter_ranges: tuple[Range | None, ...] | None = None  # brightness, contrast, saturation, hue
    grey_probability: float | None = None


@dataclass(frozen=True)
class ImagePlan:
    """The transforms of an environment's images, one by one and by batch."""

    size: int  # side in pixels
    resize: str  # one of RESIZES, for images without a random crop
    interpolation: str  # one of INTERPOLATIONS
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None  # None for test images
    mode: str = PILLOW  # one of MODES
    jitter: str = "pillow"  # one of JITTERS
    is_for_model: bool = False  # mean and std are the model's, not the dataset's

    @property
    def is_random(self) -> bool:
        """Return True if the result for an image differs from time to time."""
        return self.augmentation is not None and self.augmentation != Augmentation()

    def without_augmentation(self) -> ImagePlan:
        """Return the plan for test images."""
        return dataclasses.replace(self, augmentation=None)

    def for_model(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ImagePlan:
        """Return the plan with a model's size and normalisation."""
        return dataclasses.replace(
            self, size=size, mean=tuple(mean), std=tuple(std), is_for_model=True
        )

    def jittered_as(self, description: str) -> ImagePlan:
        """Return the plan with the jitter of a described plan that differs only in its jitter.

        A job can resume on another device, whose jitter differs by rounding.
        """
        plans = [dataclasses.replace(self, jitter=jitter) for jitter in JITTERS]
        return next((plan for plan in plans if plan.describe() == description), self)

    def describe(self) -> str:
        """Describe the plan in a few words: the value of the key ``images`` in records."""
        if self.mode != FAST:
            return self.mode
        model_part = ", normalised for the model" if self.is_for_model else ""
        return f"{FAST}, jitter by {self.jitter}{model_part}"

    def as_json(self) -> dict[str, Any]:
        """Convert the plan to JSON's types; `from_json` is the inverse."""
        return {name: _as_lists(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: Any) -> ImagePlan:
        """Convert the result of `as_json` back; raise an Exception of any type if it is invalid."""
        values = _field_values(cls, fields)
        augmentation = values["augmentation"]
        if augmentation is not None:
            values["augmentation"] = Augmentation(**_field_values(Augmentation, augmentation))
            _require_valid(values["augmentation"], _AUGMENTATION_CHECKS)

        plan = cls(**values)
        _require_valid(plan, _PLAN_CHECKS)
        return plan


def _field_values(kind: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataclass's fields from JSON, lists as tuples, without keys of later versions."""
    return {field.name: _as_tuples(fields[field.name]) for field in dataclasses.fields(kind)}


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_lists(item) for name, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _is_range(limits: Any) -> bool:
    return limits is None or (
        len(limits) == 2 and all(map(_is_number, limits)) and limits[0] <= limits[1]
    )


def _is_probability(share: Any) -> bool:
    return share is None or (_is_number(share) and 0 <= share <= 1)


def _has_channels(numbers: Any) -> bool:
    return len(numbers) == N_CHANNELS and all(map(_is_number, numbers))


# Checks of a field's value, because an untrusted file can contain anything.
_AUGMENTATION_CHECKS: dict[str, Callable[[Any], bool]] = {
    "crop_scale": _is_range,
    "crop_ratio": _is_range,
    "flip_probability": _is_probability,
    "jitter_ranges": lambda ranges: (
        ranges is None or (len(ranges) == N_JITTER_RANGES and all(map(_is_range, ranges)))
    ),
    "grey_probability": _is_probability,
}
_PLAN_CHECKS: dict[str, Callable[[Any], bool]] = {
    "size": lambda size: type(size) is int and size > 0,
    "resize": RESIZES.__contains__,
    "interpolation": INTERPOLATIONS.__contains__,
    "mean": _has_channels,
    "std": lambda std: _has_channels(std) and all(std),
    "mode": MODES.__contains__,
    "jitter": JITTERS.__contains__,
    "is_for_model": lambda value: type(value) is bool,
}


def _require_valid(values: Any, checks: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raise ValueError for an invalid field."""
    for name, is_valid in checks.items():
        if not is_valid(getattr(values, name)):
            raise ValueError(f"an image plan has {name} {getattr(values, name)!r}")
