"""The interface of an algorithm to hosts and to torch: arguments, facts, states and parts.

DomainBed, its forks and this package's harness build, call and read algorithms in different ways.
kebaek/DomainBed prints the parameters of ``classifier``, T3A predicts with ``featurizer`` and
``classifier``, and verylarge_dropout averages ``network``.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from domainbed.algorithms import Algorithm
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import Normalisation
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import averages, job, objective, optim, resolution
from domainbed_carft.method.encoders import FrozenOriginal, encode

Minibatches = Sequence[tuple[Tensor, Tensor]]


class HostedAlgorithm(Algorithm):
    """The `Algorithm` of any host. `CLIPAlgorithm` describes and builds its modules.

    Attributes:
        method_digest: SHA-256 of the user's file with the method, "" for this package's methods.
        method_file: name of that file, "" for this package's methods.
        method_declarations: style and hyperparameters of a user's method, for its records.
    """

    method_digest = ""
    method_file = ""
    method_declarations: ClassVar[Mapping[str, Any]] = {}
    IS_OF_CHECKOUT: ClassVar[bool] = False  # True of the classes that the plugin derives for one

    facts: dict[str, Any]
    input: CLIPInput
    encoder: nn.Module
    normalisation: Normalisation | None = None
    original: FrozenOriginal | None = None
    optimizer: torch.optim.AdamW | None = None
    predicting: averages.PredictionWeights | None = None
    prediction_names: tuple[str, ...] = ()
    restored = False

    def __init__(self, **arguments: Any) -> None:
        """Call the host's constructor with the ``arguments`` that it accepts."""
        names = inspect.signature(Algorithm.__init__).parameters
        super().__init__(**{name: arguments[name] for name in names if name in arguments})
        self.hparams = arguments["hparams"]

        # DomainBed-v2 sets the parts to None, for its subclasses to replace.
        for name in PARTS:
            with contextlib.suppress(AttributeError):
                delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """Return a part that a host uses, unless the host has assigned an attribute of that name.

        Parts are built on access, so that the state dict has no additional keys.
        """
        if name in PARTS and name not in self._modules:
            return PARTS[name](self)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if not self.restored:
                raise
            raise AttributeError(
                f"{error}: a saved run has only what build_for_prediction builds. If prediction "
                f"needs {name}, build it there"
            ) from None

    # Called by hosts and by users' loops

    resolve_hparams = classmethod(resolution.resolve)
    image_format = staticmethod(job.find_preprocessing)

    def recorded_facts(self) -> dict[str, Any]:
        """Return the ``facts``, stored in records and weight files in addition to the hparams."""
        return self.facts

    def note_prediction_names(self) -> None:
        """Set ``prediction_names`` to all names in the state dict at this time."""
        self.prediction_names = tuple(nn.Module.state_dict(self))

    def training_only_names(self) -> list[str]:
        """Return the names in the state dict that prediction does not need, for weights files."""
        return [name for name in self.state_dict() if name not in self.prediction_names]

    @classmethod
    def get_method_facts(cls) -> dict[str, Any]:
        """Return the facts of a user's method for its records, none for this package's methods."""
        names = ("method_digest", "method_file", "method_declarations")
        return {name: getattr(cls, name) for name in names} if cls.method_digest else {}

    def preprocess(self, image: Any) -> Tensor:
        """Return a Pillow image as the tensor that `update` and `predict` expect.

        The image is resized and cropped like the training images of the CLIP model, and normalised
        like the dataset of the algorithm (without a dataset, by ImageNet's mean and standard
        deviation, as in DomainBed). The algorithm itself converts this to CLIP's normalisation, so
        do not normalise again. Nothing is random; augment before or after.

        Args:
            image: a Pillow image of any size and mode.

        Returns:
            Tensor (3, R, R), with R the resolution of the CLIP model.
        """
        preprocessing = self.input.preprocessing
        mean, std = self.normalisation or self.input.data_normalisation()
        plan = ImagePlan(
            size=preprocessing.resolution,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            mean=mean,
            std=std,
        )
        tensor: Tensor = PlanTransform(plan)(image.convert("RGB"))
        return tensor

    @property
    def uses_validation_loss(self) -> bool:  # type: ignore[override]
        """True if `at_checkpoint` needs the validation loss: SWAD ends a segment there."""
        return isinstance(self.predicting, averages.SWAD)

    def at_checkpoint(self, validation_loss: float) -> None:
        """Pass the validation loss of the trained weights, in nats, to SWAD."""
        if isinstance(self.predicting, averages.SWAD):
            self.predicting.at_checkpoint(validation_loss)

    # Called by torch

    def train(self, mode: bool = True) -> HostedAlgorithm:
        """Set the train mode; batch norm (OpenAI's ResNets) keeps CLIP's statistics.

        With the statistics of a batch, the encoder would differ from the original before the first
        step.
        """
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the module's state dict with the weights used for prediction.

        An algorithm that loads it and continues training does not get the averaged weights back.
        To predict with a saved state, use `runs.saved.load_run`.
        """
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        weights = self.prediction_weights()
        state.update({prefix + name: tensor for name, tensor in weights.items()})
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HostedAlgorithm:
        super()._apply(fn, recurse)
        if self.original is not None:
            self.original.apply(fn)
        if self.optimizer is not None:
            optim.fuse(self.optimizer)
        if self.predicting is not None:
            self.predicting.apply(fn)
        return self


def pair_minibatches(minibatches: Minibatches | None, keywords: Mapping[str, Any]) -> Minibatches:
    """Return pairs (x, y): ``minibatches``, or of the lists ``x`` and ``y`` that SWAD passes."""
    if minibatches is not None:
        return [*minibatches]
    if not {"x", "y"} <= keywords.keys():
        raise CarftError(
            f"update was called with the keywords {sorted(keywords) or 'none'}; expected "
            "update(minibatches) with a list of (x, y), or update(x=..., y=...) with two lists"
        )
    return [*zip(keywords["x"], keywords["y"])]


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
