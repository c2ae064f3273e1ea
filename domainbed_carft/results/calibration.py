"""Calibration: whether predicted probabilities are the shares that they claim to be. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ECE_BINS = 15  # of equal width, for the expected calibration error

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PredictedProbabilities:
    """What the probabilities (N, K) of N pictures say, (N,) each.

    ``top``: the probability of the predicted class. ``log_true``: the logarithm of that of the true
    class, in nats. ``sum_of_squares``: over the K classes.
    """

    top: Floats
    log_true: Floats
    sum_of_squares: Floats


@dataclass(frozen=True)
class ReliabilityBins:
    """ECE_BINS bins of equal width by confidence, the probability of the predicted class.

    Of each bin the number of pictures, how many of them are predicted correctly, and the sum of
    their confidences. Bin m, from 0, holds confidences in (m / ECE_BINS, (m + 1) / ECE_BINS].
    """

    pictures: list[int]
    correct: list[int]
    confidence: list[float]


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of a set of pictures fit the outcomes; all are 0 at best.

    ``ece``: expected calibration error, a share of 1 (Guo et al., ICML 2017, equation 3). ``nll``:
    mean negative log-likelihood, in nats. ``brier``: mean squared distance between the vector of
    probabilities and that of the true class, from 0 to 2 (Brier 1950).
    """

    ece: float
    nll: float
    brier: float
    reliability: ReliabilityBins


def bin_numbers(confidences: Floats) -> npt.NDArray[np.int64]:
    """The bin (N,) of each confidence (N,), as in `ReliabilityBins`; of 0 it is the first."""
    numbers = np.ceil(confidences * ECE_BINS).astype(np.int64) - 1
    return np.clip(numbers, 0, ECE_BINS - 1)


def expected_calibration_error(reliability: ReliabilityBins) -> float:
    """The sum over bins of their share of the pictures times |accuracy - mean confidence|."""
    # Each is |accuracy - mean confidence| times the number of pictures in the bin.
    gaps = np.abs(np.array(reliability.correct) - np.array(reliability.confidence))
    return float(gaps.sum() / sum(reliability.pictures))


def measure_calibration(
    probabilities: PredictedProbabilities, is_correct: npt.NDArray[np.bool_]
) -> Calibration:
    """The calibration on N > 0 pictures; ``is_correct`` (N,): whether the prediction is right."""
    bins = bin_numbers(probabilities.top)
    reliability = ReliabilityBins(
        pictures=np.bincount(bins, minlength=ECE_BINS).tolist(),
        correct=np.bincount(bins[is_correct], minlength=ECE_BINS).tolist(),
        confidence=np.bincount(bins, probabilities.top, minlength=ECE_BINS).tolist(),
    )

    # Of one picture: the sum over classes of (p - [true class])^2.
    true_probability = np.exp(probabilities.log_true)
    squared_distance = probabilities.sum_of_squares - 2 * true_probability + 1
    return Calibration(
        ece=expected_calibration_error(reliability),
        nll=float(-probabilities.log_true.mean()),
        brier=float(squared_distance.mean()),
        reliability=reliability,
    )
