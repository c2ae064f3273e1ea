"""Low-rank adaptation (LoRA) of the image encoder's queries, keys and values.

CLIP-LoRA, Zanella and Ben Ayed, arXiv 2405.18541; MaxZanella/CLIP-LoRA at 358f0d7,
loralib/layers.py and run_utils.py: in every block the query, key and value weights are
W + s B A, and only A and B are trained. The scale s is alpha / sqrt(rank) in that code, and
alpha / rank in LoRA (arXiv 2106.09685). Dropout is applied to the input of A.

The encoder always holds the merged weights: `LoRA.merge` writes them after each step, so that
predictions, averages and saved files do not depend on LoRA. Only the forward pass in training mode
computes both parts, since dropout is applied to one of them alone.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method.encoders import get_encoder_blocks
from domainbed_carft.method.hparams import (
    Hparam,
    choice,
    count,
    is_number,
    learning_rate,
    positive,
    weight_decay,
)


def _rank(default: int) -> Hparam:
    return count(
        "lora_rank",
        default,
        elsewhere=0,
        meaning="the rank of the factors trained instead of the encoder; 0 disables LoRA",
        source="MaxZanella/CLIP-LoRA, run_utils.py",
    )


# The defaults of all algorithms.
HPARAMS = (
    _rank(0),
    positive(
        "lora_alpha",
        1.0,
        meaning="the numerator of the factors' scale",
        source="MaxZanella/CLIP-LoRA, run_utils.py",
        changes_cost=False,
    ),
    choice(
        "lora_scaling",
        *("alpha/sqrt(r)", "alpha/r"),
        meaning="the scale of the factors, computed from lora_alpha and lora_rank r",
        source="MaxZanella/CLIP-LoRA, loralib/layers.py",
        changes_cost=False,
    ),
    Hparam(
        "lora_dropout",
        0.25,
        lambda v: is_number(v) and v < 1,
        "a number in [0, 1)",
        meaning="the dropout rate of the factors' input",
        source="MaxZanella/CLIP-LoRA, run_utils.py",
    ),
)
# The defaults of CLIPLoRA.
_RECIPE = "MaxZanella/CLIP-LoRA, run_utils.py"
PUBLISHED = (
    _rank(2),
    learning_rate(factor=10, published=2e-4, source=_RECIPE),
    weight_decay(0.01, source=_RECIPE),
)

# Queries, keys and values: the adapted projections, stacked in one weight.
PROJECTIONS = 3


def lora_scale(hparams: Mapping[str, Any]) -> float:
    """Return the factor of B A by ``lora_alpha``, ``lora_rank`` and ``lora_scaling``."""
    alpha: float = hparams["lora_alpha"]
    rank: int = hparams["lora_rank"]
    return alpha / rank if hparams["lora_scaling"] == "alpha/r" else alpha / math.sqrt(rank)


class LoRALayer(nn.Module):
    """The low-rank factors of one block's stacked query, key and value weight.

    Args:
        weight: the adapted parameter (3 E, E), which is neither moved nor trained.
        rank: number of columns of B.
        scale: factor of B A.
        dropout: dropout rate, in [0, 1).
    """

    original: Tensor

    def __init__(self, weight: nn.Parameter, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        width = weight.shape[1]
        self.down = nn.Parameter(weight.new_empty(PROJECTIONS, rank, width))  # A
        self.up = nn.Parameter(weight.new_zeros(PROJECTIONS, width, rank))  # B
        self.scale = scale
        self.dropout = dropout
        self.register_buffer("original", weight.detach().clone(), persistent=False)

        for projection in self.down:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))

    def delta(self) -> Tensor:
        """Return the update of the weight, (3 E, E)."""
        return self.scale * (self.up @ self.down).flatten(0, 1)

    def project(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return queries, keys and values (..., 3 E) of ``x`` (..., E).

        Dropout is applied to the input of the factors, with a separate mask for each projection.
        """
        frozen_part = F.linear(x, self.original, bias)
        adapted_parts = []
        for down, up in zip(self.down, self.up):
            dropped = F.dropout(x, self.dropout, training=True)
            adapted_parts.append(F.linear(F.linear(dropped, down), up))
        return frozen_part + self.scale * torch.cat(adapted_parts, dim=-1)


