"""CLIPood, Shu et al., arXiv 2302.00864: margin metric softmax and a Beta average."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.averages import average
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.hparams import nonnegative, power_of_ten
from domainbed_carft.method.objective import zero_shot_weights
from domainbed_carft.method.prompts import Prompts


class CLIPood(CLIPAlgorithm):
    """Fine-tuning of the image encoder under a frozen text head, with a margin.

        L = CE(s (f(x) . t_k + margin (1 - t_y . t_k)), y),

    with unit image features f(x), unit text features t_k of the classes, and the logit scale s. The
    Beta average of the weights predicts (`averages`). The official code casts the weights to half
    precision after every step; this implementation trains and averages in float32.
    """

    HPARAMS = (
        nonnegative(
            "margin",
            0.3,
            draw=power_of_ten(-1.3, 0),
            elsewhere=0.0,
            meaning="the margin of CLIPood's softmax",
            source="thuml/CLIPood, engine.py",
            changes_cost=False,
        ),
        average(default="beta", source="thuml/CLIPood, engine.py"),
    )
    trains_head = False
    uses_original = False
    class_texts: Tensor  # (K, D), of length 1

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also keep the text features (K, D) of the classes."""
        class_texts = zero_shot_weights(text_features).classes
        self.register_buffer("class_texts", class_texts.clone(), persistent=False)
        super().build_for_training(clip_model, prompts, text_features)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the class logits with the margin."""
        logits = margin_logits(
            self.class_logits(batch.tuned.features),
            batch.labels,
            self.class_texts,
            self.hparams["margin"] * self.logit_scale,
        )
        cross_entropy = F.cross_entropy(logits, batch.labels)
        return {"loss": cross_entropy, "loss_ce": cross_entropy}


def margin_logits(logits: Tensor, labels: Tensor, class_texts: Tensor, shift: Tensor) -> Tensor:
    """Return class logits (N, K) with the margin metric softmax (thuml/CLIPood, engine.py).

    Each wrong class k gets a head start of ``shift`` * (1 - t_y . t_k) over the true class y.

    Args:
        logits: class logits (N, K).
        labels: (N,).
        class_texts: unit text features (K, D).
        shift: the logit scale times CLIPood's lambda.
    """
    return logits + shift * (1 - class_texts @ class_texts.T)[labels]
