"""The terms beside the cross-entropy (`objective`, `peer_losses`), from a pass of the original."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.method import objective, peer_losses, text_encoder
from domainbed_carft.method.activations import FIRST_MODULES, Activations, encode
from domainbed_carft.method.device import copy_to_device
from domainbed_carft.method.micro_batches import MicroBatch
from domainbed_carft.method.original import FrozenOriginal


class Terms(nn.Module):
    """The terms of an algorithm's loss, term_weights by the hparams ``term_weights``, and what they need.

    ``text_features``: (M, K, D). In the state dict are MIRO's variances only.
    """

    original: FrozenOriginal | None = None
    random_texts: text_encoder.RandomTexts | None = None
    class_texts: Tensor
    context_weights: Tensor
    logit_scale: Tensor
    text_rows: Tensor  # what the KL is over, if not the contexts

    def __init__(
        self, hparams: Mapping[str, Any], term_weights: Sequence[str], clip_model: Backbone,
        text_features: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hparams, self.term_weights = hparams, term_weights
        weights = objective.zero_shot_weights(text_features)
        self._keep("class_texts", weights.classes)
        self._keep("context_weights", weights.contexts)
        self._keep("logit_scale", torch.tensor(clip_model.logit_scale))
        counting, encoder = self.active_weights(0), clip_model.model.visual
        if "kl_weight" in counting and hparams["kl_over"] == "clusters":
            rows = objective.clustered(weights.contexts, hparams["context_clusters"])
            self._keep("text_rows", rows)
        if "kl_weight" in counting and hparams["kl_over"].endswith("captions"):
            self._keep("text_rows", F.normalize(text_features, dim=-1))
        # Over a single context there is no distribution that could drift.
        self.drift_every = hparams["drift_every"] if len(weights.contexts) > 1 else 0
        if counting or self.drift_every:
            exact = "sp_weight" in counting  # compares weights
            self.original = FrozenOriginal(encoder, hparams["original_precision"], exact)
        if "lipsum_weight" in counting:
            self.random_texts = text_encoder.RandomTexts(clip_model)
        if "miro_weight" in counting:
            blank = torch.zeros(1, 3, *[clip_model.preprocessing.resolution] * 2)
            with torch.no_grad():
                found = encode(encoder, blank, False, ["miro"])[1]["miro"]
            start = (
                peer_losses.raw_variance(peer_losses.MIRO_VARIANCE, f.shape[-1]) for f in found
            )
            self.miro_variances = nn.ParameterList(map(nn.Parameter, start))

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.clone(), persistent=False)

    def weight(self, name: str, step: int) -> float:
        """The weight of a term in the loss of the step after ``step``; 0 in other algorithms."""
        fades = name == "kl_weight" and self.hparams["kl_schedule"] == "linear"
        left = max(0.0, 1 - step / self.hparams["total_steps"]) if fades else 1.0
        return left * float(self.hparams[name]) if name in self.term_weights else 0.0

    def active_weights(self, step: int) -> list[str]:
        """The hparams whose terms have a weight in that step."""
        return [name for name in self.term_weights if self.weight(name, step)]

    def indivisible(self) -> str:
        """Why a batch cannot be divided among processes for these terms; "" if it can."""
        drawn = "kl_weight" in self.active_weights(0) and self.hparams["kl_over"].endswith(
            "captions"
        )
        return "kl_over draws captions for the whole batch" if drawn else ""

    @property
    def methods(self) -> list[str]:
        """Those of which ``forward`` needs the activations."""
        return [name for name in FIRST_MODULES if self.weight(f"{name}_weight", 0)]

    def forward(
        self, step: int, pictures: Tensor, piece: MicroBatch, features: Tensor, seen: Activations,
        encoder: nn.Module,
    ) -> tuple[dict[str, Tensor], Tensor | float]:  # fmt: skip
        """What the step after ``step`` measures, unweighted, and the weighted sum of what counts.

        ``pictures`` (n, 3, R, R) of the ``piece`` as CLIP wants them; ``features`` (n, D) and
        ``seen`` of the ``encoder`` that is trained.
        """
        hparams, counting, parts = self.hparams, self.active_weights(step), dict[str, Tensor]()
        drifts = self.drift_every > 0 and step % self.drift_every == 0
        if {*counting} - {"sp_weight"} or drifts:
            assert self.original is not None  # made for all of these
            features_0, seen_0 = self.original(pictures, self.methods)
            if "kl_weight" in counting:
                parts["loss_kl"] = self._kl(features_0, features, piece)
            if "kl_weight" in counting or drifts:
                parts = {**self._drift(features_0, features), **parts}
            if "fd_weight" in counting:
                parts["loss_fd"] = peer_losses.feature_distance(features, features_0)
            if "ldifs_weight" in counting:
                axis = hparams["ldifs_axis"]
                parts["loss_ldifs"] = peer_losses.ldifs(seen["ldifs"], seen_0["ldifs"], axis)
            if self.random_texts and "lipsum_weight" in counting:
                how = hparams["lipsum_texts"], hparams["lipsum_length"]
                drawn = piece.once("texts", functools.partial(self.random_texts, *how))
                parts["loss_lipsum"] = peer_losses.lipsum(
                    features, features_0, drawn, self.logit_scale
                )
            if "miro_weight" in counting:
                variances = [*self.miro_variances]
                parts["loss_miro"] = peer_losses.variational(
                    seen["miro"], seen_0["miro"], variances
                )
        if "sp_weight" in counting and hparams["sp_form"] == "coupled":
            parts["loss_sp"] = peer_losses.weight_distance(self._beside_the_original(encoder))
        total: Tensor | float = 0.0
        for name in counting:
            part = parts.get(f"loss_{name.removesuffix('_weight')}")
            total = total if part is None else total + self.weight(name, step) * part
        return parts, total

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Class logits (N, K) with the head start of CLIPood's margin."""
        shift = self.hparams["margin"] * self.logit_scale
        return peer_losses.margin_logits(logits, labels, self.class_texts, shift)

    @torch.no_grad()
    def decouple(self, encoder: nn.Module, step: int, rate: float) -> None:
        """L2-SP's decoupled form: after an optimizer's step of this rate, towards the original."""
        share = rate * self.weight("sp_weight", step)
        if share and self.hparams["sp_form"] == "decoupled":
            for now, start in self._beside_the_original(encoder):
                now.lerp_(start, share)

    def _beside_the_original(self, encoder: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each weight of the encoder with the original's."""
        assert self.original is not None
        return [*zip(encoder.parameters(), self.original.encoder.parameters(), strict=True)]

    def _logits(self, features: Tensor, rows: Tensor) -> Tensor:
        t = objective.context_scale(self.hparams["context_scale"], self.logit_scale)
        return objective.context_logits(features, rows, t)

    def _kl(self, features_0: Tensor, features: Tensor, piece: MicroBatch) -> Tensor:
        """The KL over what ``kl_over`` says."""
        over, labels = self.hparams["kl_over"], piece.labels
        rows = self.context_weights if over == "contexts" else self.text_rows
        if over.endswith("captions"):  # one a picture of the batch, its class in a random context
            drawn = piece.once("contexts", lambda: torch.randint(len(rows), labels.shape))
            rows = rows[copy_to_device(drawn, labels.device), labels]
        original, tuned = self._logits(features_0, rows), self._logits(features, rows)
        if over == "other-captions":
            original = objective.without_own_class(original, piece.own, labels)
            tuned = objective.without_own_class(tuned, piece.own, labels)
        return objective.context_kl(original, tuned, self.hparams["kl_direction"])

    @torch.no_grad()
    def _drift(self, features_0: Tensor, features: Tensor) -> dict[str, Tensor]:
        """How far the distribution over the contexts has moved."""
        before, now = (self._logits(one, self.context_weights) for one in (features_0, features))
        return {
            "loss_kl": objective.context_kl(before, now, self.hparams["kl_direction"]),
            "context_agreement": objective.context_agreement(before, now),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Terms:
        super()._apply(fn, recurse)
        if self.original is not None:
            self.original.encoder._apply(fn)
        if self.random_texts is not None:
            self.random_texts.encoder._apply(fn)
        return self
