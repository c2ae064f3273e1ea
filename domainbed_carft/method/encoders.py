"""Image encoders: features, activations, blocks, and the frozen original.

The blocks of an encoder are those of a ViT of OpenAI, open_clip or timm, or the four stages of a
ResNet.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domainbed_carft.errors import CarftError

# Returns the modules of an encoder whose outputs are compared, in the order in which they run.
Places = Callable[[Any], Sequence[nn.Module]]


class Encoding(NamedTuple):
    """The output of an image encoder for N images."""

    features: Tensor  # (N, D), float32, not normalised
    activations: dict[str, list[Tensor]]  # name -> (N, T, C) of each module, float32


def encode(
    encoder: nn.Module, images: Tensor, bf16: bool, places: Mapping[str, Places] | None = None
) -> Encoding:
    """Encode images that are preprocessed for CLIP.

    Args:
        encoder: the image encoder.
        images: (N, 3, R, R).
        bf16: True to autocast to bfloat16.
        places: name -> function that returns the modules whose outputs are recorded.

    Returns:
        Features (N, D), and the recorded activations by name.
    """
    activations: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as stack:
        for name, find_modules in (places or {}).items():
            hooks = record_activations(encoder, find_modules(encoder))
            activations[name] = stack.enter_context(hooks)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            features: Tensor = encoder(images)
    return Encoding(features.float(), activations)


@contextlib.contextmanager
def record_activations(encoder: Any, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that collects the outputs of ``modules`` when ``encoder`` runs in the block.

    Each is (N, T, C) in float32. The hooks are removed at the end of the block.
    """
    outputs: list[Tensor] = []
    transformer = getattr(encoder, "transformer", None)
    token_first_blocks: set[nn.Module] = set()
    if not getattr(transformer, "batch_first", False):  # OpenAI's models
        token_first_blocks = {*getattr(transformer, "resblocks", ())}

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.ndim == 4:  # of a convolution
            output = output.flatten(2).transpose(1, 2)
        if module in token_first_blocks:
            output = output.transpose(0, 1)
        outputs.append(output.float())

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def get_encoder_blocks(encoder: Any) -> list[nn.Module]:
    """Return the blocks of a ViT or the stages of a ResNet, empty for timm's other encoders."""
    if hasattr(encoder, "layer4"):
        return [getattr(encoder, f"layer{number}") for number in range(1, 5)]
    if hasattr(encoder, "trunk"):
        return [*getattr(encoder.trunk, "blocks", ())]
    return [*encoder.transformer.resblocks]


class FrozenOriginal:
    """The original image encoder: in eval mode, without gradients, computed like the tuned encoder.

    Deliberately not a Module: it must stay out of ``state_dict``, ``parameters`` and ``train``. In
    bf16, large weights are stored as autocast would round them, unless ``keep_weights`` is true.
    """

    def __init__(self, encoder: nn.Module, bf16: bool, keep_weights: bool = False) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.bf16 = bf16
        if bf16 and not keep_weights:
            self._round_large_weights()

    @torch.no_grad()
    def __call__(self, images: Tensor, places: Mapping[str, Places]) -> Encoding:
        """Encode images (N, 3, R, R) and record the activations at ``places``, like `encode`."""
        return encode(self.encoder, images, self.bf16, places)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the encoder, for example to another device."""
        self.encoder._apply(fn)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: a resumed job rebuilds the original from the CLIP checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, because the state is empty."""

    def _round_large_weights(self) -> None:
        for module in self.encoder.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.bfloat16()


def configure_blocks(
    encoder: nn.Module, original: FrozenOriginal | None, hparams: Mapping[str, Any]
) -> None:
    """Compile and checkpoint the blocks of ``encoder`` according to the hyperparameters.

    ``compile_blocks`` also compiles the blocks of the ``original``. ``checkpoint_blocks`` keeps
    only the inputs of each block, and computes the rest again for the gradients.

    Raises CarftError for an encoder without blocks, and for a torch version that is too old.
    """
    requested = [name for name in ("compile_blocks", "checkpoint_blocks") if hparams[name]]
    blocks = get_encoder_blocks(encoder)
    if requested and not blocks:
        raise CarftError(
            f"{requested[0]} is True, but this timm image encoder has no blocks; set "
            f"{requested[0]} to False"
        )

    if hparams["compile_blocks"]:
        original_blocks = get_encoder_blocks(original.encoder) if original else []
        _compile([*blocks, *original_blocks])
    if hparams["checkpoint_blocks"]:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _compile(blocks: list[nn.Module]) -> None:
    compiled = {type(block): torch.compile(type(block).forward) for block in blocks}
    for block in blocks:
        # As a bound method, a copy of the module computes with the copied weights.
        block.forward = types.MethodType(compiled[type(block)], block)
