"""The image encoder that training starts from, frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from domainbed_carft.method.activations import Encoding, encode


class FrozenOriginal:
    """The original image encoder: eval mode, no gradients, in inference precision.

    Deliberately not a Module: it must stay out of ``state_dict``, ``parameters`` and ``train``. In
    bf16 the large weights are stored as autocast would round them, unless ``keep_weights`` is true.
    """

    def __init__(self, encoder: nn.Module, precision: str, keep_weights: bool = False) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.bf16 = precision == "bf16"
        if self.bf16 and not keep_weights:
            self._round_large_weights()

    @torch.no_grad()
    def __call__(self, pictures: Tensor, methods: Sequence[str] = ()) -> Encoding:
        """The features of ``pictures``, and the activations for ``methods``, as `encode`."""
        return encode(self.encoder, pictures, self.bf16, methods)

    def _round_large_weights(self) -> None:
        for module in self.encoder.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.bfloat16()
