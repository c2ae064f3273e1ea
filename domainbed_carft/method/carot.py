"""What CaRot adds to FLYP: an averaged teacher, and the projection that is held orthogonal.

CaRot, Oh et al., arXiv 2311.01723; MLAI-Yonsei/CaRot, src/models/carot_loss.py and src/args.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method import peer_losses
from domainbed_carft.method.activations import encode

# How much of the teacher stays at an update: at the first step, and from WARM_UP_SHARE of them on.
FIRST_MOMENTUM = 0.05
LAST_MOMENTUM = 0.9
WARM_UP_SHARE = 0.2


def teacher_momentum(step: int, total_steps: int) -> float:
    """How much of the teacher stays at the update after step ``step``, counted from 0."""
    progress = min(1.0, step / (WARM_UP_SHARE * total_steps))
    return FIRST_MOMENTUM + progress * (LAST_MOMENTUM - FIRST_MOMENTUM)


class AveragedTeacher:
    """A moving average of both encoders and of the logarithm of their scale.

    It starts as a copy of them. Not a Module on purpose, as ``FrozenOriginal``: a saved run does
    not need it. The state of a job has it.
    """

    def __init__(self, encoder: nn.Module, text: nn.Module, log_scale: Tensor) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.text = copy.deepcopy(text).eval().requires_grad_(False)
        self.log_scale = log_scale.detach().clone()

    @torch.no_grad()
    def logits(self, pictures: Tensor, tokens: Tensor, bf16: bool) -> Tensor:
        """Logits (N, N) of ``pictures`` (N, 3, R, R) and texts of ``tokens`` (N, L)."""
        features = encode(self.encoder, pictures, bf16).features
        texts = encode(self.text, tokens, bf16).features
        return peer_losses.pair_logits(features, texts, self.log_scale.exp())

    @torch.no_grad()
    def follow(
        self, encoder: nn.Module, text: nn.Module, log_scale: Tensor, momentum: float
    ) -> None:
        """Keep ``momentum`` of itself, and take the rest from the weights being trained."""
        followed = [*encoder.parameters(), *text.parameters(), log_scale]
        averaged = [*self.encoder.parameters(), *self.text.parameters(), self.log_scale]
        for average, weight in zip(averaged, followed, strict=True):
            average.lerp_(weight.detach(), 1 - momentum)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher with the module, to another device say."""
        self.encoder._apply(fn)
        self.text._apply(fn)
        self.log_scale = fn(self.log_scale)

    def state_dict(self) -> dict[str, Any]:
        """The state of both encoders and the logarithm of the scale."""
        return {
            "encoder": self.encoder.state_dict(),
            "text": self.text.state_dict(),
            "log_scale": self.log_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy what `state_dict` returned into the teacher."""
        self.encoder.load_state_dict(state["encoder"])
        self.text.load_state_dict(state["text"])
        self.log_scale.copy_(state["log_scale"])


def visual_projection(encoder: Any) -> Tensor:
    """The projection P (width, D) from an image encoder's last layer into the joint embedding.

    Raises CarftError for an encoder that has none.
    """
    if hasattr(encoder, "attnpool"):  # a ResNet of OpenAI's or open_clip's
        return _transposed_weight([encoder.attnpool.c_proj])
    if isinstance(getattr(encoder, "proj", None), Tensor):  # a ViT of theirs
        projection: Tensor = encoder.proj
        return projection
    # One of timm's ends in open_clip's head, or where that is empty in its own.
    layers = [*getattr(encoder, "head", nn.Module()).children()]
    return _transposed_weight(layers or [getattr(encoder, "trunk", encoder).head])


def _transposed_weight(layers: Sequence[nn.Module]) -> Tensor:
    """The weight of the only linear layer of ``layers``, as (inputs, outputs)."""
    linear_layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear_layers) != 1:
        raise CarftError(
            "carot_orthogonality needs an image encoder that ends in a linear projection; this one "
            f"has {len(linear_layers)} linear layers there. Set it to 0"
        )
    return linear_layers[0].weight.T
