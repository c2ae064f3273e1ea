"""The half of our algorithms that predicts: an image encoder, a head, the contexts.

A run that was saved is this half only: it can predict, but not go on training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.method import averages, objective
from domainbed_carft.method.activations import Encoding, encode
from domainbed_carft.method.hosting import HostedAlgorithm
from domainbed_carft.method.lora import LoRA
from domainbed_carft.method.terms import Terms
from domainbed_carft.pictures.clip_input import CLIPInput
from domainbed_carft.pictures.preprocessing import IMAGENET, Normalisation, Preprocessing


class CLIPPredictor(HostedAlgorithm):
    """An image encoder under a head over classes and one over contexts.

    The state dict holds the weights that predict, the context weights and the prompts, but not the
    frozen original: a saved run needs no CLIP to predict again. Where the weights that predict are
    not those that are trained, the latter are in the state of ``predicting``.
    """

    input: CLIPInput
    words: Tensor  # the text of prompts.as_json as uint8
    architecture: Tensor  # open_clip's configuration of the CLIP as uint8; OpenAI's have none
    head_factor: Tensor
    context_weights: Tensor
    logit_scale: Tensor
    predicting: averages.Predicting | None = None
    restored = False

    def register_text(self, name: str, text: str) -> None:
        """Put a text into the state dict, as a buffer of its bytes."""
        encoded = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self.register_buffer(name, encoded.clone())

    def set_up(
        self,
        encoder: nn.Module,
        weights: objective.ZeroShotWeights,
        logit_scale: float,
        preprocessing: Preprocessing,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        """Build what training and predicting need; ``normalisation``: the data's, to undo."""
        self.encoder = encoder
        self.terms: Terms | None = None
        self.lora: LoRA | None = None  # where low-rank factors are trained instead of the encoder
        self.input = CLIPInput(preprocessing, *normalisation)

        num_classes, dim = weights.classes.shape
        self.head = nn.Linear(dim, num_classes)
        self.head.bias.data.zero_()
        is_random = self.hparams["head_init"] == "random" and self.trains_head
        # With the scale folded into it, a random or a probed head would hardly move.
        can_fold = self.trains_encoder and self.trains_head and not is_random
        is_folded = self.hparams["head_scale"] == "folded" and can_fold
        if not is_random:
            self.head.weight.data.copy_(weights.classes * (logit_scale if is_folded else 1.0))

        self.register_buffer("head_factor", torch.tensor(1.0 if is_folded else logit_scale))
        self.register_buffer("context_weights", weights.contexts.clone())
        self.register_buffer("logit_scale", torch.tensor(logit_scale))

        self.encoder.requires_grad_(self.trains_encoder)
        self.head.requires_grad_(self.trains_head)
        self.head.bias.requires_grad_(is_folded)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of pictures (N, 3, H, W) that are normalised as the data set does."""
        weights = self.predicting_weights()
        logits: Tensor = functional_call(self, weights, (x,)) if weights else self.forward(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, K) by the weights that are being trained, not the averaged ones."""
        return self.class_logits(self.features(x))

    def predicting_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights that predict, where they are not those being trained."""
        return self.predicting.weights() if self.predicting else {}

    def features(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of pictures as `predict` takes them."""
        return self.encode(self.input(x)).features

    def encode(self, clip_pictures: Tensor, methods: Sequence[str] = ()) -> Encoding:
        """Features and activations of pictures as CLIP wants them, by the weights being trained."""
        return encode(self.encoder, clip_pictures, self.hparams["amp"] == "bf16", methods)

    def class_logits(self, features: Tensor) -> Tensor:
        """Class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.head.weight, self.head.bias, self.head_factor)

    def context_logits(self, features: Tensor) -> Tensor:
        """Context logits (N, M) of image features (N, D)."""
        scale = objective.context_scale(self.hparams["context_scale"], self.logit_scale)
        return objective.context_logits(features, self.context_weights, scale)

    def train(self, mode: bool = True) -> CLIPPredictor:
        """Train mode, except for batch norm (OpenAI's ResNets), which keeps CLIP's statistics.

        With the statistics of a batch the encoder would differ from the original before the first
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
        """The state dict of the module, with the weights that predict.

        Loaded into an algorithm that goes on training, these do not reach what it averages. To
        predict with a saved state, use `runs.saved.open_run`.
        """
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        weights = self.predicting_weights()
        state.update({prefix + name: tensor for name, tensor in weights.items()})
        return state
