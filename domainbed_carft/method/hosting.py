"""What hosts ask of our algorithms beside training and predicting."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.algorithms import Algorithm
from torch import Tensor, nn

from domainbed_carft.errors import Problem, raise_for
from domainbed_carft.method import averages, hparam_checks, hparams, job_facts, objective
from domainbed_carft.method.activations import encode
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.method.resolution import resolve
from domainbed_carft.text import printable


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


def network_of(algorithm: Any) -> nn.Sequential:
    """The featurizer and the classifier of ``algorithm``: from pictures to class logits (N, K)."""
    return nn.Sequential(featurizer_of(algorithm), classifier_of(algorithm))


# What hosts call the parts of an algorithm -> the function that makes it.
PARTS = {"featurizer": featurizer_of, "classifier": classifier_of, "network": network_of}


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

    kebaek/DomainBed prints the parameters of ``classifier``, T3A predicts by its own use of
    ``featurizer`` and ``classifier``, and verylarge_dropout averages ``network``. These parts are
    made when a host asks for one, so that a state dict has no more keys. What a host assigns by
    such a name takes its place.
    """

    # The hparams that weight a term of the loss; None: no terms, and the drift is not measured.
    term_weights: tuple[str, ...] | None = ()
    trains_encoder = True
    trains_head = True
    # The scale of LoRA, for one, which was another before it could be chosen.
    EARLIER_HPARAMS = hparams.EARLIER_VALUES
    wanted_pictures = staticmethod(job_facts.wanted_pictures)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Any,
        **host_arguments: Any,
    ) -> None:
        """Call the host's constructor with those of these arguments that it takes.

        ``host_arguments``: what a fork passes beyond upstream's four.
        """
        arguments = {
            "input_shape": input_shape,
            "num_classes": num_classes,
            "num_domains": num_domains,
            "hparams": hparams,
            **host_arguments,
        }
        names = inspect.signature(Algorithm.__init__).parameters
        super().__init__(**{name: arguments[name] for name in names if name in arguments})

        # DomainBed-v2 sets them to None, for its subclasses to replace.
        for name in PARTS:
            with contextlib.suppress(AttributeError):
                delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """A part of the algorithm, unless the host has assigned something by this name."""
        if name in PARTS and name not in self._modules:
            return PARTS[name](self)
        return super().__getattr__(name)

    @classmethod
    def hparam_problems(cls, dataset: str, overrides: Mapping[str, Any]) -> list[Problem]:
        """The problems of ``--hparams``, for hosts that check before they load anything."""
        return hparam_checks.hparam_problems(cls.__name__, dataset, overrides)

    @classmethod
    def implied_hparams(
        cls, dataset: str, overrides: Mapping[str, Any], random_seed: int | None
    ) -> dict[str, Any]:
        """The hparams that change by what a user sets: the rate and the batch of "tiny"."""
        return hparams.implied(cls.__name__, dataset, overrides, random_seed)

    @classmethod
    def resolve_hparams(
        cls,
        input_shape: Sequence[int],
        num_classes: int,
        hparams: Mapping[str, Any],
        steps: int | None,
    ) -> dict[str, Any]:
        """All hparams of a job, as its records hold them, before anything is built.

        ``hparams``: those chosen, whose values are valid, in the object that the data set was built
        with; it stays as it is. ``input_shape``: (3, H, W). ``steps``: that the job trains, None if
        unknown.

        Prints what the job found. Raises CarftError for pictures not in RGB, for broken data, for
        classes without names, and where the job cannot have what the hparams demand.
        """
        raise_for(hparam_checks.shape_problems(input_shape))
        facts = job_facts.find_facts(hparams, num_classes, cls.has_kl(hparams))
        checks_data = hparams["data_edition"] != UNCHECKED
        print(*map(printable, job_facts.describe(facts, checks_data)), sep="\n")

        complete = resolve(dict(hparams), facts)
        job_facts.remember(facts, hparams, complete)
        if complete["average"] == "beta" and (cls.trains_encoder or cls.trains_head):
            averages.warn_of_cut_average(steps, complete["total_steps"])
        return complete

    @classmethod
    def has_kl(cls, hparams: Mapping[str, Any]) -> bool:
        """Whether the loss has CAR-FT's term with these ``hparams``."""
        return "kl_weight" in (cls.term_weights or ()) and hparams["kl_weight"] > 0
