"""The frozen original, what an image encoder computes on its way, and how its blocks compute it.

That is at its beginning and after each quarter of it: the places of MIRO and LDIFS in a ViT-B/16
(blocks 3, 6, 9, 12), for other encoders of OpenAI's and open_clip's and for timm's ViTs the
corresponding ones; the four stages of a ResNet.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domainbed_carft.errors import CarftError

Seen = dict[str, list[Tensor]]  # method -> activations (N, T, C) at its places
# The first module that a method compares in a ViT, and in a ResNet, whose stem ends in avgpool.
FIRST = {"ldifs": ("ln_pre", "avgpool"), "miro": ("conv1", "avgpool")}


def blocks_of(encoder: Any) -> list[nn.Module]:
    """The blocks of a ViT, the stages of a ResNet; empty for others of timm's."""
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, f"layer{number}") for number in range(1, 5)]
    if hasattr(encoder, "trunk"):
        return [*getattr(encoder.trunk, "blocks", ())]
    return [*encoder.transformer.resblocks]


def places(encoder: Any, method: str) -> list[nn.Module]:
    """The modules whose outputs ``method``, one of FIRST, compares, in the order they run.

    Raises CarftError for an encoder of timm's that is no ViT.
    """
    in_vit, in_resnet = FIRST[method]
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, in_resnet), *blocks_of(encoder)]
    blocks = blocks_of(encoder)
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
def recorded(encoder: Any, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
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


class Frozen:
    """The original image encoder: eval mode, no gradients, in inference precision.

    Deliberately not a Module: it must stay out of ``state_dict``, ``parameters`` and ``train``. In
    bf16 the large weights are stored as autocast would round them, unless they are to be ``exact``.
    """

    def __init__(self, encoder: nn.Module, precision: str, exact: bool = False) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.bf16 = precision == "bf16"
        for module in self.encoder.modules() if self.bf16 and not exact else ():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.bfloat16()

    @torch.no_grad()
    def __call__(self, pictures: Tensor, methods: Sequence[str] = ()) -> tuple[Tensor, Seen]:
        return encode(self.encoder, pictures, self.bf16, methods)


def encode(
    encoder: nn.Module, pictures: Tensor, bf16: bool, methods: Sequence[str] = ()
) -> tuple[Tensor, Seen]:
    """Image features (N, D), float32 and not normalised, of pictures as CLIP wants them.

    Also the activations that each of ``methods``, keys of FIRST, compares.
    """
    seen: Seen = {}
    with contextlib.ExitStack() as stack:
        for method in methods:
            seen[method] = stack.enter_context(recorded(encoder, places(encoder, method)))
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=bf16):
            features: Tensor = encoder(pictures)
    return features.float(), seen


def arrange(encoder: nn.Module, original: Any, hparams: Mapping[str, Any]) -> None:
    """Have the blocks computed as ``compile_blocks`` (also ``original``'s) and
    ``checkpoint_blocks`` (kept is only what goes into each) ask for.

    Raises CarftError for an encoder that is not made of blocks, and for a torch that is too old.
    """
    asked = [name for name in ("compile_blocks", "checkpoint_blocks") if hparams[name]]
    if asked and not blocks_of(encoder):
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
        blocks = [*blocks_of(encoder), *(blocks_of(original.encoder) if original else ())]
        compiled = {type(block): torch.compile(type(block).forward) for block in blocks}
        for block in blocks:
            # A method, so that a copy of the module computes with its own weights.
            block.forward = types.MethodType(compiled[type(block)], block)
    if "checkpoint_blocks" in asked:
        for block in blocks_of(encoder):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
