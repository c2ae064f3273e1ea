"""FD-Align, Song et al., arXiv 2310.15105: CAR-FT's KL term over clusters of the contexts."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import get_module
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.hparams import CONTEXTS, Conditions
from domainbed_carft.method.objective import context_kl
from domainbed_carft.method.prompts import Prompts

CLUSTERS = 20  # skingorz/FD-Align, modules/FD_Align_SCP_CoOp.py


def _default_contexts(conditions: Conditions) -> str:
    """Return the dataset's list of contexts, but for CLIP's tasks, most of which have few."""
    default: str = CONTEXTS.default_for(conditions)
    return "imagenet" if conditions.dataset in TASKS else default


class FDAlign(CARFT):
    """CARFT with the KL over centres of clusters of the contexts (`cluster_centres`).

    The official weight 20 of a mean over images and centres equals a ``kl_weight`` of 1 of a mean
    over images. Needs scikit-learn. Raises CarftError for fewer than 27 contexts.
    """

    HPARAMS = (
        replace(
            CARFT.HPARAMS[0],
            source="skingorz/FD-Align, modules/FD_Align_SCP_CoOp.py; search range: this package",
        ),
        *CARFT.HPARAMS[1:],
        replace(CONTEXTS, default=_default_contexts),
    )
    # The centres are made from three quarters of the contexts.
    min_contexts = math.ceil(CLUSTERS * 4 / 3)
    centres: Tensor

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also find the centres."""
        self.register_buffer(
            "centres", cluster_centres(self.context_weights, CLUSTERS), persistent=False
        )
        super().build_for_training(clip_model, prompts, text_features)

    def kl(self, batch: Batch) -> Tensor:
        """Return the KL between the distributions over the centres."""
        return context_kl(
            self.context_logits(batch.original.features, self.centres),
            self.context_logits(batch.tuned.features, self.centres),
            self.hparams["kl_direction"],
        )


def cluster_centres(context_weights: Tensor, count: int) -> Tensor:
    """Return centres of clusters of the most typical contexts.

    An isolation forest keeps the three quarters of the contexts that are most typical (60 of the 80
    templates, as in the official code), and k-means finds the centres, which are not scaled to
    length 1.

    Args:
        context_weights: (M, D), of which three quarters must be at least ``count``.
        count: number of centres.

    Returns:
        Centres (``count``, D).

    """
    k_means = get_module("sklearn.cluster", "scikit-learn").KMeans(count, random_state=0, n_init=10)
    forest = get_module("sklearn.ensemble", "scikit-learn").IsolationForest(random_state=0)
    contexts = context_weights.cpu().numpy()
    num_usual = len(contexts) * 3 // 4
    usualness = forest.fit(contexts).decision_function(contexts)
    usual = contexts[(-usualness).argsort(kind="stable")[:num_usual]]
    return torch.from_numpy(k_means.fit(usual).cluster_centers_).to(context_weights)
