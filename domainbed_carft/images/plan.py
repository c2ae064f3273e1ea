"""The image plan: how files become the images of a batch, as data.

`protocols` makes plans of settings. `stages` carries them out by the batch, `transforms` image by
image, as torchvision does. Records and files of weights hold them as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]

# Values of `ImagePlan.mode`: by `stages`, or by the dataset's own transform, which uses Pillow.
FAST = "fast"
PILLOW = "pillow"
MODES = (FAST, PILLOW)

# What applies the colour jitter; Pillow where the dataset's own transform does.
JITTERS = ("torch", "numba", "pillow")
RESIZES = ("squash", "shortest")  # both sides; the shorter side, then the central square
INTERPOLATIONS = ("bilinear", "bicubic")
N_CHANNELS = 3
N_JITTER_RANGES = 4  # of brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Augmentation:
    """The random steps of training images, in their order; a missing step is None.

    A crop takes the place of the plan's way of resizing.
    """

    crop_scale: Range | None = None  # area of the crop, as a share of the image's
    crop_ratio: Range | None = None  # width of the crop, divided by its height
    flip_probability: float | None = None
    jitter_ranges: tuple[Range | None, ...] | None = None  # brightness, contrast, saturation, hue
    grey_probability: float | None = None


@dataclass(frozen=True)
class ImagePlan:
    """What is done to each image of an environment, and to a batch of them."""

    size: int  # px a side
    resize: str  # one of RESIZES, of an image that is not cropped at random
    interpolation: str  # one of INTERPOLATIONS
    mean: tuple[float, ...]  # of [0, 1], a channel
    std: tuple[float, ...]
    augmentation: Augmentation | None = None  # of test images None
    mode: str = PILLOW  # one of MODES
    jitter: str = "pillow"  # one of JITTERS
    is_for_model: bool = False  # whether mean and std are the model's, not the dataset's

    @property
    def draws(self) -> bool:
        """Whether an image becomes another each time."""
        return self.augmentation is not None and self.augmentation != Augmentation()

    def without_augmentation(self) -> ImagePlan:
        """The plan of the test images beside these training images."""
        return dataclasses.replace(self, augmentation=None)

    def for_model(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ImagePlan:
        """The plan with the size and the normalisation that a model takes."""
        return dataclasses.replace(
            self, size=size, mean=tuple(mean), std=tuple(std), is_for_model=True
        )

    def describe(self) -> str:
        """The plan in a few words, for people: the value of the key ``images`` in records."""
        if self.mode != FAST:
            return self.mode
        model_part = ", normalised for the model" if self.is_for_model else ""
        return f"{FAST}, jitter by {self.jitter}{model_part}"

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON's objects, lists and values; `from_json` reads it back."""
        return {name: _as_lists(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: Any) -> ImagePlan:
        """The plan that `as_json` wrote. Raises an exception of any type for anything else."""
        values = _field_values(cls, fields)
        augmentation = values["augmentation"]
        if augmentation is not None:
            values["augmentation"] = Augmentation(**_field_values(Augmentation, augmentation))
            _require_valid(values["augmentation"], _AUGMENTATION_FITS)

        plan = cls(**values)
        _require_valid(plan, _PLAN_FITS)
        return plan


def _field_values(kind: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from JSON, lists as tuples; keys of later versions are left out."""
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


# Whether a field's value, of a file that a stranger may have written, is as `as_json` writes it.
_AUGMENTATION_FITS: dict[str, Callable[[Any], bool]] = {
    "crop_scale": _is_range,
    "crop_ratio": _is_range,
    "flip_probability": _is_probability,
    "jitter_ranges": lambda ranges: (
        ranges is None or (len(ranges) == N_JITTER_RANGES and all(map(_is_range, ranges)))
    ),
    "grey_probability": _is_probability,
}
_PLAN_FITS: dict[str, Callable[[Any], bool]] = {
    "size": lambda size: type(size) is int and size > 0,
    "resize": RESIZES.__contains__,
    "interpolation": INTERPOLATIONS.__contains__,
    "mean": _has_channels,
    "std": lambda std: _has_channels(std) and all(std),
    "mode": MODES.__contains__,
    "jitter": JITTERS.__contains__,
    "is_for_model": lambda value: type(value) is bool,
}


def _require_valid(values: Any, fits: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raise ValueError for a field that does not fit."""
    for name, is_valid in fits.items():
        if not is_valid(getattr(values, name)):
            raise ValueError(f"an image plan has {name} {getattr(values, name)!r}")
