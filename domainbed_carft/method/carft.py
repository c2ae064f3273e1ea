"""CAR-FT, context-aware robust fine-tuning: Mao et al., arXiv 2211.16175, section 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.method.algorithm import CLIPAlgorithm, Style
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.hparams import Hparam, nonnegative, power_of_ten
from domainbed_carft.method.objective import context_kl


class CARFT(CLIPAlgorithm):
    """Fine-tuning that keeps the image encoder's distribution over contexts.

        L = CE(head(f(x)), y) + kl_weight * KL(p_0(x) || p(x)), the mean over the batch,
        p(x) = softmax_m(t f(x) . W_ctx[m]),

    with unit image features f(x), the text features W_ctx (M, D) of the M contexts, averaged over
    classes, and p_0 the distribution by the original encoder. The head starts from W_cls, the text
    features of the classes, averaged over contexts.
    """

    STYLE = Style(row=1, colour="#D55E00", marker="o", dash="solid")
    HPARAMS: ClassVar[tuple[Hparam, ...]] = (
        nonnegative(
            "kl_weight",
            1.0,
            draw=power_of_ten(-1, 1),
            meaning="lambda, the weight of the KL term; 0 is ERM (plain fine-tuning)",
            source="ours, the paper's is unknown",
        ),
    )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy plus the weighted KL, and both as they are."""
        cross_entropy = F.cross_entropy(self.class_logits(batch.tuned.features), batch.labels)
        weight = self.kl_weight()
        if not weight:
            return {"loss": cross_entropy, "loss_ce": cross_entropy}

        kl = self.kl(batch)
        return {"loss": cross_entropy + weight * kl, "loss_ce": cross_entropy, "loss_kl": kl}

    def kl(self, batch: Batch) -> Tensor:
        """The KL between the original's distribution over contexts and the tuned encoder's."""
        return context_kl(
            self.context_logits(batch.original.features),
            self.context_logits(batch.tuned.features),
            self.hparams["kl_direction"],
        )

    def kl_weight(self) -> float:
        """The weight of the KL in this step."""
        weight: float = self.hparams["kl_weight"]
        return weight

    @classmethod
    def has_kl(cls, hparams: Mapping[str, Any]) -> bool:
        """Whether the weight of the KL is not 0."""
        return bool(hparams["kl_weight"] > 0)
