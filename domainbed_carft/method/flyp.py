"""FLYP, fine-tuning as CLIP was pre-trained, and CaRot, which adds a teacher and a constraint.

FLYP: Goyal et al., arXiv 2212.00638. CaRot: Oh et al., arXiv 2311.01723; MLAI-Yonsei/CaRot,
src/models/carot_loss.py and src/args.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.machine.devices import copy_to_device
from domainbed_carft.method import text_encoder
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.encoders import encode
from domainbed_carft.method.hparams import (
    Hparam,
    by_size,
    choice,
    count,
    learning_rate,
    nonnegative,
    power_of_ten,
)
from domainbed_carft.method.prompts import Prompts

# Share of CaRot's teacher that is kept at an update: at the first step, and after WARM_UP_SHARE of
# the steps.
FIRST_MOMENTUM = 0.05
LAST_MOMENTUM = 0.9
WARM_UP_SHARE = 0.2


def pair_logits(features: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's logits (N, N) of images and captions.

    Args:
        features: image features (N, D) of any length.
        texts: caption features (N, D) of any length.
        scale: the logit scale.
    """
    return scale * F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T


def contrastive(logits: Tensor, labels: Tensor, targets: str) -> Tensor:
    """Return FLYP's loss (arXiv 2212.00638): CLIP's loss over images and their captions.

    Args:
        logits: (N, N) of `pair_logits`; caption n describes the class of image n.
        labels: (N,).
        targets: the partners of an image: "same-class" for all captions of its class in equal
            parts, "diagonal" for the caption of its own row, as in the official code.
    """
    partners = torch.eye(len(labels), device=logits.device)
    if targets == "same-class":
        partners = (labels[:, None] == labels[None]).float()
        partners = partners / partners.sum(dim=1, keepdim=True)

    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


class FLYP(CLIPAlgorithm):
    """Fine-tuning with CLIP's contrastive loss, text encoder included, arXiv 2212.00638.

    Each image of a batch is paired with a caption, its class in a randomly drawn context. The
    zero-shot head of the current text encoder predicts.
    """

    HPARAMS: ClassVar[tuple[Hparam, ...]] = (
        choice(
            "flyp_targets",
            *("same-class", "diagonal"),
            meaning="the partners of an image: all captions of its class, or only its own caption",
            source="this package; diagonal in the official code",
            changes_cost=False,
        ),
    )
    trains_head = False
    trains_text = True
    takes_penalties = False
    uses_original = False
    tokens: Tensor

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also build the text encoder, its temperature and the tokens (M, K, L) of all prompts."""
        self.text = text_encoder.build_text_encoder(clip_model).requires_grad_(True)
        self.log_scale = nn.Parameter(clip_model.model.logit_scale.detach().reshape(()).clone())

        tokens = clip_model.tokenize([prompt for row in prompts.by_context for prompt in row])
        tokens = tokens.view(len(prompts.contexts), len(prompts.classes), -1)
        self.register_buffer("tokens", tokens, persistent=False)  # (M, K, L)
        super().build_for_training(clip_model, prompts, text_features)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the contrastive loss over the images of a batch and their captions."""
        features = batch.tuned.features
        tokens = self.draw_captions(batch.labels)
        captions = encode(self.text, tokens, self.bf16).features

        logits = pair_logits(features, captions, self.log_scale.exp())
        loss = contrastive(logits, batch.labels, self.hparams["flyp_targets"])
        return self.add_teacher_terms({"loss": loss}, batch, tokens, logits)

    def draw_captions(self, labels: Tensor) -> Tensor:
        """Return tokens (N, L) of a caption in a random context for each of the ``labels`` (N,)."""
        contexts = torch.randint(len(self.tokens), labels.shape)
        return self.tokens[copy_to_device(contexts, labels.device), labels]

    def add_teacher_terms(
        self, measurements: dict[str, Tensor], batch: Batch, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """Return the measurements with a teacher's terms added; FLYP has no teacher.

        Args:
            measurements: ``loss`` of FLYP.
            batch: the images.
            tokens: (N, L) of the captions.
            logits: (N, N) of images and captions.
        """
        return measurements

    def single_process_reason(self) -> str:
        """Return the reason why several processes cannot share a batch."""
        return "its loss compares each image with all texts of the batch"

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """Reject a micro-batch, because the batch cannot be divided."""
        if not hparams["micro_batch"]:
            return {}
        return {
            "micro_batch": f"0: {cls.__name__} contrasts all images of a batch with each other; "
            "to save memory, set checkpoint_blocks to true or use a smaller batch_size"
        }

    @torch.no_grad()
    def prediction_weights(self) -> dict[str, Tensor]:
        """Return the weights used for prediction, with the head of the current text encoder."""
        weights = super().prediction_weights()
        if self.restored:
            return weights
        # Averages are separate tensors, whose changes the text encoder does not notice.
        version = self.predicting.version if self.predicting else 0
        return {**weights, **self._compute_text_head(weights, state=(self.steps_taken, version))}

    @torch.no_grad()
    def trained_logits(self, x: Tensor) -> Tensor:
        """Return class logits (N, K) of images by both encoders as they are being trained."""
        head = self._compute_text_head({}, state=(self.steps_taken, "trained"))
        logits: Tensor = functional_call(self, head, (x,))
        return logits

    def _compute_text_head(
        self, weights: Mapping[str, Tensor], state: tuple[Any, ...]
    ) -> dict[str, Tensor]:
        """Return the head's tensors by name, for ``weights`` of the text encoder.

        They are cached and computed again when ``state`` changes.
        """
        text_weights = {
            name.removeprefix("text."): tensor
            for name, tensor in weights.items()
            if name.startswith("text.")
        }
        head = self.text.class_weights(self.tokens, text_weights, state=state)
        scale = weights.get("log_scale", self.log_scale.detach()).exp()
        return {"head.weight": head, "head_factor": scale}


def contrastive_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return CaRot's self-distillation (arXiv 2311.01723): soft cross-entropies of `pair_logits`.

    The student's distributions over captions and over images are compared with the teacher's: the
    sum of both means. The minimum, the teacher's entropies, is reached where both agree.

    Args:
        logits: (N, N) of the student.
        teacher_logits: (N, N) of the teacher.
    """
    over_texts = F.cross_entropy(logits, teacher_logits.softmax(dim=1))
    over_images = F.cross_entropy(logits.T, teacher_logits.T.softmax(dim=1))
    return over_texts + over_images


def orthogonality(projection: Tensor) -> Tensor:
    """Return CaRot's constraint: the Frobenius norm of P^T P - I, ``projection`` P (width, D)."""
    gram = projection.T @ projection
    return torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))


