"""Alignment: how close the original CLIP already sees a picture to its class. No torch.

The score of a picture is the cosine of the original CLIP's image feature with the zero-shot weight
of the true class, as in Teterwak et al., "Is Large-Scale Pretraining the Secret to Good Domain
Generalization?" (arXiv 2412.02856), which takes high scores for pictures like those of the
pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from domainbed_carft.results.alignment_scores import HIGHEST, LOWEST, THRESHOLD

# Accuracy over alignment: bins of this width between 0 and 0.5, and one on each side.
BIN_EDGES = [number / 100 for number in range(51)]


@dataclass(frozen=True)
class AlignmentFigures:
    """Accuracies, shares of 1, of pictures by their alignment score; None without any picture.

    ``aligned``: of scores in [threshold, highest]; ``unaligned``: of those in [lowest, threshold).
    ``pictures_below``, ``pictures_above``: how many are in neither, since their score is below
    ``lowest`` or above ``highest``. ``bin_pictures``, ``bin_correct``: the number of pictures, and
    of those predicted correctly, in bins: below BIN_EDGES[0], between neighbours [low, high), and
    from BIN_EDGES[-1] on.
    """

    threshold: float
    lowest: float
    highest: float
    aligned: float | None
    unaligned: float | None
    aligned_pictures: int
    unaligned_pictures: int
    pictures_below: int
    pictures_above: int
    bin_pictures: list[int]
    bin_correct: list[int]


def measure_alignment(
    scores: npt.NDArray[np.floating],
    is_correct: npt.NDArray[np.bool_],
    threshold: float = THRESHOLD,
) -> AlignmentFigures:
    """The accuracies by alignment; ``scores`` and ``is_correct`` are of the same pictures, (N,)."""
    exact_scores = scores.astype(np.float64)
    is_kept = (exact_scores >= LOWEST) & (exact_scores <= HIGHEST)
    is_aligned = is_kept & (exact_scores >= threshold)
    is_unaligned = is_kept & (exact_scores < threshold)

    bins = np.searchsorted(BIN_EDGES, exact_scores, side="right")
    n_bins = len(BIN_EDGES) + 1
    return AlignmentFigures(
        threshold=threshold,
        lowest=LOWEST,
        highest=HIGHEST,
        aligned=_share(is_correct[is_aligned]),
        unaligned=_share(is_correct[is_unaligned]),
        aligned_pictures=int(is_aligned.sum()),
        unaligned_pictures=int(is_unaligned.sum()),
        pictures_below=int((exact_scores < LOWEST).sum()),
        pictures_above=int((exact_scores > HIGHEST).sum()),
        bin_pictures=np.bincount(bins, minlength=n_bins).tolist(),
        bin_correct=np.bincount(bins[is_correct], minlength=n_bins).tolist(),
    )


def _share(is_correct: npt.NDArray[np.bool_]) -> float | None:
    return float(is_correct.mean()) if len(is_correct) else None
