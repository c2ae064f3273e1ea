"""The preprocessing of image encoders, and published normalisations."""

from __future__ import annotations

from typing import NamedTuple

Normalisation = tuple[
    tuple[float, ...], tuple[float, ...]
]  # mean and std per channel, of values in [0, 1]

# DomainBed normalises every image with these (domainbed/datasets.py at b93c22a).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)

# Of CLIP's training images, per RGB channel in [0, 1] (openai/CLIP, clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocessing(NamedTuple):
    """The input of an image encoder: normalised square images."""

    resolution: int  # side in pixels
    interpolation: str = "bicubic"  # or "bilinear"
    resize: str = "shortest"  # the shorter side, then a central crop; or "squash": both sides
    mean: tuple[float, ...] = CLIP_MEAN  # per channel, of values in [0, 1]
    std: tuple[float, ...] = CLIP_STD

    @property
    def hparam_value(self) -> str:
        """Value of the hparam ``preprocessing``, by which a dataset learns size and resizing."""
        return f"{self.resolution} {self.interpolation} {self.resize}"

    @classmethod
    def from_hparam(cls, value: str) -> Preprocessing:
        """Parse the hparam ``preprocessing``, such as "224 bicubic shortest"."""
        resolution, interpolation, resize = value.split()
        return cls(int(resolution), interpolation, resize)
