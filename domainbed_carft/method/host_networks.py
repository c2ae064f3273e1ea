"""The image encoder of a CLIP model as the featurizer of a host's algorithm, and its classifier.

The algorithms of DomainBed build their networks by two functions, ``networks.Featurizer`` and
``networks.Classifier``, for which the plugin substitutes these.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.method import objective
from domainbed_carft.method.encoders import encode
from domainbed_carft.method.job import JobFacts
from domainbed_carft.method.prompts import Prompts


@dataclass(eq=False)
class ZeroShotHead:
    """The text features for the classifier of an algorithm, which has to be built before a step.

    Attributes:
        algorithm: name of the algorithm, for messages.
        weight: (K, D), CLIP's logit scale times the unit text features of the classes.
        job_error: error that ends a job of the host.
        is_used: True if a classifier starts from the weight.
    """

    algorithm: str
    weight: Tensor
    job_error: type[CarftError]
    is_used: bool = False

    def __deepcopy__(self, memo: Any) -> ZeroShotHead:
        """Return the same object, so that a later classifier counts for copies of a featurizer."""
        return self

    def fill(self, classifier: nn.Module, in_features: int, out_features: int) -> None:
        """Copy the text features to the first classifier from features to classes.

        Raises CarftError if it has hidden layers.
        """
        if self.is_used or (out_features, in_features) != tuple(self.weight.shape):
            return
        if not isinstance(classifier, nn.Linear) or classifier.bias is None:
            raise CarftError(
                f"clip_head is 'zero-shot', but {self.algorithm} has a nonlinear classifier, so "
                "that it cannot start from text features. Set clip_head to 'random', or "
                "nonlinear_classifier to false if it is true"
            )
        with torch.no_grad():
            classifier.weight.copy_(self.weight)
            classifier.bias.zero_()
        self.is_used = True

    def require_used(self) -> None:
        """Raise CarftError if no classifier starts from the text features."""
        if self.is_used:
            return
        classes, dim = self.weight.shape
        raise self.job_error(
            f"clip_head is 'zero-shot', but {self.algorithm} has built no classifier from "
            f"{dim} features to {classes} classes by networks.Classifier, so its classifier would "
            "be random. Set clip_head to 'random', or choose another algorithm"
        )


class CLIPFeaturizer(nn.Module):
    """The image encoder of a CLIP model, from images (N, 3, H, W) to features (N, D).

    Images have the dataset's normalisation and any size. All parameters are trained, in float32.
    Batch norm (OpenAI's ResNets) keeps CLIP's statistics.

    Args:
        clip_input: converts the images to the input of the encoder.
        encoder: the image encoder.
        dim: D.
        head: text features for the classifier. With them, features have length 1.
        facts: facts of the job, as in its records.

    Attributes:
        n_outputs: D, under the name in DomainBed's featurizers.
        activation: module applied to the features, which hosts replace.
    """

    def __init__(
        self,
        clip_input: CLIPInput,
        encoder: nn.Module,
        dim: int,
        head: ZeroShotHead | None,
        facts: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.input = clip_input
        self.encoder = encoder
        self.n_outputs = dim
        self.head = head
        self.facts = facts
        self.activation = nn.Identity()
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, D), with a zero-shot classifier of length 1.

        Raises CarftError if no classifier starts from the text features.
        """
        features = encode(self.encoder, self.input(x), bf16=False).features
        if self.head is not None:
            self.head.require_used()
            features = F.normalize(features, dim=-1)
        activated: Tensor = self.activation(features)
        return activated

    def train(self, mode: bool = True) -> CLIPFeaturizer:
        """Set the train mode, except that batch norm remains in the evaluation mode."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@dataclass(frozen=True, eq=False)
class HostNetwork:
    """The featurizers of an algorithm of the host, of which some build several.

    Attributes:
        facts: the facts of the job.
        head: text features for the classifier; None for a random classifier.
    """

    facts: JobFacts
    encoder: LoadedEncoder
    head: ZeroShotHead | None

    def build_featurizer(self) -> CLIPFeaturizer:
        """Return a featurizer with the weights of the CLIP checkpoint.

        Draws no random numbers.
        """
        return CLIPFeaturizer(
            clip_input=CLIPInput(self.encoder.preprocessing, *self.facts.normalisation),
            encoder=copy.deepcopy(self.encoder.module),
            dim=self.encoder.dim,
            head=self.head,
            facts=self.facts.as_record(),
        )


def build_network(
    algorithm: str, hparams: Mapping[str, Any], facts: JobFacts, job_error: type[CarftError]
) -> HostNetwork:
    """Load the CLIP model of an algorithm of the host.

    Args:
        algorithm: name of the algorithm, for messages.
        hparams: with ``clip_backbone``.
        facts: the facts of the job.
        job_error: error of a head that no classifier uses.

    Raises:
        CarftError: as `backbone.load`.
    """
    words = Prompts(contexts=tuple(facts.prompts.contexts), classes=tuple(facts.prompts.classes))
    encoder = _load_encoder(hparams["clip_backbone"], facts.clip.digest, words)
    head = None if encoder.head is None else ZeroShotHead(algorithm, encoder.head, job_error)
    return HostNetwork(facts, encoder, head)


class LoadedEncoder(NamedTuple):
    """The image encoder of a CLIP model, and the zero-shot head of prompts."""

    module: nn.Module  # copied for each featurizer
    dim: int  # D
    preprocessing: Preprocessing
    head: Tensor | None  # (K, D) with CLIP's logit scale


# Fish builds a featurizer at every step.
@functools.lru_cache(maxsize=1)
def _load_encoder(name: str, digest: str, words: Prompts) -> LoadedEncoder:
    """Load a CLIP model once per process; ``digest`` is the SHA-256 of its checkpoint."""
    # Loading the modules must not advance the random generators of the job.
    with torch.random.fork_rng(devices=[]):
        clip_model = backbone.load(name)
    head = None
    if words.classes:
        text_features = backbone.encode_prompts(clip_model, words.by_context)
        head = objective.zero_shot_weights(text_features).classes * clip_model.logit_scale

    encoder = clip_model.model.visual.requires_grad_(True)
    _drop_integers(encoder)
    return LoadedEncoder(encoder, clip_model.dim, clip_model.preprocessing, head)


def _drop_integers(encoder: nn.Module) -> None:
    """Leave only floating-point tensors in the state dict, because Fish multiplies it.

    Batch norms count their batches as a float, because torch restores the count from any state
    dict. Other buffers are index tables, which an encoder computes when it is built.
    """
    for module in encoder.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                continue
            if isinstance(module, nn.BatchNorm2d):
                module.register_buffer(name, buffer.float())
            else:
                module._non_persistent_buffers_set.add(name)
