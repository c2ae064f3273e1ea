"""What an image encoder computes on its way: at its beginning and after each quarter of it.

The places of MIRO and LDIFS in a ViT-B/16 (blocks 3, 6, 9, 12), for OpenAI's other encoders the
corresponding ones; the four stages of a ResNet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

FIRST = {"ldifs": ("ln_pre", "avgpool"), "miro": ("conv1", "conv1")}  # in a ViT, in a ResNet


def places(encoder: Any, method: str) -> list[nn.Module]:
    """The modules whose outputs ``method``, one of FIRST, compares, in the order they run."""
    in_vit, in_resnet = FIRST[method]
    if not hasattr(encoder, "transformer"):
        stages = [getattr(encoder, f"layer{number}") for number in range(1, 5)]
        return [getattr(encoder, in_resnet), *stages]
    blocks = encoder.transformer.resblocks
    quarters = [-(-len(blocks) * number // 4) - 1 for number in range(1, 5)]
    return [getattr(encoder, in_vit), *(blocks[index] for index in quarters)]


@contextlib.contextmanager
def recorded(encoder: Any, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of ``modules`` (N, T, C) in float32, once the block has run the encoder."""
    found: list[Tensor] = []
    blocks = {*getattr(getattr(encoder, "transformer", None), "resblocks", ())}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.ndim == 4:  # of a convolution
            output = output.flatten(2).transpose(1, 2)
        # OpenAI's transformer has the tokens in front.
        found.append((output.transpose(0, 1) if module in blocks else output).float())

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
