"""What a classifier got right on a split, counted batch by batch. Plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15


class Tally:
    """Counts over one split of ``num_classes`` classes; ``add`` takes a batch after another."""

    def __init__(self, num_classes: int) -> None:
        # Rows are true classes, columns predicted ones.
        self.confusion: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self._sizes = np.zeros(BINS, np.int64)
        self._hits = np.zeros(BINS, np.int64)
        self._confidences = np.zeros(BINS)

    def add(
        self,
        predicted: npt.NDArray[np.int64],
        confidences: npt.NDArray[np.float64],
        labels: npt.NDArray[np.int64],
    ) -> None:
        """Count a batch: predicted class, its probability, and true class of each picture, (N,)."""
        np.add.at(self.confusion, (labels, predicted), 1)
        # Bin m holds (m / BINS, (m + 1) / BINS].
        bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
        np.add.at(self._sizes, bins, 1)
        np.add.at(self._hits, bins, predicted == labels)
        np.add.at(self._confidences, bins, confidences)

    @property
    def count(self) -> int:
        """How many pictures there were."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float | None:
        """The share of pictures whose predicted class is the true one; None of no pictures."""
        return int(self.confusion.trace()) / self.count if self.count else None

    def by_class(self) -> list[dict[str, Any]]:
        """For each class the ``pictures`` of it and their ``accuracy``, the recall of the class."""
        sizes = self.confusion.sum(axis=1).tolist()
        rights = self.confusion.diagonal().tolist()
        return [
            {"pictures": size, "accuracy": right / size if size else None}
            for size, right in zip(sizes, rights)
        ]

    @property
    def ece(self) -> float | None:
        """The expected calibration error over BINS bins of equal width; None of no pictures.

        The sum over bins of the bin's share of the pictures times |accuracy - mean confidence|,
        where a picture's confidence is the probability of the predicted class: Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        gaps = np.abs(self._hits - self._confidences)  # each is |accuracy - confidence| times size
        return float(gaps.sum()) / self.count if self.count else None
