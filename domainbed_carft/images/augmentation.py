"""Layout of the random choices for an image.

The first stage draws the choices, and the second applies them, in torch or in compiled loops.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The operations of the colour jitter, in the numbering of ColorJitter.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
N_OPERATIONS = 4
NO_OPERATION = -1

# The columns of the choices for N images, (N, N_COLUMNS), float32.
FLIP = 0  # 1 to mirror the image, otherwise 0
ORDER = slice(1, 5)  # the numbers of the four operations, in the order of their application
FACTORS = slice(5, 9)  # one for each operation, by its number
GREY = 9  # 1 to turn the image grey, otherwise 0
N_COLUMNS = 10

# Neutral factors; the factor of the hue is a share of the colour circle.
UNCHANGED = (1.0, 1.0, 1.0, 0.0)

# A pixel's luminance is (19595 R + 38470 G + 7471 B + half) / 65536 (ITU-R 601-2), rounded down.
# All intermediate values are below 2 ** 24, so float32 is exact.
LUMINANCE = (19595, 38470, 7471)
LUMINANCE_BITS = 16
LUMINANCE_HALF = 1 << (LUMINANCE_BITS - 1)

# Pillow stores a hue in a byte: 255 steps go once around the circle, but addition wraps at 256.
HUE_STEPS = 255
HUE_WRAP = 256

# Position of each channel on the circle, in sixths ahead of the hue: red, green, blue.
SIXTHS_AHEAD = (5, 3, 1)


class BatchOperations(NamedTuple):
    """Operations of the second stage on N images, as arrays in host memory."""

    flip: np.ndarray  # (N,), bool
    order: np.ndarray  # (N, 4), int64: numbers of operations, or NO_OPERATION
    factors: np.ndarray  # (N, 4), float32: by operation; for the hue, in HUE_STEPS
    grey: np.ndarray  # (N,), bool
    scale: np.ndarray  # (3,), float32: the normalised value is level * scale + shift
    shift: np.ndarray  # (3,), float32
