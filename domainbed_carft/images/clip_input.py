"""Conversion of a dataset's image batches to the input of an image encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalisation,
    Preprocessing,
)


class CLIPInput(nn.Module):
    """Undo the dataset's normalisation, resize, and apply the model's normalisation.

    Args:
        preprocessing: the model's preprocessing, or its resolution in pixels for OpenAI's
            preprocessing.
        mean: the dataset's mean per channel, of values in [0, 1].
        std: the dataset's standard deviation per channel.
    """

    # (1, 3, 1, 1) each, in the state dict: both normalisations as one.
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
        """Convert the dataset's images (N, 3, H, W) to the model's (N, 3, R, R)."""
        size = (self.preprocessing.resolution, self.preprocessing.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode=self.preprocessing.interpolation, antialias=True)
        return x * self.scale + self.shift

    def data_normalisation(self) -> Normalisation:
        """Return the dataset's mean and std per channel, computed from the float32 buffers."""
        scale = self.scale.flatten().tolist()
        shift = self.shift.flatten().tolist()
        model_mean = self.preprocessing.mean
        model_std = self.preprocessing.std
        mean = tuple(m + s * offset for m, s, offset in zip(model_mean, model_std, shift))
        std = tuple(s * factor for s, factor in zip(model_std, scale))
        return mean, std
