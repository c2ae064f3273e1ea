"""How pictures are normalised: DomainBed's way, CLIP's way, and from one to the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# DomainBed normalises every picture with these (domainbed/datasets.py at b93c22a).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The pictures CLIP was trained on, per RGB channel in [0, 1] (openai/CLIP, clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPInput(nn.Module):
    """From DomainBed's pictures to CLIP's: undo one normalisation, resize, apply the other.

    (N, 3, H, W) of any size, ImageNet mean and standard deviation -> (N, 3, R, R), CLIP's, where R
    is the ``resolution`` in pixels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        clip_mean, clip_std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        # (x * std + mean - clip_mean) / clip_std, folded into one multiplication and one addition
        scale, shift = std / clip_std, (mean - clip_mean) / clip_std
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        return x * self.scale + self.shift
