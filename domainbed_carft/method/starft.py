"""StarFT (IJCAI 2025; alinlab/StarFT, clip/loss.py, src/main.py): the KL over captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.machine.devices import copy_to_device
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.hparams import choice, nonnegative, power_of_ten
from domainbed_carft.method.objective import context_kl
from domainbed_carft.method.prompts import Prompts

_IMPOSSIBLE = -1e8  # a logit; minus infinity in both distributions would make the KL NaN


class StarFT(CARFT):
    """CARFT with the KL over captions of the batch, and a weight that falls linearly to 0.

    Each image of the batch is paired with a caption, its class in a random context. The
    distribution is over the captions of the batch, by default without the captions of the image's
    class. Differences to StarFT: its contexts are phrases written by a language model (pass such
    phrases as ``contexts``); its text encoder is trained (here it is the original's); and its
    weight falls by epoch (here by step).
    """

    HPARAMS = (
        nonnegative(
            "kl_weight",
            0.5,
            draw=power_of_ten(-1, 1),
            meaning="the weight of the KL term at the first step",
            source="alinlab/StarFT, src/main.py; search range: this package",
        ),
        choice(
            "starft_rows",
            *("other-captions", "captions"),
            meaning="the captions in the KL: captions of other classes ('star' in StarFT's code) "
            "or all captions ('kl')",
            source="alinlab/StarFT, clip/loss.py",
        ),
    )
    caption_features: Tensor  # (M, K, D)

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also keep the features (M, K, D) of all captions."""
        unit = F.normalize(text_features, dim=-1)
        self.register_buffer("caption_features", unit, persistent=False)
        super().build_for_training(clip_model, prompts, text_features)

    def kl(self, batch: Batch) -> Tensor:
        """Return the KL between the distributions over the captions of the batch."""
        captions = batch.batch_labels
        contexts = batch.draw_once(
            "contexts", lambda: torch.randint(len(self.caption_features), captions.shape)
        )
        rows = self.caption_features[copy_to_device(contexts, captions.device), captions]

        original_logits = self.context_logits(batch.original.features, rows)
        tuned_logits = self.context_logits(batch.tuned.features, rows)
        if self.hparams["starft_rows"] == "other-captions":
            original_logits = mask_own_class(original_logits, batch.labels, captions)
            tuned_logits = mask_own_class(tuned_logits, batch.labels, captions)
        return context_kl(original_logits, tuned_logits, self.hparams["kl_direction"])

    def kl_weight(self) -> float:
        """Return the current weight of the KL, which falls linearly to 0 at ``total_steps``."""
        remaining = max(0.0, 1 - self.steps_taken / self.hparams["total_steps"])
        return remaining * super().kl_weight()

    @classmethod
    def total_steps_reasons(cls, hparams: Mapping[str, Any]) -> list[str]:
        """Return the reason for ``total_steps`` if the KL term has a weight."""
        if not hparams["kl_weight"]:
            return []
        return ["the weight of StarFT's KL falls to 0 at the last step"]

    def single_process_reason(self) -> str:
        """Return the reason why several processes cannot share a batch."""
        if self.hparams["kl_weight"]:
            return "its KL draws captions for all images of the batch"
        return super().single_process_reason()


def mask_own_class(logits: Tensor, labels: Tensor, captions: Tensor) -> Tensor:
    """Return the logits with very low values for captions of the image's class.

    Args:
        logits: (n, N) of images over captions.
        labels: (n,) of the images.
        captions: (N,) labels of the captions.
    """
    return logits.masked_fill(labels[:, None] == captions[None], _IMPOSSIBLE)
