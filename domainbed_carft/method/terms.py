"""The terms beside the cross-entropy (`objective`, `peer_losses`), from a pass of the original."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.machine.devices import copy_to_device
from domainbed_carft.method import objective, peer_losses, text_encoder
from domainbed_carft.method.activations import FIRST_MODULES, Encoding, encode
from domainbed_carft.method.micro_batches import MicroBatch
from domainbed_carft.method.original import FrozenOriginal


class StepTerms(NamedTuple):
    """What the terms of a step measure."""

    measurements: dict[str, Tensor]  # record key -> scalar, unweighted
    weighted_sum: Tensor | float  # of the active terms, to add to the cross-entropy


class Terms(nn.Module):
    """The terms of an algorithm's loss and what they need: the original, texts, variances.

    ``term_weights`` are the hparams that weight a term in this algorithm. ``text_features``:
    (M, K, D). The state dict has MIRO's variances only.
    """

    original: FrozenOriginal | None = None
    random_texts: text_encoder.RandomTexts | None = None
    class_texts: Tensor
    context_weights: Tensor
    logit_scale: Tensor
    text_rows: Tensor  # what the KL is over, if not the contexts

    def __init__(
        self,
        hparams: Mapping[str, Any],
        term_weights: Sequence[str],
        clip_model: Backbone,
        text_features: Tensor,
    ) -> None:
        super().__init__()
        self.hparams = hparams
        self.term_weights = term_weights
        active = self.active_weights(0)
        encoder = clip_model.model.visual

        weights = objective.zero_shot_weights(text_features)
        self._register("class_texts", weights.classes)
        self._register("context_weights", weights.contexts)
        self._register("logit_scale", torch.tensor(clip_model.logit_scale))
        if "kl_weight" in active and hparams["kl_over"] == "clusters":
            centres = objective.clustered(weights.contexts, hparams["context_clusters"])
            self._register("text_rows", centres)
        if "kl_weight" in active and self._kl_over_captions:
            self._register("text_rows", F.normalize(text_features, dim=-1))

        # Over a single context there is no distribution that could drift.
        self.drift_every = hparams["drift_every"] if len(weights.contexts) > 1 else 0
        if active or self.drift_every:
            self.original = FrozenOriginal(
                encoder,
                precision=hparams["original_precision"],
                keep_weights="sp_weight" in active,  # which compares weights
            )
        if "lipsum_weight" in active:
            self.random_texts = text_encoder.RandomTexts(clip_model)
        if "miro_weight" in active:
            resolution = clip_model.preprocessing.resolution
            self.miro_variances = nn.ParameterList(_initial_variances(encoder, resolution))

    def _register(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.clone(), persistent=False)

    @property
    def _kl_over_captions(self) -> bool:
        return bool(self.hparams["kl_over"].endswith("captions"))

    def weight(self, name: str, step: int) -> float:
        """The weight of a term in the loss of the step after ``step``; 0 in other algorithms."""
        if name not in self.term_weights:
            return 0.0

        decays = name == "kl_weight" and self.hparams["kl_schedule"] == "linear"
        factor = max(0.0, 1 - step / self.hparams["total_steps"]) if decays else 1.0
        return factor * float(self.hparams[name])

    def active_weights(self, step: int) -> list[str]:
        """The hparams of the terms that are active in the step after ``step``: not weighted 0."""
        return [name for name in self.term_weights if self.weight(name, step)]

    def indivisible(self) -> str:
        """Why a batch cannot be divided among processes for these terms; "" if it can."""
        if "kl_weight" in self.active_weights(0) and self._kl_over_captions:
            return "kl_over draws captions for the whole batch"
        return ""

    @property
    def methods(self) -> list[str]:
        """The methods whose activations `forward` needs of the encoder that is trained."""
        return [name for name in FIRST_MODULES if self.weight(f"{name}_weight", 0)]

    def forward(
        self,
        step: int,
        pictures: Tensor,
        micro_batch: MicroBatch,
        tuned: Encoding,
        encoder: nn.Module,
    ) -> StepTerms:
        """Measure the terms of the step after ``step``.

        ``pictures`` (n, 3, R, R): those of the ``micro_batch``, as CLIP wants them. ``tuned``: what
        the ``encoder`` that is trained makes of them, with the activations of `methods`.
        """
        active = self.active_weights(step)
        measures_drift = self.drift_every > 0 and step % self.drift_every == 0
        measurements: dict[str, Tensor] = {}

        if {*active} - {"sp_weight"} or measures_drift:
            assert self.original is not None  # made for all of these
            original = self.original(pictures, self.methods)
            if "kl_weight" in active or measures_drift:
                measurements |= self._drift(original.features, tuned.features)
            if "kl_weight" in active:
                measurements["loss_kl"] = self._kl(original.features, tuned.features, micro_batch)
            measurements |= self._peer_losses(active, original, tuned, micro_batch)
        if "sp_weight" in active and self.hparams["sp_form"] == "coupled":
            pairs = self._paired_parameters(encoder)
            measurements["loss_sp"] = peer_losses.weight_distance(pairs)

        weighted_sum: Tensor | float = 0.0
        for name in active:
            measurement = measurements.get(f"loss_{name.removesuffix('_weight')}")
            if measurement is not None:
                weighted_sum = weighted_sum + self.weight(name, step) * measurement
        return StepTerms(measurements, weighted_sum)

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Class logits (N, K) with the head start of CLIPood's margin."""
        shift = self.hparams["margin"] * self.logit_scale
        return peer_losses.margin_logits(logits, labels, self.class_texts, shift)

    @torch.no_grad()
    def pull_to_original(self, encoder: nn.Module, step: int, rate: float) -> None:
        """Move the weights towards the original's: L2-SP's decoupled form, else nothing.

        Call it after the optimizer's step after ``step``, which had the learning rate ``rate``.
        """
        share = rate * self.weight("sp_weight", step)
        if share and self.hparams["sp_form"] == "decoupled":
            for weight, original_weight in self._paired_parameters(encoder):
                weight.lerp_(original_weight, share)

    def _paired_parameters(self, encoder: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each weight of the encoder with the original's."""
        assert self.original is not None
        return [*zip(encoder.parameters(), self.original.encoder.parameters(), strict=True)]

    def _peer_losses(
        self, active: Sequence[str], original: Encoding, tuned: Encoding, micro_batch: MicroBatch
    ) -> dict[str, Tensor]:
        """The active terms that compare features or activations."""
        hparams = self.hparams
        losses: dict[str, Tensor] = {}

        if "fd_weight" in active:
            losses["loss_fd"] = peer_losses.feature_distance(tuned.features, original.features)
        if "ldifs_weight" in active:
            losses["loss_ldifs"] = peer_losses.ldifs(
                tuned.activations["ldifs"], original.activations["ldifs"], hparams["ldifs_axis"]
            )
        if self.random_texts is not None and "lipsum_weight" in active:
            draw = functools.partial(
                self.random_texts, hparams["lipsum_texts"], hparams["lipsum_length"]
            )
            texts = micro_batch.draw_once("texts", draw)
            losses["loss_lipsum"] = peer_losses.lipsum(
                tuned.features, original.features, texts, self.logit_scale
            )
        if "miro_weight" in active:
            losses["loss_miro"] = peer_losses.variational(
                tuned.activations["miro"], original.activations["miro"], [*self.miro_variances]
            )
        return losses

    def _context_logits(self, features: Tensor, text_rows: Tensor) -> Tensor:
        scale = objective.context_scale(self.hparams["context_scale"], self.logit_scale)
        return objective.context_logits(features, text_rows, scale)

    def _kl(
        self, original_features: Tensor, tuned_features: Tensor, micro_batch: MicroBatch
    ) -> Tensor:
        """The KL over the contexts, or over the text features that ``kl_over`` names."""
        kl_over = self.hparams["kl_over"]
        captioned = micro_batch.batch_labels
        rows = self.context_weights if kl_over == "contexts" else self.text_rows
        if self._kl_over_captions:  # one for each picture: its class in a random context
            drawn_contexts = micro_batch.draw_once(
                "contexts", lambda: torch.randint(len(rows), captioned.shape)
            )
            rows = rows[copy_to_device(drawn_contexts, captioned.device), captioned]

        original_logits = self._context_logits(original_features, rows)
        tuned_logits = self._context_logits(tuned_features, rows)
        if kl_over == "other-captions":
            labels = micro_batch.labels
            original_logits = objective.without_own_class(original_logits, labels, captioned)
            tuned_logits = objective.without_own_class(tuned_logits, labels, captioned)
        return objective.context_kl(original_logits, tuned_logits, self.hparams["kl_direction"])

    @torch.no_grad()
    def _drift(self, original_features: Tensor, tuned_features: Tensor) -> dict[str, Tensor]:
        """How far the distribution over the contexts has moved."""
        original_logits = self._context_logits(original_features, self.context_weights)
        tuned_logits = self._context_logits(tuned_features, self.context_weights)
        direction = self.hparams["kl_direction"]
        return {
            "loss_kl": objective.context_kl(original_logits, tuned_logits, direction),
            "context_agreement": objective.context_agreement(original_logits, tuned_logits),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Terms:
        super()._apply(fn, recurse)
        if self.original is not None:
            self.original.encoder._apply(fn)
        if self.random_texts is not None:
            self.random_texts.encoder._apply(fn)
        return self


@torch.no_grad()
def _initial_variances(encoder: nn.Module, resolution: int) -> list[nn.Parameter]:
    """MIRO's variances before the first step, of the channels of each module that it compares."""
    blank = torch.zeros(1, 3, resolution, resolution)
    outputs = encode(encoder, blank, False, ["miro"]).activations["miro"]
    channels = [output.shape[-1] for output in outputs]
    return [
        nn.Parameter(peer_losses.raw_variance(peer_losses.MIRO_VARIANCE, count))
        for count in channels
    ]
