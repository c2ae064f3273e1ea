"""The sign-flip test of paired differences, Holm's correction, and what a test can attain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Of more differences than this, flips are drawn at random instead of counting all 2^n.
MOST_EXACT = 36
RANDOM_FLIPS = 99_999
SEED = 0

_FLIPS_AT_ONCE = 11_111  # a divisor of RANDOM_FLIPS
_TOLERANCE = 1e-9  # of sums that are equal but for rounding, relative to the sum of sizes


def p_value(differences: Sequence[float]) -> float:
    """The two-sided p-value of the mean of at least one difference.

    It is the share of the 2^n ways to flip the signs of the n differences of which the sum is at
    least as far from 0: exact up to MOST_EXACT differences, as
    ``scipy.stats.permutation_test(permutation_type="samples")`` enumerates them. Of more it is by
    RANDOM_FLIPS random flips (numpy's default_rng, SEED), the observed signs counted as one.
    """
    values = np.asarray(differences, dtype=float)
    tolerance = _TOLERANCE * float(np.abs(values).sum())
    threshold = abs(float(values.sum())) - tolerance
    if threshold <= 0:
        return 1.0
    if values.size <= MOST_EXACT:
        return 2 * _count_of_sums(values, threshold) / 2**values.size
    return (1 + _count_of_random_sums(values, threshold)) / (1 + RANDOM_FLIPS)


def smallest_p(n: int) -> float:
    """The smallest p-value that `p_value` can return for n differences."""
    smallest = 2.0 ** (1 - n)
    return smallest if n <= MOST_EXACT else 1 / (1 + RANDOM_FLIPS)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Name -> p-value, corrected for the number of tests by Holm's step-down method."""
    corrected: dict[str, float] = {}
    largest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * value))
        corrected[name] = largest
    return corrected


def _count_of_sums(values: Floats, threshold: float) -> int:
    """Of all sums with flipped signs, how many are at least ``threshold``.

    Each is a sum of one half of the values and one of the other, so 2^(n/2) of each are enough.
    """
    middle = values.size // 2
    first = np.sort(_signed_sums(values[:middle]))
    second = np.sort(_signed_sums(values[middle:]))
    below = np.searchsorted(first, threshold - second, side="left")
    return int(first.size * second.size - below.sum())


def _signed_sums(values: Floats) -> Floats:
    """The sums of all 2^n ways to give the values signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _count_of_random_sums(values: Floats, threshold: float) -> int:
    """Of RANDOM_FLIPS sums with random signs, how many are ``threshold`` or more from 0."""
    rng = np.random.default_rng(SEED)
    count = 0
    for _ in range(RANDOM_FLIPS // _FLIPS_AT_ONCE):
        signs = 2.0 * rng.integers(2, size=(_FLIPS_AT_ONCE, values.size), dtype=np.int8) - 1
        count += int((np.abs(signs @ values) >= threshold).sum())
    return count
