"""CAR-FT, its peers and baselines as DomainBed algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips import backbone
from domainbed_carft.machine.devices import copy_to_device
from domainbed_carft.method import carot, peer_losses, prompts, text_encoder
from domainbed_carft.method.activations import encode
from domainbed_carft.method.clip_algorithm import CLIPAlgorithm
from domainbed_carft.method.micro_batches import MicroBatch


class CARFT(CLIPAlgorithm):
    """Context-aware robust fine-tuning, arXiv 2211.16175: cross-entropy + kl_weight * KL.

    The terms of its peers count beside the KL where their weights are set.
    """

    term_weights = (
        "kl_weight",
        "sp_weight",
        "fd_weight",
        "ldifs_weight",
        "lipsum_weight",
        "miro_weight",
    )


class CLIPFineTune(CLIPAlgorithm):
    """Plain fine-tuning of the image encoder and the zero-shot head: CARFT without the KL term."""


class CLIPLinearProbe(CLIPAlgorithm):
    """Only the head is trained, from W_cls, on the original encoder's features."""

    trains_encoder = False


class CLIPZeroShot(CLIPLinearProbe):
    """Nothing is trained: the original encoder under W_cls. ``update`` only measures the loss."""

    trains_head = False
    is_constant = True  # our harness evaluates it once

    def _step_optimizer(self) -> None:
        pass


class CLIPood(CLIPAlgorithm):
    """Margin metric softmax under a frozen text head, and a Beta average, arXiv 2302.00864."""

    trains_head = False


class CLIPLoRA(CLIPAlgorithm):
    """Low-rank factors under a frozen text head: CLIP-LoRA, arXiv 2405.18541, of the images."""

    trains_head = False


class CLIPWiSEFT(CLIPAlgorithm):
    """Fine-tuning that predicts half-way to the original weights: WiSE-FT, arXiv 2109.01903."""


class CLIPLPFT(CLIPAlgorithm):
    """Linear probing, then fine-tuning: LP-FT, arXiv 2202.10054."""


class CLIPL2SP(CLIPAlgorithm):
    """Fine-tuning held to the original weights: L2-SP, arXiv 1802.01483."""

    term_weights = ("sp_weight",)


class CLIPFeatureDistillation(CLIPAlgorithm):
    """Fine-tuning held to the original image features."""

    term_weights = ("fd_weight",)


class LDIFS(CLIPAlgorithm):
    """Fine-tuning held to the original activations at five places, arXiv 2308.13320."""

    term_weights = ("ldifs_weight",)


class LipsumFT(CLIPAlgorithm):
    """Fine-tuning held to the original logits of random texts, arXiv 2404.00860."""

    term_weights = ("lipsum_weight",)


class CLIPMIRO(CLIPAlgorithm):
    """MIRO, arXiv 2203.10789, on the zero-shot head."""

    term_weights = ("miro_weight",)


