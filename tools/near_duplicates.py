"""Difference hashes of pictures: whether two drawings are nearly the same one.

A picture of 64 x 64 pixels becomes a grid of 16 x 16 cells. Each bit says whether a cell is
brighter than its neighbour to the right, or than the one below: 480 bits. Integer arithmetic only,
so that every machine finds the same bits.
"""

from __future__ import annotations

import numpy as np

GRID = 16
BITS = 2 * GRID * (GRID - 1)
#: Two pictures are near duplicates if at most this many of the bits differ: a tenth.
NEAR = BITS // 10
#: Parts in a thousand of red, green and blue in the luminance (ITU-R BT.601).
_LUMINANCE = np.array((299, 587, 114))


def difference_hashes(pictures: np.ndarray) -> np.ndarray:
    """The bits of each picture: bool, (n, BITS), of uint8 pictures (n, 64, 64, 3)."""
    luminance = pictures.astype(np.int64) @ _LUMINANCE
    side = luminance.shape[1] // GRID
    cells = luminance.reshape(-1, GRID, side, GRID, side).sum(axis=(2, 4))

    to_the_right = cells[:, :, :-1] > cells[:, :, 1:]
    below = cells[:, :-1] > cells[:, 1:]
    flat = [bits.reshape(len(cells), -1) for bits in (to_the_right, below)]
    return np.concatenate(flat, axis=1)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many bits differ, (n, m), between two sets of hashes (n, BITS) and (m, BITS)."""
    # Whole numbers as small as BITS are exact in float32, and its products are a library's.
    a = first.astype(np.float32)
    b = second.astype(np.float32)
    return (a @ (1 - b).T + (1 - a) @ b.T).astype(np.int32)


def as_text(bits: np.ndarray) -> str:
    """One hash in hexadecimal."""
    return np.packbits(bits).tobytes().hex()


def from_text(text: str) -> np.ndarray:
    """The hash that `as_text` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:BITS].astype(bool)
