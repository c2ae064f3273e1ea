"""Formulas that merge several state dicts into one: WiSE-FT and soups."""

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
    """Return weights between two state dicts, with the names of ``original``.

    Args:
        original: the weights at alpha 0.
        tuned: the weights at alpha 1.
        alpha: from 0 to 1; 0 and 1 return the given tensors themselves.
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
    """Return the mean of each floating-point tensor, summed in float64 in the given order.

    Other tensors are taken from the first state dict.
    """
    means = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = sum(state[name].double() for state in states[1:]) + tensor.double()
            tensor = (total / len(states)).to(tensor.dtype)
        means[name] = tensor
    return means


def fold_head_scale(state: StateDict) -> dict[str, Tensor]:
    """Multiply the head's weights by its scale; logits are equal up to rounding."""
    return {
        **state,
        "head.weight": state["head.weight"] * state["head_factor"],
        "head_factor": torch.ones_like(state["head_factor"]),
    }
