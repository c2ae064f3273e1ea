"""An algorithm taken apart by a host: image features, the head over them, and both in a row.

kebaek/DomainBed prints the parameters of ``classifier``, T3A predicts by its own use of
``featurizer`` and ``classifier``, and verylarge_dropout averages ``network``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from domainbed_carft.method import objective
from domainbed_carft.method.encoders import encode


class Featurizer(nn.Module):
    """From images (N, 3, H, W), as ``predict`` takes them, to image features (N, D)."""

    def __init__(self, clip_input: nn.Module, encoder: nn.Module, dim: int, bf16: bool) -> None:
        super().__init__()
        self.input = clip_input
        self.encoder = encoder
        self.n_outputs = dim  # as DomainBed's featurizers call it
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of images (N, 3, H, W)."""
        return encode(self.encoder, self.input(x), self.bf16).features


class Classifier(nn.Module):
    """From image features (N, D) to class logits (N, K)."""

    factor: Tensor

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, factor: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.register_buffer("factor", factor)

    def forward(self, features: Tensor) -> Tensor:
        """Class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.weight, self.bias, self.factor)


def build_featurizer(algorithm: Any) -> Featurizer:
    """The image encoder of ``algorithm`` with the weights that predict now.

    Its parameters are the algorithm's own, or where others predict (averages, WiSE-FT), these. Ask
    again after a training step.
    """
    weights = algorithm.prediction_weights()
    return Featurizer(
        clip_input=algorithm.input,
        encoder=_replace_weights(algorithm.encoder, "encoder.", weights),
        dim=algorithm.head.weight.shape[1],
        bf16=algorithm.bf16,
    )


def build_classifier(algorithm: Any) -> Classifier:
    """The head of ``algorithm`` with the weights that predict now.

    Its parameters are the algorithm's own, or copies of these weights where others are trained.
    """
    weights = algorithm.prediction_weights()
    head = _replace_weights(algorithm.head, "head.", weights)
    factor = weights.get("head_factor", algorithm.head_factor)
    return Classifier(head.weight, head.bias, factor)


def build_network(algorithm: Any) -> nn.Sequential:
    """The featurizer and the classifier of ``algorithm``: from images to class logits (N, K)."""
    return nn.Sequential(build_featurizer(algorithm), build_classifier(algorithm))


# What hosts call the parts of an algorithm -> the function that makes it.
PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "featurizer": build_featurizer,
    "classifier": build_classifier,
    "network": build_network,
}


def _replace_weights(module: nn.Module, prefix: str, weights: Mapping[str, Tensor]) -> Any:
    """``module``, or a copy with its ``weights`` where these are others; no tensor is copied."""
    tensors: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    differs = False

    for name, parameter in module.named_parameters():
        replacement = weights.get(prefix + name)
        tensors[id(parameter)] = parameter
        if replacement is not None:
            tensors[id(parameter)] = nn.Parameter(replacement, requires_grad=False)
            differs = True

    return copy.deepcopy(module, memo=dict(tensors)) if differs else module
