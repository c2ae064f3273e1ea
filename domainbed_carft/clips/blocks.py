"""The blocks that an image encoder is made of, and how they are computed in less memory."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from domainbed_carft.errors import CarftError


def blocks_of(encoder: Any) -> list[nn.Module]:
    """The blocks of a ViT, the stages of a ResNet; empty for others of timm's."""
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, f"layer{number}") for number in range(1, 5)]
    if hasattr(encoder, "trunk"):
        return [*getattr(encoder.trunk, "blocks", ())]
    return [*encoder.transformer.resblocks]


def checkpoint_blocks(encoder: nn.Module) -> None:
    """Have the encoder keep only what goes into each block, and compute it anew for gradients.

    Raises CarftError for an encoder that is not made of blocks.
    """
    if not (blocks := blocks_of(encoder)):
        raise CarftError(
            "checkpoint_blocks is True, but this image encoder of timm's has no blocks; set it to "
            "False, and micro_batch to fewer pictures"
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
