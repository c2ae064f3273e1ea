"""How the random choices for an image are numbered and laid out, in both stages.

The first stage draws them, the second applies them, in torch or in compiled loops.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The operations of the colour jitter, by the numbers in which ColorJitter draws their order.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
N_OPERATIONS = 4
NO_OPERATION = -1

# The columns of the choices for N images, (N, N_COLUMNS), float32.
FLIP = 0  # 1 to mirror the image, else 0
ORDER = slice(1, 5)  # the numbers of the four operations, the first one first
FACTORS = slice(5, 9)  # one for each operation, by its number
GREY = 9  # 1 to turn the image grey, else 0
N_COLUMNS = 10

# Factors that change nothing; the hue's is a share of the colour circle.
UNCHANGED = (1.0, 1.0, 1.0, 0.0)

# A pixel's luminance is (19595 R + 38470 G + 7471 B + half) / 65536 (ITU-R 601-2), rounded down.
# Whole numbers up to 2 ** 24 are exact in float32, and these stay below.
LUMINANCE = (19595, 38470, 7471)
LUMINANCE_BITS = 16
LUMINANCE_HALF = 1 << (LUMINANCE_BITS - 1)

# Pillow stores a hue in a byte: 255 steps are once around the circle, and adding wraps at 256.
HUE_STEPS = 255
HUE_WRAP = 256

# Where each channel stands on the circle, in sixths ahead of the hue: red, green, blue.
SIXTHS_AHEAD = (5, 3, 1)


class BatchOperations(NamedTuple):
    """What the second stage does to each of N images, as arrays on the host."""

    flip: np.ndarray  # (N,), bool
    order: np.ndarray  # (N, 4), int64: the operations, NO_OPERATION in place of those left out
    factors: np.ndarray  # (N, 4), float32: by operation, the hue's in HUE_STEPS
    grey: np.ndarray  # (N,), bool
    scale: np.ndarray  # (3,), float32: the normalised value is level * scale + shift
    shift: np.ndarray  # (3,), float32
