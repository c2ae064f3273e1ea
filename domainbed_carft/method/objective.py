"""The formulas of CAR-FT as pure functions of tensors.

Notation, after the papers that quote arXiv 2211.16175: M contexts, K classes, N images, D the
dimension of CLIP's joint embedding. ``T[m, k]`` is the text feature of the
prompt that puts class k into context m ("a sketch of a dog").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.method.hparams import KL_DIRECTIONS as KL_DIRECTIONS  # tests use it


class ZeroShotWeights(NamedTuple):
    """The two heads computed from text features: one over classes, one over contexts."""

    classes: Tensor  # (K, D), rows of length 1
    contexts: Tensor  # (M, D), rows of length 1


def zero_shot_weights(text_features: Tensor) -> ZeroShotWeights:
    """Return W_cls and W_ctx from the text features of every context with every class.

    W_cls is the mean over contexts, W_ctx the mean over classes, each scaled to length 1 again row
    by row (not by one global norm), as Lipsum-FT (arXiv 2404.00860) quotes CAR-FT.

    Args:
        text_features: (M, K, D), of any length; each is scaled to length 1 first.
    """
    unit = F.normalize(text_features, dim=-1)
    return ZeroShotWeights(
        classes=F.normalize(unit.mean(dim=0), dim=-1),
        contexts=F.normalize(unit.mean(dim=1), dim=-1),
    )


def class_logits(
    image_features: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | float
) -> Tensor:
    """Return class logits (N, K): factor * f(x) . weight + bias, with unit features f(x).

    Args:
        image_features: (N, D) of any length.
        weight: (K, D).
        bias: (K,).
        factor: the logit scale, or 1 if the weight contains it.
    """
    unit = F.normalize(image_features, dim=-1)
    return factor * F.linear(unit, weight) + bias


def context_logits(
    image_features: Tensor, context_weights: Tensor, scale: Tensor | float
) -> Tensor:
    """Return t * f(x) . W_ctx, (N, M), in float32 for any autocast dtype.

    bfloat16 keeps 8 bits, and at t = 100 its rounding alone would change a logit by half a nat, so
    this small product is computed in float32.

    Args:
        image_features: (N, D), of any length.
        context_weights: (M, D), rows of length 1.
        scale: t of the method.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        unit = F.normalize(image_features.float(), dim=-1)
        return scale * unit @ context_weights.float().T


def context_kl(original_logits: Tensor, tuned_logits: Tensor, direction: str) -> Tensor:
    """Return the KL divergence between two context distributions, the mean over the batch, in nats.

    Never NaN: computed from log-probabilities.

    Args:
        original_logits: (N, M).
        tuned_logits: (N, M).
        direction: one of KL_DIRECTIONS. The paper's abstract allows both readings; the default of
            this package is KL(original || fine-tuned).

    Raises:
        ValueError: if the direction is unknown.
    """
    # Near the original, the distributions are almost equal, and their KL is a sum of terms that
    # cancel: float32 would lose up to three digits. (N, M) is small, so float64 costs nothing.
    original = original_logits.double().log_softmax(dim=-1)
    tuned = tuned_logits.double().log_softmax(dim=-1)
    if KL_DIRECTIONS.index(direction):
        original, tuned = tuned, original
    kl = F.kl_div(tuned, original, reduction="batchmean", log_target=True)
    return kl.float()


def context_agreement(original_logits: Tensor, tuned_logits: Tensor) -> Tensor:
    """Return the share of images with the same most likely context, a scalar in [0, 1]."""
    return (original_logits.argmax(dim=-1) == tuned_logits.argmax(dim=-1)).float().mean()
