"""What an image encoder computes on its way: features, and the activations that methods compare.

That is at its beginning and after each quarter of it: the places of MIRO and LDIFS in a ViT-B/16
(blocks 3, 6, 9, 12), for other encoders of OpenAI's and open_clip's and for timm's ViTs the
corresponding ones; the four stages of a ResNet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.blocks import encoder_blocks

Activations = dict[str, list[Tensor]]  # method -> activations (N, T, C) at its places
# The first module that a method compares in a ViT, and in a ResNet, whose stem ends in avgpool.
FIRST_MODULES = {"ldifs": ("ln_pre", "avgpool"), "miro": ("conv1", "avgpool")}


def compared_modules(encoder: Any, method: str) -> list[nn.Module]:
    """The modules whose outputs ``method``, one of FIRST_MODULES, compares, in the order they run.

    Raises CarftError for an encoder of timm's that is no ViT.
    """
    in_vit, in_resnet = FIRST_MODULES[method]
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, in_resnet), *encoder_blocks(encoder)]
    blocks = encoder_blocks(encoder)
    if hasattr(encoder, "trunk"):
        trunk = encoder.trunk
        if not blocks or not all(hasattr(trunk, part) for part in ("patch_embed", "norm_pre")):
            raise CarftError(
                f"{method}_weight needs an image encoder of blocks, and {type(trunk).__name__} of "
                "timm has none; choose another clip_backbone or algorithm"
            )
        first = trunk.norm_pre if in_vit == "ln_pre" else trunk.patch_embed.proj
    else:
        first = getattr(encoder, in_vit)
    quarters = [-(-len(blocks) * number // 4) - 1 for number in range(1, 5)]
    return [first, *(blocks[index] for index in quarters)]


@contextlib.contextmanager
def record_activations(encoder: Any, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of ``modules`` (N, T, C) in float32, once the block has run the encoder."""
    found: list[Tensor] = []
    transformer = getattr(encoder, "transformer", None)
    turned = not getattr(transformer, "batch_first", False)  # OpenAI's has the tokens in front
    blocks = {*getattr(transformer, "resblocks", ())} if turned else set()

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.ndim == 4:  # of a convolution
            output = output.flatten(2).transpose(1, 2)
        found.append((output.transpose(0, 1) if module in blocks else output).float())

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def encode(
    encoder: nn.Module, pictures: Tensor, bf16: bool, methods: Sequence[str] = ()
) -> tuple[Tensor, Activations]:
    """Image features (N, D), float32 and not normalised, of pictures as CLIP wants them.

    Also the activations that each of ``methods``, keys of FIRST_MODULES, compares.
    """
    seen: Activations = {}
    with contextlib.ExitStack() as stack:
        for method in methods:
            seen[method] = stack.enter_context(
                record_activations(encoder, compared_modules(encoder, method))
            )
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=bf16):
            features: Tensor = encoder(pictures)
    return features.float(), seen
