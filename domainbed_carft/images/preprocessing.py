"""The images that an image encoder takes, and the normalisations that are published."""

from __future__ import annotations

from typing import NamedTuple

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std a channel, of [0, 1]

# DomainBed normalises every image with these (domainbed/datasets.py at b93c22a).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)

# The images CLIP was trained on, per RGB channel in [0, 1] (openai/CLIP, clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocessing(NamedTuple):
    """The images that an image encoder takes: normalised squares."""

    resolution: int  # px a side
    interpolation: str = "bicubic"  # or "bilinear"
    resize: str = "shortest"  # side, then cropped; or "squash": both sides
    mean: tuple[float, ...] = CLIP_MEAN  # of [0, 1], a channel
    std: tuple[float, ...] = CLIP_STD

    @property
    def hparam_value(self) -> str:
        """What a dataset has to know of it: the value of the hparam ``preprocessing``."""
        return f"{self.resolution} {self.interpolation} {self.resize}"

    @classmethod
    def from_hparam(cls, value: str) -> Preprocessing:
        """What the hparam ``preprocessing`` says, such as "224 bicubic shortest"."""
        resolution, interpolation, resize = value.split()
        return cls(int(resolution), interpolation, resize)
