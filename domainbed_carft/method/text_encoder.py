"""The text encoder of a CLIP on its own: frozen for random texts, trained for FLYP."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method.device import copy_to_device

START, END = 49406, 49407  # of CLIP's vocabulary; all words are smaller


class TextEncoder(nn.Module):
    """The text half of a ``clip.model.CLIP``, whose parts it shares: (M, L) tokens -> (M, D).

    Fewer tokens than CLIP's 77 suffice: its text encoder is causal and read at the END.
    """

    def __init__(self, clip_model: Any) -> None:
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # OpenAI's has tokens in front
        ends = (tokens == END).int().argmax(dim=1)
        at_end = self.ln_final(x)[torch.arange(len(x), device=x.device), ends]
        features: Tensor = at_end.float() @ self.text_projection.float()
        return features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        super()._apply(fn, recurse)
        for block in self.transformer.resblocks:  # no buffer, it would be copied at every call
            block.attn_mask = fn(block.attn_mask)
        return self


class OpenClipText(nn.Module):
    """The text half of an open_clip model, whose parts it shares: (M, all L) tokens -> (M, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.copy(model)  # with tables of its own
        others = ("visual", "logit_scale", "logit_bias")
        for table in ("_modules", "_parameters"):
            parts = vars(model)[table].items()
            vars(self.model)[table] = {name: part for name, part in parts if name not in others}

    def forward(self, tokens: Tensor) -> Any:
        return self.model.encode_text(tokens).float()


def encoder_of(backbone: Backbone) -> nn.Module:
    """The text encoder of a loaded CLIP, as a module that reads its ``tokenize``."""
    return (OpenClipText if backbone.architecture else TextEncoder)(backbone.model)


class RandomTexts:
    """Features of texts of random words by the frozen text encoder, new at each call (Lipsum-FT).

    Raises CarftError for one that does not read OpenAI's vocabulary (SigLIP). Not a Module on
    purpose, as ``FrozenOriginal``.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.padded = 0  # to how many tokens the encoder wants texts
        if backbone.architecture:
            text = json.loads(backbone.architecture)["model_cfg"]["text_cfg"]
            how = text.get("pool_type", "argmax"), text.get("vocab_size", 49408)
            openais = type(backbone.tokenizer).__name__ == "SimpleTokenizer"
            if how != ("argmax", 49408) or "hf_model_name" in text or not openais:
                raise CarftError(
                    "lipsum_weight draws texts of CLIP's words, which the text encoder of "
                    f"{backbone.name} does not read; choose another clip_backbone or algorithm"
                )
            self.padded = text.get("context_length", 77)
        self.encoder = encoder_of(backbone).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, count: int, length: int) -> Tensor:
        """(``count``, D), of texts of ``length`` words, not normalised."""
        if self.padded and length + 2 > self.padded:
            most = f"expected at most {self.padded - 2}: this CLIP reads {self.padded} tokens"
            raise CarftError(f"lipsum_length is {length}, {most}")
        tokens = torch.randint(0, START, (count, length + 2))
        tokens[:, 0], tokens[:, -1] = START, END
        tokens = F.pad(tokens, (0, max(0, self.padded - tokens.shape[1])))
        features: Tensor = self.encoder(
            copy_to_device(tokens, next(self.encoder.parameters()).device)
        )
        return features
