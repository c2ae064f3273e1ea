"""From a model's logits to a test set's, and how sure an accuracy is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Z = 1.959963984540054  # of 95%, two-sided


def padded(groups: Sequence[Sequence[int]]) -> Tensor:
    """(J, L) of J groups, each as long as the longest: its first class is repeated."""
    longest = max(map(len, groups))
    return torch.tensor([[*group, *[group[0]] * (longest - len(group))] for group in groups])


def scores(logits: Tensor, index: Tensor) -> Tensor:
    """(N, J): of each class of the test set the largest logit of those that count as it.

    ``logits``: (N, K) over the model's classes; ``index``: what `padded` made, on their device. The
    one rule for every test set: WiSE-FT's, arXiv 2109.01903 (mlfoundations/wise-ft).
    """
    return logits[:, index].amax(dim=2)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a binomial share (JASA 22, 1927), ``right`` of ``count`` > 0."""
    share, spread = right / count, Z * Z / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)
