"""The formulas of CAR-FT's peers as pure functions of tensors: what holds a fine-tuned CLIP back.

N pictures, K classes, D the dimension of CLIP's joint embedding; a 0 in a name stands for the
frozen original. Each loss that compares with the original is a scalar that is 0 at its weights, but
`variational`, which then is half the mean logarithm of the variances. Which official code each is
from, and where we deviate: docs/peers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MIRO_VARIANCE = 0.1  # at the start
_LEAST_VARIANCE = 1e-5


def margin_logits(logits: Tensor, labels: Tensor, class_texts: Tensor, shift: Tensor) -> Tensor:
    """CLIPood's margin metric softmax (arXiv 2302.00864, section 3.1): (N, K) class logits.

    Each wrong class k gets a head start of ``shift`` * (1 - t_y . t_k) over the true one y.
    ``class_texts``: (K, D) of unit rows; ``shift``: the logit scale times CLIPood's lambda.
    """
    return logits + shift * (1 - class_texts @ class_texts.T)[labels]


def weight_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """L2-SP (arXiv 1802.01483): the sum over all weights of (w - w0)^2, without a factor 1/2."""
    return torch.stack([(now - start).square().sum() for now, start in pairs]).sum()


def feature_distance(features: Tensor, features_0: Tensor) -> Tensor:
    """The mean over the batch of the squared distance of unit features: 2 - 2 cos. (N, D) both."""
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    return gap.square().sum(dim=-1).mean()


def ldifs(activations: Sequence[Tensor], activations_0: Sequence[Tensor], axis: str) -> Tensor:
    """LDIFS (arXiv 2308.13320, equation 2): the distance of activations of several modules.

    Each is (N, T, C), and is scaled to length 1 along ``axis``, "channel" or "token"; the mean is
    over pictures, tokens and channels of a module, then over modules.
    """
    dim = 2 if axis == "channel" else 1
    distances = [
        (F.normalize(now, dim=dim) - F.normalize(start, dim=dim)).square().mean()
        for now, start in zip(activations, activations_0, strict=True)
    ]
    return torch.stack(distances).mean()


def lipsum(features: Tensor, features_0: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Lipsum-FT (arXiv 2404.00860, equation 3): gaps of the logits of random texts, squared.

    The mean over the batch of 1/(2M) sum_m (s f . u_m - s f0 . u_m)^2. ``features``: (N, D) of any
    length; ``texts``: (M, D) text features of any length; ``scale``: s, the logit scale.
    """
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    logits = scale * gap @ F.normalize(texts, dim=-1).T
    return logits.square().mean() / 2


def variational(
    activations: Sequence[Tensor], activations_0: Sequence[Tensor], raw: Sequence[Tensor]
) -> Tensor:
    """MIRO (arXiv 2203.10789, equation 5) with the identity as its mean encoder.

    The sum over modules of the mean over (N, T, C) of ((z - z0)^2 / v + log v) / 2, with the
    variances v = softplus(b) + 1e-5 of each channel; ``raw`` has a b (C,) a module.
    """
    terms = []
    for now, start, b in zip(activations, activations_0, raw, strict=True):
        variance = F.softplus(b) + _LEAST_VARIANCE
        terms.append(((now - start).square() / variance + variance.log()).mean() / 2)
    return torch.stack(terms).sum()


def raw_variance(variance: float, channels: int) -> Tensor:
    """The b (C,) of `variational` whose variances are ``variance``."""
    return torch.full((channels,), variance - _LEAST_VARIANCE).expm1().log()


def pair_logits(features: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's logits (N, N) of pictures and captions, from features (N, D) of any length."""
    return scale * F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T


def contrastive(logits: Tensor, labels: Tensor, targets: str) -> Tensor:
    """FLYP's loss (arXiv 2212.00638, equation 1): CLIP's own, over pictures and their captions.

    ``logits``: (N, N) of `pair_logits`, caption n describes the class of picture n; ``targets``:
    what counts as the partner of a picture, each caption of its class in equal parts
    ("same-class"), or the one of its own row alone, as in the official code ("diagonal").
    """
    partners = torch.eye(len(labels), device=logits.device)
    if targets == "same-class":
        partners = (labels[:, None] == labels[None]).float()
        partners = partners / partners.sum(dim=1, keepdim=True)

    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def contrastive_distillation(logits: Tensor, logits_of_teacher: Tensor) -> Tensor:
    """CaRot's self-distillation (arXiv 2311.01723): soft cross-entropies of `pair_logits` (N, N).

    The teacher's distribution over captions, and that over pictures, under the student's: the sum
    of both means. It is least, the teacher's entropies, where both agree.
    """
    over_texts = F.cross_entropy(logits, logits_of_teacher.softmax(dim=1))
    over_pictures = F.cross_entropy(logits.T, logits_of_teacher.T.softmax(dim=1))
    return over_texts + over_pictures


def orthogonality(projection: Tensor) -> Tensor:
    """CaRot's constraint: the Frobenius norm of P^T P - I, ``projection`` P (width, D)."""
    gram = projection.T @ projection
    return torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))
