"""Protocol presets: what happens to a picture before an algorithm sees it.

``domainbed`` is upstream's (domainbed/datasets.py at b93c22a), which a host does by itself;
``clip`` does what CLIP was made with, after CLIPood's recipe. As in upstream, held-out pictures of
a training environment go through the training transform, too. Splits, steps and selection are
DomainBed's in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision import transforms

from domainbed_carft.method.pictures import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


def transform(protocol: str, size: int, augment: bool) -> Callable[[Any], Any]:
    """From a PIL picture to a normalised tensor (3, ``size``, ``size``), ``size`` in pixels."""
    return transforms.Compose(PRESETS[protocol](size, augment))


def _domainbed(size: int, augment: bool) -> list[Any]:
    normalise = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if not augment:
        return [transforms.Resize((size, size)), *normalise]
    return [
        transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
        *normalise,
    ]


def _clip(size: int, augment: bool) -> list[Any]:
    normalise = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
    bicubic = transforms.InterpolationMode.BICUBIC
    if not augment:
        return [transforms.Resize(size, bicubic), transforms.CenterCrop(size), *normalise]
    return [
        transforms.RandomResizedCrop(size, scale=(0.7, 1.0), interpolation=bicubic),
        transforms.RandomHorizontalFlip(),
        *normalise,
    ]


PRESETS: dict[str, Callable[[int, bool], Sequence[Any]]] = {
    "domainbed": _domainbed,
    "clip": _clip,
}
