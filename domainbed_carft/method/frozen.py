"""The original image encoder, kept as it was for the context distribution to be compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Frozen:
    """The original image encoder: eval mode, no gradients, in inference precision.

    Not a Module on purpose: it must stay out of ``state_dict``, ``parameters`` and ``train``.
    """

    def __init__(self, encoder: nn.Module, precision: str) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.bf16 = precision == "bf16"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features: Tensor = self.encoder(pictures)
        return features.float()

    def apply_to(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.encoder._apply(fn)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a run that goes on makes it anew from CLIP's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to do."""
