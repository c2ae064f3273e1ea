"""The text encoder of a CLIP on its own: frozen for random texts, trained for FLYP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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


class RandomTexts:
    """Features of texts of random words by the frozen text encoder, new at each call (Lipsum-FT).

    Not a Module on purpose, as ``Frozen``.
    """

    def __init__(self, clip_model: Any) -> None:
        self.encoder = TextEncoder(clip_model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, count: int, length: int) -> Tensor:
        """(``count``, D), of texts of ``length`` words, not normalised."""
        tokens = torch.randint(0, START, (count, length + 2))
        tokens[:, 0], tokens[:, -1] = START, END
        features: Tensor = self.encoder(tokens.to(self.encoder.text_projection.device))
        return features

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move with the algorithm."""
        self.encoder._apply(fn)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a resumed run makes it anew from CLIP's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to do."""
