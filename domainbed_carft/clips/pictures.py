"""The transforms of each protocol, and the change from the data's normalisation to CLIP's.

The protocol ``domainbed`` is upstream's (domainbed/datasets.py at b93c22a), applied by the host
itself; ``clip`` is CLIP's own preprocessing, after CLIPood's recipe. ``wise-ft`` and ``lipsum-ft``
are the same with the crops and flips of two recipes for ImageNet (mlfoundations/wise-ft,
cs-giung/lipsum-ft).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

# DomainBed normalises every picture with these (domainbed/datasets.py at b93c22a).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)

# The pictures CLIP was trained on, per RGB channel in [0, 1] (openai/CLIP, clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

INTERPOLATIONS = {name: transforms.InterpolationMode(name) for name in ("bicubic", "bilinear")}


class Preprocessing(NamedTuple):
    """What an image encoder wants of pictures: squares of ``resolution`` pixels a side.

    Resized by ``interpolation``, the ``shortest`` side and then cropped, or ``squash``: both sides.
    """

    resolution: int
    interpolation: str = "bicubic"
    resize: str = "shortest"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def hparam_value(self) -> str:
        """What a data set has to know of it, the hparam ``preprocessing``."""
        return f"{self.resolution} {self.interpolation} {self.resize}"


# The presets of the hparam `protocol`, in words; `protocol` has them as transforms.
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
    """From a PIL picture to a normalised tensor (3, ``size``, ``size``), ``size`` in pixels.

    ``preprocessing``: the hparam; all presets but ``domainbed`` take from it how pictures are
    resized.
    """
    if protocol in _AUGMENTATIONS:
        interpolation, resize = preprocessing.split()[1:] or ("bicubic", "shortest")
        augmentation = _AUGMENTATIONS[protocol] if augment else None
        steps = _clip(size, augmentation, interpolation, resize)
        normalised = CLIP_MEAN, CLIP_STD
    else:
        steps, normalised = _domainbed(size, augment), IMAGENET
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*normalised)])


def _domainbed(size: int, augment: bool) -> list[Any]:
    if not augment:
        return [transforms.Resize((size, size))]
    return [
        transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
    ]


def _clip(
    size: int, augmentation: _Augmentation | None, interpolation: str, resize: str
) -> list[Any]:
    how = INTERPOLATIONS[interpolation]

    if augmentation:
        area = (augmentation.smallest_crop, 1.0)
        crop = transforms.RandomResizedCrop(size, area, interpolation=how)
        return [crop, transforms.RandomHorizontalFlip()] if augmentation.flips else [crop]

    if resize == "squash":
        return [transforms.Resize((size, size), how)]
    return [transforms.Resize(size, how), transforms.CenterCrop(size)]


class CLIPInput(nn.Module):
    """From the data set's pictures to the model's: undo one normalisation, resize, apply the other.

    (N, 3, H, W) of any size, ``mean`` and ``std`` as the data set applied them -> (N, 3, R, R), as
    ``wanted``, OpenAI's if it is a number, R in pixels. Both are in the state dict.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        wanted: Preprocessing | int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.preprocessing = wanted = Preprocessing(wanted) if isinstance(wanted, int) else wanted
        theirs, spread, clip_mean, clip_std = map(
            torch.tensor, (mean, std, wanted.mean, wanted.std)
        )
        # (x * std + mean - clip_mean) / clip_std, folded into one multiplication and one addition
        scale, shift = spread / clip_std, (theirs - clip_mean) / clip_std
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("shift", shift.view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = (self.preprocessing.resolution, self.preprocessing.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode=self.preprocessing.interpolation, antialias=True)
        return x * self.scale + self.shift
