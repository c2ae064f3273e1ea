"""How far each layer moves from the original CLIP to a run: all layers alike, or late ones further.

LiNeS, Wang et al., arXiv 2410.17146; wang-kee/LiNeS at 43a7bdd, src/eval/eval.py: the early blocks
keep what pre-training has taught them, the last ones what fine-tuning has. Its scale of block l of
L is a + b (l - 1) / (L - 1), and a outside of the blocks. Here a + b is 1, so that the last block
is the run's, and a is the alpha of WiSE-FT.
"""

from __future__ import annotations

from torch import nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.encoders import encoder_blocks

UNIFORM = "uniform"
LINEAR = "linear"
LAYERS = (UNIFORM, LINEAR)


def depths(encoder: nn.Module, layers: str) -> dict[str, float]:
    """The depth of each tensor of ``encoder``: 0 moves by alpha alone, 1 all the way to the run.

    ``layers`` is one of LAYERS. Uniform layers have depth 0. Of linear ones the first block has
    depth 0, the last block depth 1, and the blocks between grow linearly; all outside of the blocks
    has depth 0. The keys are those of the encoder's state dict.

    Raises CarftError for linear layers of an encoder that has fewer than two blocks.
    """
    names = [*encoder.state_dict()]
    if layers == UNIFORM:
        return dict.fromkeys(names, 0.0)

    blocks = encoder_blocks(encoder)
    if len(blocks) < 2:
        raise CarftError(
            f"--layers {LINEAR}: this image encoder is made of {len(blocks)} blocks, expected two "
            f"or more; use --layers {UNIFORM}"
        )
    block_numbers = {id(block): number for number, block in enumerate(blocks)}
    prefixes = {
        f"{name}.": block_numbers[id(module)] / (len(blocks) - 1)
        for name, module in encoder.named_modules()
        if id(module) in block_numbers
    }
    return {name: _depth(name, prefixes) for name in names}


def _depth(name: str, block_depths: dict[str, float]) -> float:
    """The depth of one tensor; ``block_depths``: the prefix of a block's names -> its depth."""
    for prefix, depth in block_depths.items():
        if name.startswith(prefix):
            return depth
    return 0.0
