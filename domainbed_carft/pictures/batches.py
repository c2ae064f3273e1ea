"""The second stage in torch's operations, for accelerators: flip, jitter, grey, normalisation.

The jitter's arithmetic is Pillow's, on floats that hold whole numbers: each operation ends in whole
grey levels, hue has 255 steps. (Pillow 12: Blend.c, Convert.c; torchvision's `_functional_pil`.)
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# A pixel's luminance is (19595 R + 38470 G + 7471 B + half) / 65536 (ITU-R 601-2), rounded down.
# Whole numbers up to 2 ** 24 are exact in float32, and these stay below.
LUMINANCE = (19595, 38470, 7471)


class Settings(NamedTuple):
    """What is done to each of N pictures; arrays on the host. At last level * scale + shift."""

    flip: np.ndarray  # (N,), bool
    order: np.ndarray  # (N, 4), int64: the operation at each of four places, -1 for none
    factors: np.ndarray  # (N, 4), float32: by operation, the hue's in steps of the circle
    grey: np.ndarray  # (N,), bool
    scale: np.ndarray  # (3,), float32
    shift: np.ndarray


def second_stage(pictures: Tensor, settings: Settings) -> Tensor:
    """(N, S, S, 3), uint8 -> (N, 3, S, S), float32, on the pictures' device.

    Which pictures an operation is for is known on the host, and told in one transfer.
    """
    places = [(place, number) for place in range(4) for number in range(4)]
    chosen = [
        np.flatnonzero(settings.flip),
        *(np.flatnonzero(settings.order[:, place] == number) for place, number in places),
        np.flatnonzero(settings.grey),
    ]
    on_device = _sent(torch.from_numpy(np.concatenate(chosen)), pictures.device)
    flipped, *jittered, grey = on_device.split([len(index) for index in chosen])
    factors = _sent(torch.from_numpy(settings.factors), pictures.device)[:, :, None, None, None]
    x = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if len(flipped):
        x.index_copy_(0, flipped, x[flipped].flip(-1))
    for (_, number), index in zip(places, jittered):
        if len(index):
            x.index_copy_(0, index, OPERATIONS[number](x[index], factors[index, number]))
    if len(grey):
        x.index_copy_(0, grey, _luminance(x[grey]).expand(-1, 3, -1, -1))
    ends = torch.from_numpy(np.stack([settings.scale, settings.shift]))
    scale, shift = _sent(ends, pictures.device).view(2, 1, 3, 1, 1)
    return x * scale + shift


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device; the host waits for no other work there."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _luminance(x: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 1, S, S)."""
    red, green, blue = LUMINANCE
    weighted = red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]
    return ((weighted + 32768) / 65536).floor()


def _blend(other: Tensor | float, x: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (x - other)).clamp(0, 255).floor()


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = _luminance(x).to(torch.int32)
    pixels = grey[0].numel()
    # The mean in whole numbers, rounded half up
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(mean.to(torch.float32), x, factor)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(_luminance(x), x, factor)


def _hue(x: Tensor, steps: Tensor) -> Tensor:
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - low
    unit = 1 / spread.clamp(min=1)
    sixths = torch.where(
        red == value,
        (green - blue) * unit,
        torch.where(green == value, 2 + (blue - red) * unit, 4 + (red - green) * unit),
    )
    turn = sixths / 6
    hue = ((turn - turn.floor()) * 255).floor()
    saturation = (spread / value.clamp(min=1) * 255).floor() / 255
    sixths = (hue + steps).remainder(256) * 6 / 255
    # Each channel is the value, less what its distance on the circle takes: red's 5 sixths on,
    # green's 3, blue's 1.
    ahead = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    place = (sixths + _sent(ahead, x.device)).remainder(6)
    taken = torch.minimum(place, 4 - place).clamp(0, 1)
    return (value - value * saturation * taken + 0.5).floor()


OPERATIONS = (functools.partial(_blend, 0.0), _contrast, _saturation, _hue)
