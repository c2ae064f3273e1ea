"""The second stage in torch's operations, for accelerators: flip, jitter, grey, normalisation.

The jitter's arithmetic is Pillow's, on floats that hold whole numbers: each operation rounds to
whole grey levels, and hue has 255 steps (Pillow 12, Blend.c and Convert.c; torchvision's
`_functional_pil`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domainbed_carft.images.augmentation import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    HUE_STEPS,
    HUE_WRAP,
    LUMINANCE,
    LUMINANCE_BITS,
    LUMINANCE_HALF,
    N_OPERATIONS,
    SATURATION,
    SIXTHS_AHEAD,
    BatchOperations,
)
from domainbed_carft.machine.devices import copy_to_device


def second_stage(images: Tensor, operations: BatchOperations) -> Tensor:
    """Apply flip, jitter, grey and normalisation to a batch.

    Args:
        images: images (N, S, S, 3), uint8, on any device.
        operations: arrays in host memory, copied to the device in one transfer.

    Returns:
        Normalised images (N, 3, S, S), float32, on the same device.
    """
    steps = [(turn, number) for turn in range(N_OPERATIONS) for number in range(N_OPERATIONS)]
    positions = [
        np.flatnonzero(operations.flip),
        *(np.flatnonzero(operations.order[:, turn] == number) for turn, number in steps),
        np.flatnonzero(operations.grey),
    ]
    sent_positions = copy_to_device(torch.from_numpy(np.concatenate(positions)), images.device)
    flipped, *jittered, grey = sent_positions.split([len(array) for array in positions])
    factors = copy_to_device(torch.from_numpy(operations.factors), images.device)
    factors = factors[:, :, None, None, None]

    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if len(flipped):
        x.index_copy_(0, flipped, x[flipped].flip(-1))
    for (_, number), index in zip(steps, jittered):
        if len(index):
            x.index_copy_(0, index, OPERATIONS[number](x[index], factors[index, number]))
    if len(grey):
        x.index_copy_(0, grey, _luminance(x[grey]).expand(-1, 3, -1, -1))

    normalisation = torch.from_numpy(np.stack([operations.scale, operations.shift]))
    scale, shift = copy_to_device(normalisation, images.device).view(2, 1, 3, 1, 1)
    return x * scale + shift


def _luminance(x: Tensor) -> Tensor:
    """Return the luminance (N, 1, S, S) of images (N, 3, S, S), in whole levels from 0 to 255."""
    red, green, blue = LUMINANCE
    scaled = red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]
    return ((scaled + LUMINANCE_HALF) / (1 << LUMINANCE_BITS)).floor()


def _blend(base: Tensor | float, x: Tensor, factor: Tensor) -> Tensor:
    """Blend ``base`` (factor 0) with ``x`` (factor 1), in whole levels from 0 to 255."""
    return (base + factor * (x - base)).clamp(0, 255).floor()


def _adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(0.0, x, factor)


def _adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = _luminance(x).to(torch.int32)
    pixels = grey[0].numel()
    # In integers, because Pillow rounds the mean half up.
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(mean.to(torch.float32), x, factor)


def _adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(_luminance(x), x, factor)


def _adjust_hue(x: Tensor, steps: Tensor) -> Tensor:
    """Turn the hue of images (N, 3, S, S) by ``steps``, (N, 1, 1, 1), in HUE_STEPS."""
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    value = x.amax(1, keepdim=True)
    spread = value - x.amin(1, keepdim=True)
    unit = 1 / spread.clamp(min=1)
    sixths = torch.where(
        red == value,
        (green - blue) * unit,
        torch.where(green == value, 2 + (blue - red) * unit, 4 + (red - green) * unit),
    )
    turn = sixths / 6
    hue = ((turn - turn.floor()) * HUE_STEPS).floor()
    saturation = (spread / value.clamp(min=1) * 255).floor() / 255

    # Each channel loses part of the value, depending on its distance on the circle.
    sixths = (hue + steps).remainder(HUE_WRAP) * 6 / HUE_STEPS
    ahead = torch.tensor(SIXTHS_AHEAD, dtype=torch.float32).view(1, 3, 1, 1)
    distance = (sixths + copy_to_device(ahead, x.device)).remainder(6)
    loss = torch.minimum(distance, 4 - distance).clamp(0, 1)
    return (value - value * saturation * loss + 0.5).floor()


OPERATIONS = {
    BRIGHTNESS: _adjust_brightness,
    CONTRAST: _adjust_contrast,
    SATURATION: _adjust_saturation,
    HUE: _adjust_hue,
}
