"""The presets of the hparam ``protocol``, in words and as transforms.

The protocol ``domainbed`` is upstream's (domainbed/datasets.py at b93c22a), applied by the host
itself; ``clip`` is CLIP's own preprocessing, after CLIPood's recipe. ``wise-ft`` and ``lipsum-ft``
are the same with the crops and flips of two recipes for ImageNet (mlfoundations/wise-ft,
cs-giung/lipsum-ft).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torchvision import transforms

from domainbed_carft.pictures.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
)

INTERPOLATIONS = {name: transforms.InterpolationMode(name) for name in ("bicubic", "bilinear")}

# The presets of the hparam `protocol`, in words; `transform` has them as transforms.
PROTOCOLS = {
    "domainbed": "training: crop of 70 to 100%, flip, colour jitter, 1 in 10 grey; test: squashed",
    "clip": "training: crop of 70 to 100%, flip; test: the model's own, of CLIP the shorter side "
    "resized (bicubic), then cropped to the central square",
    "wise-ft": "training: crop of 90 to 100%; test: as clip",
    "lipsum-ft": "training: crop of 8 to 100%, flip; test: as clip",
    "host": "this DomainBed's own transforms, which differ from upstream's",
}


class _Augmentation(NamedTuple):
    """How a preset with CLIP's own preprocessing changes training pictures."""

    smallest_crop: float  # as a share of the picture's area; the largest is all of it
    flips: bool


_AUGMENTATIONS = {
    "clip": _Augmentation(smallest_crop=0.7, flips=True),
    "wise-ft": _Augmentation(smallest_crop=0.9, flips=False),
    "lipsum-ft": _Augmentation(smallest_crop=0.08, flips=True),
}
PRESETS = ("domainbed", *_AUGMENTATIONS)


def transform(
    protocol: str, size: int, augment: bool, preprocessing: str = ""
) -> Callable[[Any], Any]:
    """The transform of a preset, from a PIL picture to a normalised tensor (3, ``size``, ``size``).

    ``size`` is in pixels. ``preprocessing`` is the hparam of this name; all presets but
    ``domainbed`` take from it how pictures are resized.
    """
    if protocol in _AUGMENTATIONS:
        interpolation, resize = preprocessing.split()[1:] or ("bicubic", "shortest")
        augmentation = _AUGMENTATIONS[protocol] if augment else None
        steps = _clip_steps(size, augmentation, interpolation, resize)
        normalise = transforms.Normalize(CLIP_MEAN, CLIP_STD)
    else:
        steps = _domainbed_steps(size, augment)
        normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


def _domainbed_steps(size: int, augment: bool) -> list[Any]:
    """Upstream's steps before a picture becomes a tensor."""
    if not augment:
        return [transforms.Resize((size, size))]
    return [
        transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
    ]


def _clip_steps(
    size: int, augmentation: _Augmentation | None, interpolation: str, resize: str
) -> list[Any]:
    """CLIP's steps before a picture becomes a tensor, with an augmentation's crops and flips."""
    mode = INTERPOLATIONS[interpolation]

    if augmentation:
        area = (augmentation.smallest_crop, 1.0)
        crop = transforms.RandomResizedCrop(size, area, interpolation=mode)
        return [crop, transforms.RandomHorizontalFlip()] if augmentation.flips else [crop]

    if resize == "squash":
        return [transforms.Resize((size, size), mode)]
    return [transforms.Resize(size, mode), transforms.CenterCrop(size)]