def teacher_momentum(step: int, total_steps: int) -> float:
    """Return the share of the teacher that is kept at the update after ``step``, counted from 0."""
    progress = min(1.0, step / (WARM_UP_SHARE * total_steps))
    return FIRST_MOMENTUM + progress * (LAST_MOMENTUM - FIRST_MOMENTUM)


class CaRot(FLYP):
    """FLYP with self-distillation from a moving average and an orthogonality constraint.

    CaRot, arXiv 2311.01723: L = FLYP's loss + carot_distillation * `contrastive_distillation`
        + carot_orthogonality * `orthogonality`
    """

    HPARAMS = (
        learning_rate(published=1e-5, source="MLAI-Yonsei/CaRot, README"),
        nonnegative(
            "carot_distillation",
            1.5,
            draw=power_of_ten(-1, 1),
            elsewhere=0.0,
            meaning="the weight of the distillation from CaRot's teacher",
            source="MLAI-Yonsei/CaRot, README; search range: this package",
        ),
        nonnegative(
            "carot_orthogonality",
            0.2,
            draw=power_of_ten(-2, 0),
            elsewhere=0.0,
            meaning="the weight of CaRot's orthogonality constraint",
            source="MLAI-Yonsei/CaRot, README; search range: this package",
        ),
        count(
            "carot_interval",
            by_size(2, 500),
            1,
            meaning="the number of steps between updates of CaRot's teacher",
            source="MLAI-Yonsei/CaRot, src/args.py; for tiny: this package",
        ),
    )

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Also build the teacher."""
        super().build_for_training(clip_model, prompts, text_features)
        self.teacher = AveragedTeacher(self.encoder, self.text, self.log_scale)
        if self.hparams["carot_orthogonality"]:
            get_visual_projection(self.encoder)  # raises CarftError if there is no projection

    def add_teacher_terms(
        self, measurements: dict[str, Tensor], batch: Batch, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """Return the measurements with the active terms added; the first step has no teacher."""
        loss = measurements["loss"]
        measurements = {**measurements, "loss_contrastive": loss}
        distillation_weight = self.hparams["carot_distillation"]
        if distillation_weight and self.steps_taken > 0:
            teacher_logits = self.teacher.logits(batch.images, tokens, self.bf16)
            distillation = contrastive_distillation(logits, teacher_logits)
            measurements["loss_distillation"] = distillation
            loss = loss + distillation_weight * distillation

        orthogonality_weight = self.hparams["carot_orthogonality"]
        if orthogonality_weight:
            constraint = orthogonality(get_visual_projection(self.encoder))
            measurements["loss_orthogonality"] = constraint
            loss = loss + orthogonality_weight * constraint
        return {**measurements, "loss": loss}

    @classmethod
    def total_steps_reasons(cls, hparams: Mapping[str, Any]) -> list[str]:
        """Return the reason for ``total_steps`` if there is a teacher."""
        if not hparams["carot_distillation"]:
            return []
        return ["the momentum of CaRot's teacher depends on the number of steps"]

    def after_step(self) -> None:
        """Update the teacher every ``carot_interval`` steps."""
        if self.steps_taken % self.hparams["carot_interval"] == 0:
            momentum = teacher_momentum(self.steps_taken, self.hparams["total_steps"])
            self.teacher.follow(self.encoder, self.text, self.log_scale, momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CaRot:
        super()._apply(fn, recurse)
        if not self.restored:
            self.teacher.apply(fn)
        return self


class AveragedTeacher:
    """A moving average of both encoders and of the logarithm of their scale.

    It starts as a copy of them. Deliberately not a Module, like ``FrozenOriginal``: a saved run
    does not need the teacher, only the state of a job has it.
    """

    def __init__(self, encoder: nn.Module, text: nn.Module, log_scale: Tensor) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.text = copy.deepcopy(text).eval().requires_grad_(False)
        self.log_scale = log_scale.detach().clone()

    @torch.no_grad()
    def logits(self, images: Tensor, tokens: Tensor, bf16: bool) -> Tensor:
        """Return logits (N, N) of ``images`` (N, 3, R, R) and texts with ``tokens`` (N, L)."""
        features = encode(self.encoder, images, bf16).features
        texts = encode(self.text, tokens, bf16).features
        return pair_logits(features, texts, self.log_scale.exp())

    @torch.no_grad()
    def follow(
        self, encoder: nn.Module, text: nn.Module, log_scale: Tensor, momentum: float
    ) -> None:
        """Keep the share ``momentum`` of the teacher; the rest comes from the trained weights."""
        weights = [*encoder.parameters(), *text.parameters(), log_scale]
        averages = [*self.encoder.parameters(), *self.text.parameters(), self.log_scale]
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.detach(), 1 - momentum)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher with the module, for example to another device."""
        self.encoder._apply(fn)
        self.text._apply(fn)
        self.log_scale = fn(self.log_scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both encoders and the logarithm of the scale."""
        return {
            "encoder": self.encoder.state_dict(),
            "text": self.text.state_dict(),
            "log_scale": self.log_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict` into the teacher."""
        self.encoder.load_state_dict(state["encoder"])
        self.text.load_state_dict(state["text"])
        self.log_scale.copy_(state["log_scale"])


def get_visual_projection(encoder: Any) -> Tensor:
    """Return the projection P (width, D) from an image encoder's last layer to the joint embedding.

    Raises CarftError for an encoder without a linear projection.
    """
    if hasattr(encoder, "attnpool"):  # a ResNet of OpenAI or open_clip
        return _get_transposed_weight([encoder.attnpool.c_proj])
    if isinstance(getattr(encoder, "proj", None), Tensor):  # a ViT of OpenAI or open_clip
        projection: Tensor = encoder.proj
        return projection
    # timm's encoders end in open_clip's head, or in timm's head if open_clip's is empty.
    layers = [*getattr(encoder, "head", nn.Module()).children()]
    return _get_transposed_weight(layers or [getattr(encoder, "trunk", encoder).head])


def _get_transposed_weight(layers: Sequence[nn.Module]) -> Tensor:
    """Return the weight of the only linear layer among ``layers``, as (inputs, outputs)."""
    linear_layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear_layers) != 1:
        raise CarftError(
            "carot_orthogonality needs an image encoder that ends in a linear projection; this "
            f"encoder ends in {len(linear_layers)} linear layers. Set carot_orthogonality to 0"
        )
    return linear_layers[0].weight.T