class FLYP(CLIPAlgorithm):
    """Fine-tuning by CLIP's own contrastive loss, text encoder included, arXiv 2212.00638.

    The head that predicts is the zero-shot head of the text encoder as it is.
    """

    trains_head = False
    term_weights = None
    tokens: Tensor

    def set_up_training(
        self, clip_model: backbone.Backbone, job_prompts: prompts.Prompts, text_features: Tensor
    ) -> None:
        """Build the text encoder, its temperature and the tokens of all prompts, and the rest."""
        self.text = text_encoder.encoder_of(clip_model).requires_grad_(True)
        self.log_scale = nn.Parameter(clip_model.model.logit_scale.detach().reshape(()).clone())

        tokens = clip_model.tokenize([prompt for row in job_prompts.rows for prompt in row])
        tokens = tokens.view(len(job_prompts.contexts), len(job_prompts.classes), -1)
        self.register_buffer("tokens", tokens, persistent=False)  # (M, K, L)
        super().set_up_training(clip_model, job_prompts, text_features)

    def indivisible(self) -> str:
        """Why its batch cannot be divided among processes."""
        return "its loss compares each picture with the texts of the whole batch"

    def _losses(self, x: Tensor, micro_batch: MicroBatch) -> dict[str, Tensor]:
        labels = micro_batch.batch_labels
        pictures = self.input(x)
        features = self.encode(pictures).features
        drawn_contexts = torch.randint(len(self.tokens), labels.shape)  # one for each picture
        tokens = self.tokens[copy_to_device(drawn_contexts, labels.device), labels]
        captions = encode(self.text, tokens, self.hparams["amp"] == "bf16").features

        logits = peer_losses.pair_logits(features, captions, self.log_scale.exp())
        loss = peer_losses.contrastive(logits, labels, self.hparams["flyp_targets"])
        return self._with_terms(loss, pictures, tokens, logits)

    def _with_terms(
        self, contrastive_loss: Tensor, pictures: Tensor, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """The ``loss`` of a batch with ``logits`` (N, N), and what its parts measure."""
        return {"loss": contrastive_loss}

    @torch.no_grad()
    def predicting_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights that predict: the head is that of the text encoder now."""
        weights = super().predicting_weights()
        if self.restored:
            return weights
        # Averages change in tensors that the text encoder does not have.
        version = self.predicting.version if self.predicting else 0
        return {**weights, **self._head_of_text(weights, state=(self.steps_taken, version))}

    @torch.no_grad()
    def trained_logits(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of pictures by both encoders as they are being trained."""
        head = self._head_of_text({}, state=(self.steps_taken, "trained"))
        logits: Tensor = functional_call(self, head, (x,))
        return logits

    def _head_of_text(
        self, weights: Mapping[str, Tensor], state: tuple[Any, ...]
    ) -> dict[str, Tensor]:
        """The head's tensors by name, of the text encoder with these ``weights`` in its place.

        They are computed anew where ``state`` has changed.
        """
        text_weights = {
            name.removeprefix("text."): tensor
            for name, tensor in weights.items()
            if name.startswith("text.")
        }
        head = self.text.class_weights(self.tokens, text_weights, state=state)
        scale = weights.get("log_scale", self.log_scale.detach()).exp()
        return {"head.weight": head, "head_factor": scale}


class CaRot(FLYP):
    """FLYP taught by its own moving average, its projection held orthogonal, arXiv 2311.01723."""

    def set_up_training(
        self, clip_model: backbone.Backbone, job_prompts: prompts.Prompts, text_features: Tensor
    ) -> None:
        """Build what FLYP trains, and the teacher."""
        super().set_up_training(clip_model, job_prompts, text_features)
        self.teacher = carot.AveragedTeacher(self.encoder, self.text, self.log_scale)
        if self.hparams["carot_orthogonality"]:
            carot.visual_projection(self.encoder)  # raises if there is none

    def _with_terms(
        self, contrastive_loss: Tensor, pictures: Tensor, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss with CaRot's terms that are active; the first step has no teacher."""
        measurements = {"loss": contrastive_loss, "loss_contrastive": contrastive_loss}
        distillation_weight = self.hparams["carot_distillation"]
        if distillation_weight and self.steps_taken > 0:
            bf16 = self.hparams["amp"] == "bf16"
            logits_of_teacher = self.teacher.logits(pictures, tokens, bf16)
            distillation = peer_losses.contrastive_distillation(logits, logits_of_teacher)
            measurements["loss_distillation"] = distillation
            measurements["loss"] = measurements["loss"] + distillation_weight * distillation

        orthogonality_weight = self.hparams["carot_orthogonality"]
        if orthogonality_weight:
            orthogonality = peer_losses.orthogonality(carot.visual_projection(self.encoder))
            measurements["loss_orthogonality"] = orthogonality
            measurements["loss"] = measurements["loss"] + orthogonality_weight * orthogonality
        return measurements

    def _step_optimizer(self) -> None:
        super()._step_optimizer()
        if self.steps_taken % self.hparams["carot_interval"] == 0:
            momentum = carot.teacher_momentum(self.steps_taken, self.hparams["total_steps"])
            self.teacher.follow(self.encoder, self.text, self.log_scale, momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CaRot:
        super()._apply(fn, recurse)
        if not self.restored:
            self.teacher.apply(fn)
        return self
