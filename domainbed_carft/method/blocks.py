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

# An older torch goes on with the weights of the first call, where averages take their place.
COMPILING_TORCH = "2.5"


def encoder_blocks(encoder: Any) -> list[nn.Module]:
    """The blocks of a ViT, the stages of a ResNet; empty for others of timm's."""
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, f"layer{number}") for number in range(1, 5)]
    if hasattr(encoder, "trunk"):
        return [*getattr(encoder.trunk, "blocks", ())]
    return [*encoder.transformer.resblocks]


def configure_blocks(
    encoder: nn.Module, original_encoder: nn.Module | None, hparams: Mapping[str, Any]
) -> None:
    """Compile and checkpoint the blocks of ``encoder``, as the hyperparameters say.

    ``compile_blocks`` also compiles those of the ``original_encoder``. ``checkpoint_blocks`` keeps
    only what goes into each block, and computes the rest again for the gradients.

    Raises CarftError for an encoder that is not made of blocks, and for a torch that is too old.
    """
    requested = [name for name in ("compile_blocks", "checkpoint_blocks") if hparams[name]]
    blocks = encoder_blocks(encoder)
    if requested and not blocks:
        raise CarftError(
            f"{requested[0]} is True, but this image encoder of timm's has no blocks; set it to "
            "False"
        )

    if hparams["compile_blocks"]:
        original_blocks = encoder_blocks(original_encoder) if original_encoder is not None else []
        _compile([*blocks, *original_blocks])
    if hparams["checkpoint_blocks"]:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _compile(blocks: list[nn.Module]) -> None:
    if torch.__version__ < COMPILING_TORCH:
        raise CarftError(
            f"compile_blocks is True, which needs torch {COMPILING_TORCH} or newer, and this is "
            f"{torch.__version__}; set it to False"
        )

    compiled = {type(block): torch.compile(type(block).forward) for block in blocks}
    for block in blocks:
        # A method, so that a copy of the module computes with its own weights.
        block.forward = types.MethodType(compiled[type(block)], block)
