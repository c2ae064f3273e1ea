"""CAR-FT, context-aware robust fine-tuning: Mao et al., arXiv 2211.16175.

Based on the paper's abstract, and on papers and code that quote it; the full text was not
available.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.hparams import Hparam, nonnegative, power_of_ten
from domainbed_carft.method.objective import context_kl


class CARFT(CLIPAlgorithm):
    """Fine-tuning that preserves the image encoder's distribution over contexts.

        L = CE(head(f(x)), y) + kl_weight * KL(p_0(x) || p(x)), the mean over the batch,
        p(x) = softmax_m(t f(x) . W_ctx[m]),

    with unit image features f(x), the text features W_ctx (M, D) of the M contexts, averaged over
    classes, and p_0 the distribution of the original encoder. The head starts from W_cls, the text
    features of the classes, averaged over contexts.
    """

    HPARAMS: ClassVar[tuple[Hparam, ...]] = (
        nonnegative(
            "kl_weight",
            1.0,
            draw=power_of_ten(-1, 1),
            meaning="lambda, the weight of the KL term; 0 is ERM (plain fine-tuning)",
            source="this package; the paper's value is not known",
        ),
    )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy plus the weighted KL, and both unweighted."""
        cross_entropy = F.cross_entropy(self.class_logits(batch.tuned.features), batch.labels)
        weight = self.kl_weight()
        if not weight:
            return {"loss": cross_entropy, "loss_ce": cross_entropy}

        kl = self.kl(batch)
        return {"loss": cross_entropy + weight * kl, "loss_ce": cross_entropy, "loss_kl": kl}

    def kl(self, batch: Batch) -> Tensor:
        """Return the KL between the original and the tuned encoder's distribution over contexts."""
        return context_kl(
            self.context_logits(batch.original.features),
            self.context_logits(batch.tuned.features),
            self.hparams["kl_direction"],
        )

    def kl_weight(self) -> float:
        """Return the weight of the KL term in the current step."""
        weight: float = self.hparams["kl_weight"]
        return weight
