"""What hosts ask of our algorithms beside training and predicting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from domainbed.algorithms import Algorithm
from torch import Tensor, nn

from domainbed_carft.errors import Problem
from domainbed_carft.method import host_arguments, hparams, job_clip, objective
from domainbed_carft.method.activations import encode


class Featurizer(nn.Module):
    """From pictures (N, 3, H, W), as ``predict`` takes them, to image features (N, D)."""

    def __init__(self, clip_input: nn.Module, encoder: nn.Module, dim: int, bf16: bool) -> None:
        super().__init__()
        self.input = clip_input
        self.encoder = encoder
        self.n_outputs = dim  # as DomainBed's featurizers call it
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of pictures (N, 3, H, W)."""
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


def featurizer_of(algorithm: Any) -> Featurizer:
    """The image encoder of ``algorithm`` with the weights that predict now.

    Its parameters are the algorithm's own, or where others predict (averages, WiSE-FT), these. Ask
    again after a training step.
    """
    weights = algorithm.predicting_weights()
    return Featurizer(
        clip_input=algorithm.input,
        encoder=_with_weights(algorithm.encoder, "encoder.", weights),
        dim=algorithm.head.weight.shape[1],
        bf16=algorithm.hparams["amp"] == "bf16",
    )


def classifier_of(algorithm: Any) -> Classifier:
    """The head of ``algorithm`` with the weights that predict now.

    Its parameters are the algorithm's own, or copies of these weights where others are trained.
    """
    weights = algorithm.predicting_weights()
    head = _with_weights(algorithm.head, "head.", weights)
    factor = weights.get("head_factor", algorithm.head_factor)
    return Classifier(head.weight, head.bias, factor)


def _with_weights(module: nn.Module, prefix: str, weights: Mapping[str, Tensor]) -> Any:
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


class HostedAlgorithm(Algorithm):
    """The answers of an algorithm to its host: on its hyperparameters, and on its parts.

    kebaek/DomainBed prints the parameters of ``classifier``, and T3A predicts by its own use of
    ``featurizer`` and ``classifier``. Both are properties, so that a state dict has no more keys.
    """

    wanted_pictures = staticmethod(job_clip.wanted_pictures)
    featurizer = property(featurizer_of)
    classifier = property(classifier_of)

    @classmethod
    def hparam_problems(cls, dataset: str, overrides: Mapping[str, Any]) -> list[Problem]:
        """The problems of ``--hparams``, for hosts that check before they load anything."""
        return host_arguments.hparam_problems(cls.__name__, dataset, overrides)

    @classmethod
    def implied_hparams(
        cls, dataset: str, overrides: Mapping[str, Any], random_seed: int | None
    ) -> dict[str, Any]:
        """The hparams that change by what a user sets: the rate and the batch of "tiny"."""
        return hparams.implied(cls.__name__, dataset, overrides, random_seed)
