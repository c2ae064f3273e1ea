"""Image features, and the activations on the way to them that MIRO and LDIFS compare.

Activations are compared at the beginning of an encoder and after each quarter of it. In a ViT-B/16
these are the modules of MIRO and LDIFS (blocks 3, 6, 9, 12), in other ViTs of OpenAI's, open_clip's
and timm's the corresponding ones, and in a ResNet the four stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.blocks import encoder_blocks

QUARTERS = 4
# The first module that a method compares in a ViT, and in a ResNet, whose stem ends in avgpool.
FIRST_MODULES = {"ldifs": ("ln_pre", "avgpool"), "miro": ("conv1", "avgpool")}
_TIMM_VIT_PARTS = ("patch_embed", "norm_pre")


class Encoding(NamedTuple):
    """What an image encoder computes from N pictures."""

    features: Tensor  # (N, D), float32, not normalised
    activations: dict[str, list[Tensor]]  # method -> (N, T, C) of each of its modules, float32


def encode(
    encoder: nn.Module, pictures: Tensor, bf16: bool, methods: Sequence[str] = ()
) -> Encoding:
    """Encode ``pictures`` (N, 3, R, R), which are as CLIP wants them.

    ``bf16``: whether to autocast. ``methods``: those of FIRST_MODULES whose activations to return.
    """
    activations: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as stack:
        for method in methods:
            hooks = record_activations(encoder, compared_modules(encoder, method))
            activations[method] = stack.enter_context(hooks)
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=bf16):
            features: Tensor = encoder(pictures)
    return Encoding(features.float(), activations)


def compared_modules(encoder: Any, method: str) -> list[nn.Module]:
    """The modules whose outputs ``method``, one of FIRST_MODULES, compares, in the order they run.

    Raises CarftError for an encoder of timm's that is not a ViT.
    """
    blocks = encoder_blocks(encoder)
    vit_name, resnet_name = FIRST_MODULES[method]
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, resnet_name), *blocks]

    if hasattr(encoder, "trunk"):
        trunk = encoder.trunk
        if not blocks or not all(hasattr(trunk, part) for part in _TIMM_VIT_PARTS):
            raise CarftError(
                f"{method}_weight needs an image encoder of blocks, and {type(trunk).__name__} of "
                "timm has none; choose another clip_backbone or algorithm"
            )
        first = trunk.norm_pre if vit_name == "ln_pre" else trunk.patch_embed.proj
    else:
        first = getattr(encoder, vit_name)

    quarter_ends = [-(-len(blocks) * quarter // QUARTERS) for quarter in range(1, QUARTERS + 1)]
    return [first, *(blocks[end - 1] for end in quarter_ends)]


@contextlib.contextmanager
def record_activations(encoder: Any, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that fills with the outputs of ``modules`` when ``encoder`` runs in the block.

    Each is (N, T, C) in float32. The hooks are removed when the block ends.
    """
    outputs: list[Tensor] = []
    transformer = getattr(encoder, "transformer", None)
    tokens_come_first = not getattr(transformer, "batch_first", False)  # as in OpenAI's
    transposed = {*getattr(transformer, "resblocks", ())} if tokens_come_first else set()

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.ndim == 4:  # of a convolution
            output = output.flatten(2).transpose(1, 2)
        outputs.append((output.transpose(0, 1) if module in transposed else output).float())

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
