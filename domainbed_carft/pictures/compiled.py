"""The second stage in loops that numba compiles, for processors; the arithmetic of `batches`.

The first call compiles, for seconds; numba keeps that beside this file or in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

f32, u8, u32, u64 = np.float32, np.uint8, np.uint32, np.uint64
ZERO, HALF, ONE, TWO, FOUR = f32(0), f32(0.5), f32(1), f32(2), f32(4)
SIX, WHITE, TURN = f32(6), f32(255), f32(256)

# Without "contract" and "arcp": what is rounded here is rounded so by Pillow, too.
MATHS = {"nnan", "ninf", "nsz"}


def _compiled(function: F) -> F:
    compiled: Any = njit(fastmath=MATHS)(function)
    return compiled


@_compiled
def _level(value: Any) -> Any:
    return u8(min(max(value, ZERO), WHITE))


@_compiled
def _luminance(red: Any, green: Any, blue: Any) -> Any:
    weighted = u32(19595) * u32(red) + u32(38470) * u32(green) + u32(7471) * u32(blue)
    return (weighted + u32(32768)) >> u32(16)


@_compiled
def _blended(other: Any, level: Any, factor: Any) -> Any:
    return _level(other + factor * (f32(level) - other))


@_compiled
def _towards(x: Any, other: Any, factor: Any) -> None:
    for channel in range(3):
        levels = x[channel]
        for i in range(levels.size):
            levels[i] = _blended(other, levels[i], factor)


@_compiled
def _mean(x: Any) -> Any:
    """Of the luminance, rounded half up."""
    red, green, blue = x
    total = 0
    for start in range(0, red.size, 4096):  # of which 32 bits hold the sum
        part = u32(0)
        for i in range(start, min(start + 4096, red.size)):
            part += _luminance(red[i], green[i], blue[i])
        total += part
    return f32((2 * total + red.size) // (2 * red.size))


@_compiled
def _saturation(x: Any, factor: Any) -> None:
    red, green, blue = x
    for i in range(red.size):
        grey = f32(_luminance(red[i], green[i], blue[i]))
        red[i] = _blended(grey, red[i], factor)
        green[i] = _blended(grey, green[i], factor)
        blue[i] = _blended(grey, blue[i], factor)


@_compiled
def _channel(value: Any, saturation: Any, sixths: Any, ahead: Any) -> Any:
    place = sixths + ahead
    place = place - SIX if place >= SIX else place
    taken = min(max(min(place, FOUR - place), ZERO), ONE)
    return u8(value - value * saturation * taken + HALF)


@_compiled
def _hue(x: Any, steps: Any) -> None:
    reds, greens, blues = x
    for i in range(reds.size):
        red, green, blue = f32(reds[i]), f32(greens[i]), f32(blues[i])
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
        hue = f32(np.int32(turn * WHITE)) + steps
        hue = hue - TURN if hue >= TURN else hue
        saturation = f32(np.int32(spread / max(value, ONE) * WHITE)) / WHITE
        sixths = hue * SIX / WHITE
        reds[i] = _channel(value, saturation, sixths, f32(5))
        greens[i] = _channel(value, saturation, sixths, f32(3))
        blues[i] = _channel(value, saturation, sixths, ONE)


@_compiled
def _planes(picture: Any, flip: Any, out: Any) -> None:
    """(S, S, 3) -> (3, S, S), mirrored where ``flip``."""
    pixels, width = u64(picture.size // 3), u64(picture.shape[1])
    levels = picture.reshape(-1)
    red, green, blue = out.reshape((3, -1))
    # An index that might be negative keeps a loop from being vectorised.
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
    for channel in range(3):
        levels, to, by, plus = x[channel], out[channel], scale[channel], shift[channel]
        for i in range(levels.size):
            to[i] = f32(levels[i]) * by + plus


def _second(
    pictures: Any, flip: Any, order: Any, factors: Any, grey: Any, scale: Any, shift: Any, out: Any
) -> None:
    """As `batches.second_stage`, of contiguous arrays, into ``out``."""
    x = np.empty((3, pictures.shape[1] * pictures.shape[2]), dtype=np.uint8)
    for n in range(len(pictures)):
        _planes(pictures[n], flip[n], x)
        for place in range(4):
            number = order[n, place]
            if number == 0:
                _towards(x, ZERO, factors[n, 0])
            elif number == 1:
                _towards(x, _mean(x), factors[n, 1])
            elif number == 2:
                _saturation(x, factors[n, 2])
            elif number == 3:
                _hue(x, factors[n, 3])
        if grey[n]:
            _saturation(x, ZERO)
        _normalise(x, scale, shift, out[n].reshape(x.shape))


try:
    second_stage = njit(fastmath=MATHS, cache=True, nogil=True)(_second)
except RuntimeError:  # there is nowhere to keep it
    second_stage = njit(fastmath=MATHS, nogil=True)(_second)
