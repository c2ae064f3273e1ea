"""The parts of an algorithm that hosts use: image features, the head, and both in sequence.

kebaek/DomainBed prints the parameters of ``classifier``, T3A predicts with ``featurizer`` and
``classifier``, and verylarge_dropout averages ``network``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from domainbed_carft.method import objective
from domainbed_carft.method.encoders import encode


class Featurizer(nn.Module):
    """The module from images (N, 3, H, W), as for ``predict``, to image features (N, D)."""

    def __init__(self, clip_input: nn.Module, encoder: nn.Module, dim: int, bf16: bool) -> None:
        super().__init__()
        self.input = clip_input
        self.encoder = encoder
        self.n_outputs = dim  # the name in DomainBed's featurizers
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        """Return image features (N, D), not normalised, of images (N, 3, H, W)."""
        return encode(self.encoder, self.input(x), self.bf16).features


class Classifier(nn.Module):
    """The module from image features (N, D) to class logits (N, K)."""

    factor: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, factor: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.register_buffer("factor", factor)

    def forward(self, features: Tensor) -> Tensor:
        """Return class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.weight, self.bias, self.factor)


def build_featurizer(algorithm: Any) -> Featurizer:
    """Return the image encoder of ``algorithm`` with the current weights used for prediction.

    The parameters are the algorithm's, or replacements if other weights predict (averages,
    WiSE-FT). Call it again after a training step.
    """
    weights = algorithm.prediction_weights()
    return Featurizer(
        clip_input=algorithm.input,
        encoder=_replace_weights(algorithm.encoder, "encoder.", weights),
        dim=algorithm.head.weight.shape[1],
        bf16=algorithm.bf16,
    )


def build_classifier(algorithm: Any) -> Classifier:
    """Return the head of ``algorithm`` with the current weights used for prediction.

    The parameters are the algorithm's, or replacements if other weights predict.
    """
    weights = algorithm.prediction_weights()
    head = _replace_weights(algorithm.head, "head.", weights)
    factor = weights.get("head_factor", algorithm.head_factor)
    return Classifier(head.weight, head.bias, factor)


def build_network(algorithm: Any) -> nn.Sequential:
    """Return featurizer and classifier in sequence, from images (N, 3, H, W) to logits (N, K)."""
    return nn.Sequential(build_featurizer(algorithm), build_classifier(algorithm))


# Attribute name in hosts -> function that builds the part of an algorithm.
PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "featurizer": build_featurizer,
    "classifier": build_classifier,
    "network": build_network,
}


def _replace_weights(module: nn.Module, prefix: str, weights: Mapping[str, Tensor]) -> Any:
    """Return ``module``, or a copy with replaced ``weights`` if it has any; no tensor is copied."""
    tensors: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    differs = False

    for name, parameter in module.named_parameters():
        replacement = weights.get(prefix + name)
        tensors[id(parameter)] = parameter
        if replacement is not None:
            tensors[id(parameter)] = nn.Parameter(replacement, requires_grad=False)
            differs = True

    return copy.deepcopy(module, memo=dict(tensors)) if differs else module
