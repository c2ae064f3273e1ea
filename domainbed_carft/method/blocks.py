"""The blocks of an image encoder, and how they are computed: compiled, or checkpointed."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from domainbed_carft.errors import CarftError


def encoder_blocks(encoder: Any) -> list[nn.Module]:
    """The blocks of a ViT, the stages of a ResNet; empty for others of timm's."""
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, f"layer{number}") for number in range(1, 5)]
    if hasattr(encoder, "trunk"):
        return [*getattr(encoder.trunk, "blocks", ())]
    return [*encoder.transformer.resblocks]


def configure_blocks(encoder: nn.Module, original: Any, hparams: Mapping[str, Any]) -> None:
    """Have the blocks computed as ``compile_blocks`` (also ``original``'s) and
    ``checkpoint_blocks`` (kept is only what goes into each) ask for.

    Raises CarftError for an encoder that is not made of blocks, and for a torch that is too old.
    """
    asked = [name for name in ("compile_blocks", "checkpoint_blocks") if hparams[name]]
    if asked and not encoder_blocks(encoder):
        raise CarftError(
            f"{asked[0]} is True, but this image encoder of timm's has no blocks; set it to False"
        )
    if "compile_blocks" in asked:
        # Older ones go on with the weights of the first call, where others take their place.
        if torch.__version__ < "2.5":
            raise CarftError(
                "compile_blocks is True, which needs torch 2.5 or newer, and this is "
                f"{torch.__version__}; set it to False"
            )
        blocks = [*encoder_blocks(encoder), *(encoder_blocks(original.encoder) if original else ())]
        compiled = {type(block): torch.compile(type(block).forward) for block in blocks}
        for block in blocks:
            # A method, so that a copy of the module computes with its own weights.
            block.forward = types.MethodType(compiled[type(block)], block)
    if "checkpoint_blocks" in asked:
        for block in encoder_blocks(encoder):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
