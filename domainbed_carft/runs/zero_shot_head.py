"""The text head of an original CLIP over the classes of a suite, for any image encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips import backbone
from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.method import objective, prompts
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.runs.measuring import Predictor
from domainbed_carft.suites.test_sets import Suite


@dataclass(frozen=True)
class ZeroShotHead:
    """A CLIP's zero-shot weights (K, D) for the prompts of a suite, its logit scale and encoder.

    ``plan``: how the CLIP's pictures are made.
    """

    plan: PicturePlan
    encoder: nn.Module
    class_weights: Tensor
    logit_scale: float

    @classmethod
    def of_suite(cls, suite: Suite, clip: Backbone, device: torch.device) -> ZeroShotHead:
        """The head of ``clip`` for a suite; head and encoder are moved to ``device``."""
        suite_prompts = prompts.prompts(prompts.contexts(suite.contexts, 1), suite.classes)
        text_features = backbone.text_features(clip, suite_prompts)
        preprocessing = clip.preprocessing
        plan = PicturePlan(
            size=preprocessing.resolution,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        return cls(
            plan=plan,
            encoder=clip.model.visual.to(device),
            class_weights=objective.zero_shot_weights(text_features).classes.to(device),
            logit_scale=clip.logit_scale,
        )

    def predictor(self, encoders: Sequence[nn.Module]) -> Predictor:
        """Predicts the logits (N, K) of each encoder under this head, from the same pictures."""

        def predict(pictures: Tensor) -> list[Tensor]:
            features = (F.normalize(encoder(pictures).float(), dim=-1) for encoder in encoders)
            return [self.logit_scale * part @ self.class_weights.T for part in features]

        return predict
