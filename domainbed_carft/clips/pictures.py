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
    """The pictures that an image encoder takes: normalised squares."""

    resolution: int  # px a side
    interpolation: str = "bicubic"  # or "bilinear"
    resize: str = "shortest"  # side, then cropped; or "squash": both sides
    mean: tuple[float, ...] = CLIP_MEAN  # of [0, 1], a channel
    std: tuple[float, ...] = CLIP_STD

    @property
    def hparam_value(self) -> str:
        """What a data set has to know of it: the value of the hparam ``preprocessing``."""
        return f"{self.resolution} {self.interpolation} {self.resize}"


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


class CLIPInput(nn.Module):
    """From the data set's pictures to the model's: undo one normalisation, resize, apply the other.

    (N, 3, H, W) of any size, normalised by ``mean`` and ``std``, -> (N, 3, R, R), of R pixels a
    side, as ``preprocessing`` says. That may be R alone, for OpenAI's. The state dict has both
    normalisations.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        preprocessing: Preprocessing | int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if isinstance(preprocessing, int):
            preprocessing = Preprocessing(preprocessing)
        self.preprocessing = preprocessing

        data_mean = torch.tensor(mean)
        data_std = torch.tensor(std)
        clip_mean = torch.tensor(preprocessing.mean)
        clip_std = torch.tensor(preprocessing.std)
        # (x * data_std + data_mean - clip_mean) / clip_std, as one multiplication and one addition
        self.register_buffer("scale", (data_std / clip_std).view(1, 3, 1, 1))
        self.register_buffer("shift", ((data_mean - clip_mean) / clip_std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, R, R) as the model takes them, from those (N, 3, H, W) of the data."""
        size = (self.preprocessing.resolution, self.preprocessing.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode=self.preprocessing.interpolation, antialias=True)
        return x * self.scale + self.shift
