"""Confusion counts: what is known of a model's predictions on one set of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from domainbed_carft.results.calibration import ECE_BINS as ECE_BINS
from domainbed_carft.results.calibration import bin_numbers


@dataclass(frozen=True)
class ClassAccuracy:
    """The pictures of a class, and the share of them that is predicted as it; None without any."""

    pictures: int
    accuracy: float | None


@dataclass(frozen=True)
class ConfusionCounts:
    """The predictions on one set of pictures; `add` counts a batch into the arrays.

    ``confusion`` (K, K): pictures by true class (row) and predicted class (column).
    ``correct_by_bin``, ``confidence_by_bin`` (ECE_BINS,): the number of correct predictions and the
    sum of the confidences, by confidence. ``groups``: for each class those of the model's classes
    that count as it; empty if they are the model's own.
    """

    confusion: npt.NDArray[np.int64]
    correct_by_bin: npt.NDArray[np.int64]
    confidence_by_bin: npt.NDArray[np.float64]
    groups: Sequence[Sequence[int]] = ()

    @classmethod
    def empty(cls, num_classes: int, groups: Sequence[Sequence[int]] = ()) -> ConfusionCounts:
        """Counts of no picture yet."""
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64),
            correct_by_bin=np.zeros(ECE_BINS, np.int64),
            confidence_by_bin=np.zeros(ECE_BINS),
            groups=groups,
        )

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of the model's logits (N, K) and the true labels (N,)."""
        if self.groups:
            logits = group_logits(logits, self.groups)

        confidences = logits.double().softmax(dim=1).amax(dim=1).cpu().numpy()
        predicted_classes = logits.argmax(dim=1).cpu().numpy()
        true_classes = labels.numpy()
        np.add.at(self.confusion, (true_classes, predicted_classes), 1)

        bins = bin_numbers(confidences)
        np.add.at(self.correct_by_bin, bins, predicted_classes == true_classes)
        np.add.at(self.confidence_by_bin, bins, confidences)

    @property
    def count(self) -> int:
        """The number of pictures."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """The number of pictures whose predicted class is the true one."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """The share of the pictures that are predicted correctly; None without pictures."""
        return self.correct / self.count if self.count else None

    @property
    def by_class(self) -> list[ClassAccuracy]:
        """The accuracy (recall) of each class, in label order."""
        pictures = self.confusion.sum(axis=1).tolist()
        correct = self.confusion.diagonal().tolist()
        return [
            ClassAccuracy(total, hits / total if total else None)
            for total, hits in zip(pictures, correct)
        ]

    @property
    def mean_per_class(self) -> float:
        """The mean of the accuracies of the classes that have pictures."""
        pictures = self.confusion.sum(axis=1)
        has_pictures = pictures > 0
        return float((self.confusion.diagonal()[has_pictures] / pictures[has_pictures]).mean())

    @property
    def ece(self) -> float | None:
        """The expected calibration error over ECE_BINS bins of equal width; None without pictures.

        The sum over bins of the bin's share of the pictures times |accuracy - mean confidence|,
        where a picture's confidence is the probability of the predicted class: Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        # Each is |accuracy - mean confidence| times the number of pictures in the bin.
        gaps = np.abs(self.correct_by_bin - self.confidence_by_bin)
        return float(gaps.sum()) / self.count if self.count else None


def group_logits(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The largest logit of each of J groups of classes: (N, J) of ``logits`` (N, K).

    One rule for every test set: WiSE-FT's, arXiv 2109.01903 (mlfoundations/wise-ft).
    """
    longest = max(map(len, groups))
    padded = []
    for group in groups:
        padding = [group[0]] * (longest - len(group))
        padded.append([*group, *padding])

    return logits[:, torch.tensor(padded, device=logits.device)].amax(dim=2)
