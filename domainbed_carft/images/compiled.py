"""The second stage in loops compiled by numba, for CPUs, with the same arithmetic as `batches`.

The first call compiles for some seconds. numba caches the result next to this file or in the user's
cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

from domainbed_carft.images import augmentation
from domainbed_carft.images.augmentation import BRIGHTNESS, CONTRAST, HUE, N_OPERATIONS, SATURATION

F = TypeVar("F", bound=Callable[..., Any])

f32, u8, u32, u64 = np.float32, np.uint8, np.uint32, np.uint64
ZERO, HALF, ONE, TWO, FOUR, SIX = f32(0), f32(0.5), f32(1), f32(2), f32(4), f32(6)
WHITE = f32(255)
HUE_STEPS = f32(augmentation.HUE_STEPS)
HUE_WRAP = f32(augmentation.HUE_WRAP)
RED_AHEAD, GREEN_AHEAD, BLUE_AHEAD = (f32(sixths) for sixths in augmentation.SIXTHS_AHEAD)
RED_SHARE, GREEN_SHARE, BLUE_SHARE = (u32(share) for share in augmentation.LUMINANCE)
LUMINANCE_HALF = u32(augmentation.LUMINANCE_HALF)
LUMINANCE_BITS = u32(augmentation.LUMINANCE_BITS)

# Small enough for the sum of the luminances to fit into 32 bits.
SUMMED_PIXELS = 4096

# Not "contract" and "arcp", which would round differently from Pillow.
FASTMATH = {"nnan", "ninf", "nsz"}


def _compiled(function: F) -> F:
    compiled: Any = njit(fastmath=FASTMATH)(function)
    return compiled


@_compiled
def _level(value: Any) -> Any:
    return u8(min(max(value, ZERO), WHITE))


@_compiled
def _luminance(red: Any, green: Any, blue: Any) -> Any:
    scaled = RED_SHARE * u32(red) + GREEN_SHARE * u32(green) + BLUE_SHARE * u32(blue)
    return (scaled + LUMINANCE_HALF) >> LUMINANCE_BITS


@_compiled
def _blend(base: Any, level: Any, factor: Any) -> Any:
    return _level(base + factor * (f32(level) - base))


@_compiled
def _blend_all(x: Any, base: Any, factor: Any) -> None:
    """Blend each level of an image (3, pixels) with one level, in place."""
    for channel in range(3):
        levels = x[channel]
        for i in range(levels.size):
            levels[i] = _blend(base, levels[i], factor)


@_compiled
def _mean_luminance(x: Any) -> Any:
    """Return the mean luminance of an image (3, pixels), rounded half up."""
    red, green, blue = x
    total = 0
    for start in range(0, red.size, SUMMED_PIXELS):
        subtotal = u32(0)
        for i in range(start, min(start + SUMMED_PIXELS, red.size)):
            subtotal += _luminance(red[i], green[i], blue[i])
        total += subtotal

    return f32((2 * total + red.size) // (2 * red.size))


@_compiled
def _adjust_saturation(x: Any, factor: Any) -> None:
    """Blend each pixel of an image (3, pixels) with its luminance, in place."""
    red, green, blue = x
    for i in range(red.size):
        grey = f32(_luminance(red[i], green[i], blue[i]))
        red[i] = _blend(grey, red[i], factor)
        green[i] = _blend(grey, green[i], factor)
        blue[i] = _blend(grey, blue[i], factor)


@_compiled
def _channel(value: Any, saturation: Any, sixths: Any, ahead: Any) -> Any:
    """Return the level of the channel ``ahead`` sixths further on the colour circle."""
    distance = sixths + ahead
    distance = distance - SIX if distance >= SIX else distance
    loss = min(max(min(distance, FOUR - distance), ZERO), ONE)
    return u8(value - value * saturation * loss + HALF)


@_compiled
def _adjust_hue(x: Any, steps: Any) -> None:
    """Turn the hue of an image (3, pixels) by ``steps``, in HUE_STEPS, in place."""
    reds, greens, blues = x
    for i in range(reds.size):
        red = f32(reds[i])
        green = f32(greens[i])
        blue = f32(blues[i])

        value = max(red, max(green, blue))
        spread = value - min(red, min(green, blue))
        unit = ONE / max(spread, ONE)
        if red == value:
            sixths = (green - blue) * unit
        elif green == value:
            sixths = TWO + (blue - red) * unit
        else:
            sixths = FOUR + (red - green) * unit
        turn = sixths / SIX
        turn = turn + ONE if turn < ZERO else turn
        hue = f32(np.int32(turn * HUE_STEPS)) + steps
        hue = hue - HUE_WRAP if hue >= HUE_WRAP else hue
        saturation = f32(np.int32(spread / max(value, ONE) * WHITE)) / WHITE

        sixths = hue * SIX / HUE_STEPS
        reds[i] = _channel(value, saturation, sixths, RED_AHEAD)
        greens[i] = _channel(value, saturation, sixths, GREEN_AHEAD)
        blues[i] = _channel(value, saturation, sixths, BLUE_AHEAD)


@_compiled
def _write_planes(image: Any, flip: Any, out: Any) -> None:
    """Write an image (S, S, 3) to ``out``, (3, pixels), mirrored if ``flip``."""
    pixels = u64(image.size // 3)
    width = u64(image.shape[1])
    levels = image.reshape(-1)
    red, green, blue = out.reshape((3, -1))

    # Unsigned indices, because a loop is not vectorised if an index can be negative.
    if not flip:
        for i in range(pixels):
            at = u64(3) * i
            red[i], green[i], blue[i] = levels[at], levels[at + u64(1)], levels[at + u64(2)]
    else:
        for start in range(u64(0), pixels, width):
            for i in range(width):
                at = u64(3) * (start + width - u64(1) - i)
                to = start + i
                red[to], green[to], blue[to] = levels[at], levels[at + u64(1)], levels[at + u64(2)]


@_compiled
def _normalise(x: Any, scale: Any, shift: Any, out: Any) -> None:
    """Write ``x * scale + shift`` of an image (3, pixels) to ``out``, per channel."""
    for channel in range(3):
        levels = x[channel]
        normalised = out[channel]
        factor = scale[channel]
        offset = shift[channel]
        for i in range(levels.size):
            normalised[i] = f32(levels[i]) * factor + offset


def _second_stage(
    images: Any, flip: Any, order: Any, factors: Any, grey: Any, scale: Any, shift: Any, out: Any
) -> None:
    """Transform images (N, S, S, 3), uint8, and write them to ``out``, (N, 3, S, S), float32.

    All arrays are contiguous. ``flip`` to ``shift`` are the fields of `BatchOperations`.
    """
    x = np.empty((3, images.shape[1] * images.shape[2]), dtype=np.uint8)
    for n in range(len(images)):
        _write_planes(images[n], flip[n], x)

        for turn in range(N_OPERATIONS):
            operation = order[n, turn]
            if operation == BRIGHTNESS:
                _blend_all(x, ZERO, factors[n, BRIGHTNESS])
            elif operation == CONTRAST:
                _blend_all(x, _mean_luminance(x), factors[n, CONTRAST])
            elif operation == SATURATION:
                _adjust_saturation(x, factors[n, SATURATION])
            elif operation == HUE:
                _adjust_hue(x, factors[n, HUE])
        if grey[n]:
            _adjust_saturation(x, ZERO)

        _normalise(x, scale, shift, out[n].reshape(x.shape))


try:
    second_stage = njit(fastmath=FASTMATH, cache=True, nogil=True)(_second_stage)
except RuntimeError:  # neither this folder nor the user's cache folder is writable
    second_stage = njit(fastmath=FASTMATH, nogil=True)(_second_stage)
