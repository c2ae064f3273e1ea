"""The baselines, and methods that are plain fine-tuning with a penalty, an average or LoRA.

The formulas and published settings of the latter are in `penalties`, `averages` and `lora`. Any
other algorithm that trains the encoder can use them as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.method import lora, penalties
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.batch import MicroBatch, all_reduce_gradients
from domainbed_carft.method.hparams import (
    by_size,
    count,
    fraction,
    learning_rate,
    positive,
    weight_decay,
)
from domainbed_carft.method.prompts import Prompts


class CLIPFineTune(CLIPAlgorithm):
    """Plain fine-tuning of image encoder and zero-shot head: CARFT without the KL term."""

    uses_original = False


class CLIPLinearProbe(CLIPAlgorithm):
    """Training of the head alone, starting from W_cls, on features of the original encoder."""

    HPARAMS = (
        learning_rate(
            factor=10, source="this package, ten times the learning rate of the other methods"
        ),
    )
    trains_encoder = False


class CLIPZeroShot(CLIPAlgorithm):
    """No training: the original encoder under W_cls. ``update`` only measures the loss."""

    trains_encoder = False
    trains_head = False
    is_constant = True  # the harness evaluates it only once


class CLIPWiSEFT(CLIPFineTune):
    """Fine-tuning with weights interpolated half-way to the original: WiSE-FT, arXiv 2109.01903."""

    HPARAMS = (
        fraction(
            "wise_alpha",
            0.5,
            draw=lambda random_state, conditions: float(random_state.uniform(0.2, 0.9)),
            elsewhere=1.0,
            meaning="the share of the trained weights in prediction; the rest is the original "
            "weights",
            source="mlfoundations/wise-ft, src/args.py",
        ),
    )


class CLIPLPFT(CLIPFineTune):
    """Linear probing, then fine-tuning: LP-FT, arXiv 2202.10054.

    The first ``lp_steps`` train only the head, with a separate Adam. The first phase in the paper
    is a logistic regression over cached features; here it uses augmentation.
    """

    HPARAMS = (
        count(
            "lp_steps",
            by_size(20, 500),
            elsewhere=0,
            meaning="the number of first steps, which train only the head",
            changes_cost=False,
        ),
        positive(
            "lp_lr",
            1e-3,
            meaning="the learning rate of these steps, for a head without CLIP's logit scale",
            changes_cost=False,
        ),
    )

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also build the optimizer of the first phase."""
        super().build_for_training(clip_model, prompts, text_features)
        if self.lp_steps:
            # Adam's steps are independent of a weight's scale: a folded head needs larger steps.
            rate = self.hparams["lp_lr"] * float(self.logit_scale / self.head_factor)
            self.probe_optimizer = torch.optim.Adam([self.head.weight], lr=rate)

    def take_step(self, x: Tensor, parts: Iterable[MicroBatch]) -> dict[str, Tensor]:
        """Take a step of the current phase."""
        if self.steps_taken >= self.lp_steps:
            return super().take_step(x, parts)

        micro_batches = [*parts]
        with torch.no_grad():
            features = torch.cat([self.features(x[part.positions]) for part in micro_batches])

        share = len(features) / micro_batches[0].batch_size
        logits = self.class_logits(features)
        cross_entropy = F.cross_entropy(logits, micro_batches[0].batch_labels) * share
        self.zero_grad(set_to_none=True)
        cross_entropy.backward()
        all_reduce_gradients(self, self.process_group)
        self.probe_optimizer.step()
        return dict.fromkeys(("loss", "loss_ce"), cross_entropy.detach())

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """Require that the first phase leaves steps for the second."""
        total_steps = hparams["total_steps"]
        if hparams["lp_steps"] < total_steps:
            return {}
        return {
            "lp_steps": f"less than total_steps = {total_steps}; otherwise only the head is trained"
        }


class CLIPL2SP(CLIPFineTune):
    """Fine-tuning with an L2 penalty towards the original weights: L2-SP, arXiv 1802.01483.

    The head is not penalised, as in the official code.
    """

    HPARAMS = (
        penalties.L2SPPenalty.weight,
        weight_decay(
            0.0,
            is_drawn=False,
            source="this package, because weight decay would pull towards another point",
        ),
    )


class CLIPFeatureDistillation(CLIPFineTune):
    """Fine-tuning with a penalty on the distance to the original image features."""

    HPARAMS = (penalties.FeatureDistillationPenalty.weight,)


class LDIFS(CLIPFineTune):
    """Fine-tuning with a penalty on the distance to the original activations at five places.

    LDIFS, arXiv 2308.13320.
    """

    HPARAMS = (penalties.LDIFSPenalty.weight,)


class LipsumFT(CLIPFineTune):
    """Fine-tuning with a penalty on changes of the logits of random texts: arXiv 2404.00860."""

    HPARAMS = (
        penalties.LipsumPenalty.weight,
        weight_decay(0.0, is_drawn=False, source="cs-giung/lipsum-ft, scripts/Lipsum-FT.py"),
    )


class CLIPMIRO(CLIPFineTune):
    """MIRO, arXiv 2203.10789, on the zero-shot head; the authors' head is random."""

    HPARAMS = (
        penalties.MIROPenalty.weight,
        weight_decay(0.0, is_drawn=False, source="khanrc/miro, issue 10"),
    )


class CLIPLoRA(CLIPFineTune):
    """CLIP-LoRA, arXiv 2405.18541: low-rank factors of the image encoder, with a frozen head."""

    HPARAMS = lora.PUBLISHED
    trains_head = False

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """Require factors to train."""
        if hparams["lora_rank"]:
            return {}
        return {"lora_rank": "at least 1: CLIPLoRA trains only the low-rank factors"}