class LoRA(nn.Module):
    """The LoRA layers of an image encoder, whose other parameters are frozen.

    In training mode, the encoder's attention computes with the factors; in eval mode with the
    encoder's weights, which `merge` updates.

    Args:
        encoder: a ViT of OpenAI, open_clip or timm.
        rank: number of columns of B.
        scale: factor of B A.
        dropout: dropout rate, in [0, 1).

    Raises:
        CarftError: for an encoder without blocks of self-attention, such as a ResNet.
    """

    def __init__(self, encoder: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        layers = []
        encoder.requires_grad_(False)

        for block in get_encoder_blocks(encoder):
            attention: Any = getattr(block, "attn", None)
            weight = _get_stacked_weight(attention)
            if weight is None:
                raise CarftError(
                    f"lora_rank is {rank}, which needs an encoder whose blocks have self-attention "
                    "with stacked queries, keys and values, such as ViT-B/16; the blocks of this "
                    f"encoder are {type(block).__name__}s. Set lora_rank to 0"
                )
            layer = LoRALayer(weight, rank, scale, dropout)
            _use_layer(attention, layer)
            layers.append(layer)

        if not layers:
            raise CarftError(
                f"lora_rank is {rank}, but this encoder has no blocks; set lora_rank to 0"
            )
        self.layers = nn.ModuleList(layers)

    def has_dropout(self) -> bool:
        """Return True if each forward pass in training draws random numbers."""
        return any(layer.dropout > 0 for layer in self._get_layers())

    @torch.no_grad()
    def merge(self, encoder: nn.Module) -> None:
        """Write the adapted weights into the ``encoder`` for which the layers were built."""
        for weight, layer in zip(get_merged_weights(encoder), self._get_layers(), strict=True):
            weight.copy_(layer.original + layer.delta())

    def _get_layers(self) -> list[LoRALayer]:
        return [layer for layer in self.layers if isinstance(layer, LoRALayer)]


def get_merged_weights(encoder: nn.Module) -> list[nn.Parameter]:
    """Return the weights of an encoder that `LoRA.merge` writes, block by block."""
    weights = [
        _get_stacked_weight(getattr(block, "attn", None)) for block in get_encoder_blocks(encoder)
    ]
    return [weight for weight in weights if weight is not None]


def _get_stacked_weight(attention: Any) -> nn.Parameter | None:
    """Return the stacked weight (3 E, E) of an attention's queries, keys and values, if any."""
    weight = getattr(attention, "in_proj_weight", None)  # torch's and open_clip's
    if weight is None:
        weight = getattr(getattr(attention, "qkv", None), "weight", None)  # timm's
    if isinstance(weight, nn.Parameter) and weight.shape[0] == PROJECTIONS * weight.shape[1]:
        return weight
    return None


def _use_layer(attention: Any, layer: LoRALayer) -> None:
    """Make an attention compute with a LoRA layer in training mode.

    The layer becomes a plain attribute, not a submodule, so that the names in the encoder's state
    dict do not change. The methods are bound, so that a copy of the encoder computes with the
    copied layer.
    """
    if isinstance(attention, nn.MultiheadAttention):
        adapted: Any = attention
        forward: Any = _multihead_attention
    elif hasattr(attention, "qkv"):
        adapted = attention.qkv
        forward = _stacked_linear
    else:
        raise CarftError(
            f"LoRA does not support attention of the type {type(attention).__name__}, expected "
            "torch's MultiheadAttention or timm's attention; set lora_rank to 0"
        )
    adapted.__dict__["lora_layer"] = layer
    adapted.forward = types.MethodType(forward, adapted)


def _multihead_attention(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the self-attention of `nn.MultiheadAttention`; ``key`` and ``value`` are ``query``."""
    if not attention.training:
        return nn.MultiheadAttention.forward(attention, query, key, value, **options)

    x = query if attention.batch_first else query.transpose(0, 1)
    batch_size, length, width = x.shape
    stacked = attention.lora_layer.project(x, attention.in_proj_bias)
    heads = stacked.view(batch_size, length, PROJECTIONS, attention.num_heads, -1)
    queries, keys, values = heads.permute(2, 0, 3, 1, 4)

    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=options.get("attn_mask")
    )
    joined = mixed.transpose(1, 2).reshape(batch_size, length, width)
    projected = attention.out_proj(joined)
    return (projected if attention.batch_first else projected.transpose(0, 1)), None


def _stacked_linear(qkv: Any, x: Tensor) -> Tensor:
    """Return the stacked projection of timm's attention."""
    if not qkv.training:
        return F.linear(x, qkv.weight, qkv.bias)
    projected: Tensor = qkv.lora_layer.project(x, qkv.bias)
    return projected
