"""Weights made of other weights: WiSE-FT and soups, from state dicts to one.

`wise_ft` and `soup` apply these formulas to runs, measure the results and write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


# WiSE-FT, Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903:
#
#     (1 - alpha) * original + alpha * tuned
@torch.no_grad()
def interpolate(original: StateDict, tuned: StateDict, alpha: float) -> dict[str, Tensor]:
    """The weights between ``original`` (alpha 0) and ``tuned`` (alpha 1), under the same names.

    Of alphas 0 and 1 these are the very tensors that were given.
    """
    if alpha == 0.0:
        return dict(original)
    if alpha == 1.0:
        return {name: tuned[name] for name in original}
    # No fused operation: the same bits on every device.
    return {name: start * (1 - alpha) + tuned[name] * alpha for name, start in original.items()}


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


def fold_head_scale(state: StateDict) -> dict[str, Tensor]:
    """A state dict with the scale of the head in its weights; logits are equal up to rounding."""
    return {
        **state,
        "head.weight": state["head.weight"] * state["head_factor"],
        "head_factor": torch.ones_like(state["head_factor"]),
    }
