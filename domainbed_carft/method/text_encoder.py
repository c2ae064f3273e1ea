"""The text encoder of a CLIP model as a module: frozen for random texts, trained for FLYP."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips.backbone import TEXT_BATCH, Backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.machine.devices import copy_to_device
from domainbed_carft.method import objective

# Tokens of CLIP's vocabulary, whose words are all below START.
START = 49406
END = 49407
VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77  # tokens of CLIP's text encoder
_IMAGE_PARTS = ("visual", "logit_scale", "logit_bias")  # of an open_clip model


class CachedHead(NamedTuple):
    """Class weights, and the state of the algorithm for which they were computed."""

    state: tuple[Any, ...]
    class_weights: Tensor  # (K, D)


class TextModule(nn.Module):
    """The text encoder of a CLIP model: (M, L) tokens -> (M, D) text features."""

    cached_head: CachedHead | None = None

    def class_weights(
        self, tokens: Tensor, weights: Mapping[str, Tensor], state: tuple[Any, ...]
    ) -> Tensor:
        """Return the zero-shot head (K, D) of prompts with these ``tokens`` (M, K, L).

        ``weights`` replace parameters of the module by name. The head is computed again only if the
        weights or the ``state`` have changed.
        """
        versions = sum(parameter._version for parameter in self.parameters())
        current = (*state, versions, tokens.device)
        if self.cached_head is None or self.cached_head.state != current:
            batches = tokens.flatten(0, 1).split(TEXT_BATCH)
            features = torch.cat(
                [functional_call(self, dict(weights), (batch,)) for batch in batches]
            )
            features = features.view(*tokens.shape[:2], -1)
            class_weights = objective.zero_shot_weights(features).classes
            self.cached_head = CachedHead(current, class_weights)
        return self.cached_head.class_weights


class TextEncoder(TextModule):
    """The text encoder of a ``clip.model.CLIP``, with shared modules: (M, L) tokens -> (M, D).

    Fewer tokens than CLIP's 77 suffice: the text encoder is causal and its output is read at END.
    """

    def __init__(self, clip_model: Any) -> None:
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.positional_embedding = clip_model.positional_embedding
        self.transformer = clip_model.transformer
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        """Return text features (M, D), float32 and not normalised, of ``tokens`` (M, L)."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # OpenAI's models are token-first
        ends = (tokens == END).int().argmax(dim=1)
        at_end = self.ln_final(x)[torch.arange(len(x), device=x.device), ends]
        features: Tensor = at_end.float() @ self.text_projection.float()
        return features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        super()._apply(fn, recurse)
        for block in self.transformer.resblocks:  # not a buffer; otherwise copied at every call
            block.attn_mask = fn(block.attn_mask)
        return self


class OpenClipText(TextModule):
    """The text encoder of an open_clip model, with shared modules: (M, all L) tokens -> (M, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # A shallow copy with separate tables of parts, from which the image parts are removed.
        self.model = copy.copy(model)
        for table in ("_modules", "_parameters"):
            parts = getattr(model, table)
            text_parts = {name: part for name, part in parts.items() if name not in _IMAGE_PARTS}
            vars(self.model)[table] = text_parts

    def forward(self, tokens: Tensor) -> Any:
        """Return text features (M, D), float32 and not normalised, of ``tokens`` (M, L)."""
        return self.model.encode_text(tokens).float()


def build_text_encoder(backbone: Backbone) -> TextModule:
    """Return the text encoder of a loaded CLIP model as a module for tokens of its ``tokenize``."""
    if backbone.architecture:
        return OpenClipText(backbone.model)
    return TextEncoder(backbone.model)


class RandomTexts:
    """Features of texts of random words by the frozen text encoder, drawn at each call (Lipsum-FT).

    Deliberately not a Module, like ``FrozenOriginal``. Raises CarftError for a text encoder without
    OpenAI's vocabulary (SigLIP).
    """

    def __init__(self, backbone: Backbone) -> None:
        self.padded_length = 0  # tokens to which texts are padded, 0 for no padding
        if backbone.architecture:
            text_config = json.loads(backbone.architecture)["model_cfg"]["text_cfg"]
            if not _reads_openai_vocabulary(text_config, backbone.tokenizer):
                raise CarftError(
                    "lipsum_weight draws texts of CLIP's words, but the text encoder of "
                    f"{backbone.name} has another vocabulary; choose another clip_backbone or "
                    "algorithm"
                )
            self.padded_length = text_config.get("context_length", CONTEXT_LENGTH)
        self.encoder = build_text_encoder(backbone).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, count: int, length: int) -> Tensor:
        """Return text features (``count``, D), not normalised, of texts of ``length`` words.

        Raises CarftError if the texts are longer than the encoder's context length.
        """
        with_ends = length + 2
        if self.padded_length and with_ends > self.padded_length:
            raise CarftError(
                f"Lipsum-FT draws texts of {with_ends} tokens, but this CLIP model supports at "
                f"most {self.padded_length}; choose another clip_backbone or algorithm"
            )

        tokens = torch.randint(0, START, (count, with_ends))
        tokens[:, 0] = START
        tokens[:, -1] = END
        tokens = F.pad(tokens, (0, max(0, self.padded_length - with_ends)))
        device = next(self.encoder.parameters()).device
        features: Tensor = self.encoder(copy_to_device(tokens, device))
        return features


def _reads_openai_vocabulary(text_config: Mapping[str, Any], tokenizer: Any) -> bool:
    return (
        text_config.get("pool_type", "argmax") == "argmax"
        and text_config.get("vocab_size", VOCABULARY_SIZE) == VOCABULARY_SIZE
        and "hf_model_name" not in text_config
        and type(tokenizer).__name__ == "SimpleTokenizer"
    )
