"""Weights made of other weights: WiSE-FT, LiNeS, soups and Model Stock, from state dicts to one.

`wise_ft` and `soup` apply these formulas to runs, measure the results and write them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.encoders import encoder_blocks
from domainbed_carft.runs.saved_checks import LINEAR, UNIFORM

StateDict = Mapping[str, Tensor]


# WiSE-FT, Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903:
#
#     (1 - alpha) * original + alpha * tuned
#
# LiNeS, Wang et al., arXiv 2410.17146; wang-kee/LiNeS at 43a7bdd, src/eval/eval.py. Its scale of
# block l of L is a + b (l - 1) / (L - 1), and a outside of the blocks. Here a + b is 1, so that the
# last block is the run's, and a is the alpha of WiSE-FT:
#
#     share = alpha + (1 - alpha) * depth,  depth = (l - 1) / (L - 1), 0 outside of the blocks
#     (1 - share) * original + share * tuned
@torch.no_grad()
def interpolate(
    original: StateDict, tuned: StateDict, alpha: float, depths: Mapping[str, float] = {}
) -> dict[str, Tensor]:
    """The weights between ``original`` (alpha 0) and ``tuned`` (alpha 1), under the same names.

    ``depths``: as `linear_depths` gives them; a tensor without one has depth 0. Shares of 0 and 1
    are the very tensors that were given.
    """
    weights = {}
    for name, start in original.items():
        share = alpha + (1 - alpha) * depths.get(name, 0.0)
        if share == 0.0:
            weights[name] = start
        elif share == 1.0:
            weights[name] = tuned[name]
        else:
            # No fused operation: the same bits on every device.
            weights[name] = start * (1 - share) + tuned[name] * share
    return weights


def linear_depths(encoder: nn.Module, prefix: str = "encoder.") -> dict[str, float]:
    """The depth of each tensor in a block of ``encoder``: from 0 in the first to 1 in the last.

    Early blocks keep what pre-training has taught them, the last ones what fine-tuning has.
    ``prefix``: how the names of the encoder's tensors begin. Raises CarftError for an encoder that
    has fewer than two blocks.
    """
    blocks = encoder_blocks(encoder)
    if len(blocks) < 2:
        raise CarftError(
            f"--layers {LINEAR}: this image encoder is made of {len(blocks)} blocks, expected two "
            f"or more; use --layers {UNIFORM}"
        )
    names = {id(module): name for name, module in encoder.named_modules()}
    return {
        f"{prefix}{names[id(block)]}.{name}": number / (len(blocks) - 1)
        for number, block in enumerate(blocks)
        for name in block.state_dict()
    }


# Soups, Wortsman et al., "Model soups", arXiv 2203.05482; mlfoundations/model-soups, main.py:
#
#     (tuned_1 + ... + tuned_N) / N
def mean(states: Sequence[StateDict]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, added in float64, in order; of others, the first."""
    means = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = sum(state[name].double() for state in states[1:]) + tensor.double()
            tensor = (total / len(states)).to(tensor.dtype)
        means[name] = tensor
    return means


# Model Stock, Jang et al., "Model Stock: All we need is just a few fine-tuned models", arXiv
# 2403.19522, sections 3 and 4. Fine-tuned weights lie about a centre; the point nearest to it on
# the plane of the runs and the original follows from the angle between the runs alone:
#
#     (1 - t) * original + t * mean,  t = N c / (1 + (N - 1) c)
#
# with c the mean cosine, over all pairs of runs, of their displacements from the original.
def model_stock(
    states: Sequence[StateDict], original: StateDict
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of ``original`` moved towards the mean of ``states``, and the ratios t.

    Computed in float64, tensor by tensor. A tensor that no run has moved stays as it is to the bit,
    and has no ratio.
    """
    weights = {}
    ratios = {}
    for name, start in original.items():
        displacements = [(state[name].double() - start.double()).flatten() for state in states]
        if not start.is_floating_point() or not any(map(torch.any, displacements)):
            weights[name] = start
            continue

        ratio = stock_ratio(displacements)
        mean_displacement = torch.stack(displacements).mean(dim=0).view_as(start)
        ratios[name] = ratio
        weights[name] = (start.double() + ratio * mean_displacement).to(start.dtype)
    return weights, ratios


def stock_ratio(displacements: Sequence[Tensor]) -> float:
    """The ratio t of N displacements.

    A negative c counts as 0, as does the cosine with a run that has not moved the tensor.
    """
    cosines = [
        float(torch.nn.functional.cosine_similarity(first, second, dim=0))
        for first, second in itertools.combinations(displacements, 2)
    ]
    mean_cosine = max(0.0, sum(cosines) / len(cosines))
    count = len(displacements)
    return count * mean_cosine / (1 + (count - 1) * mean_cosine)


def fold_head_scale(state: StateDict) -> dict[str, Tensor]:
    """A state dict with the scale of the head in its weights; logits are equal up to rounding."""
    return {
        **state,
        "head.weight": state["head.weight"] * state["head_factor"],
        "head_factor": torch.ones_like(state["head_factor"]),
    }
