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
from domainbed_carft.method.algorithm import GIVE_STEPS, CLIPAlgorithm, Style
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

# How much of CaRot's teacher stays at an update: at the first step, and from WARM_UP_SHARE of the
# steps on.
FIRST_MOMENTUM = 0.05
LAST_MOMENTUM = 0.9
WARM_UP_SHARE = 0.2


def pair_logits(features: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's logits (N, N) of images and captions, from features (N, D) of any length."""
    return scale * F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T


def contrastive(logits: Tensor, labels: Tensor, targets: str) -> Tensor:
    """FLYP's loss (arXiv 2212.00638): CLIP's own, over images and their captions.

    ``logits``: (N, N) of `pair_logits`, caption n describes the class of image n; ``targets``:
    what counts as the partner of an image, each caption of its class in equal parts
    ("same-class"), or the one of its own row alone, as in the official code ("diagonal").
    """
    partners = torch.eye(len(labels), device=logits.device)
    if targets == "same-class":
        partners = (labels[:, None] == labels[None]).float()
        partners = partners / partners.sum(dim=1, keepdim=True)

    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


class FLYP(CLIPAlgorithm):
    """Fine-tuning by CLIP's own contrastive loss, text encoder included, arXiv 2212.00638.

    Each image of a batch comes with a caption, its class in a context that is drawn for it. The
    head that predicts is the zero-shot head of the text encoder as it is.
    """

    STYLE = Style(row=13, colour="#882255", marker="h", dash=(0, (8, 1, 2, 1)), hollow=True)
    HPARAMS: ClassVar[tuple[Hparam, ...]] = (
        choice(
            "flyp_targets",
            *("same-class", "diagonal"),
            meaning="the partners of an image: all captions of its class, or its own alone",
            source="ours; the official code's is diagonal",
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
        """Build the text encoder, its temperature and the tokens of all prompts, and the rest."""
        self.text = text_encoder.build_text_encoder(clip_model).requires_grad_(True)
        self.log_scale = nn.Parameter(clip_model.model.logit_scale.detach().reshape(()).clone())

        tokens = clip_model.tokenize([prompt for row in prompts.rows for prompt in row])
        tokens = tokens.view(len(prompts.contexts), len(prompts.classes), -1)
        self.register_buffer("tokens", tokens, persistent=False)  # (M, K, L)
        super().build_for_training(clip_model, prompts, text_features)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss over the images of a batch and their captions."""
        features = batch.tuned.features
        tokens = self.draw_captions(batch.labels)
        captions = encode(self.text, tokens, self.bf16).features

        logits = pair_logits(features, captions, self.log_scale.exp())
        loss = contrastive(logits, batch.labels, self.hparams["flyp_targets"])
        return self.add_teacher_terms({"loss": loss}, batch, tokens, logits)

    def draw_captions(self, labels: Tensor) -> Tensor:
        """Tokens (N, L) of a caption for each of the ``labels`` (N,), in a random context."""
        drawn_contexts = torch.randint(len(self.tokens), labels.shape)
        return self.tokens[copy_to_device(drawn_contexts, labels.device), labels]

    def add_teacher_terms(
        self, measurements: dict[str, Tensor], batch: Batch, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """The ``measurements`` of FLYP's loss, with what a teacher adds: here nothing.

        ``tokens``: (N, L) of the captions; ``logits``: (N, N) of images and captions.
        """
        return measurements

    def indivisible(self) -> str:
        """Why its batch cannot be divided among processes."""
        return "its loss compares each image with the texts of the whole batch"

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """That it cannot divide a batch."""
        if not hparams["micro_batch"]:
            return {}
        return {
            "micro_batch": f"0: {cls.__name__} contrasts all images of a batch with each other; "
            "set checkpoint_blocks to true, or a smaller batch_size"
        }

    @torch.no_grad()
    def prediction_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights that predict: the head is that of the text encoder now."""
        weights = super().prediction_weights()
        if self.restored:
            return weights
        # Averages change in tensors that the text encoder does not have.
        version = self.predicting.version if self.predicting else 0
        return {**weights, **self._text_head(weights, state=(self.steps_taken, version))}

    @torch.no_grad()
    def trained_logits(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of images by both encoders as they are being trained."""
        head = self._text_head({}, state=(self.steps_taken, "trained"))
        logits: Tensor = functional_call(self, head, (x,))
        return logits

    def _text_head(
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


def contrastive_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """CaRot's self-distillation (arXiv 2311.01723): soft cross-entropies of `pair_logits` (N, N).

    The teacher's distribution over captions, and that over images, under the student's: the sum
    of both means. It is least, the teacher's entropies, where both agree.
    """
    over_texts = F.cross_entropy(logits, teacher_logits.softmax(dim=1))
    over_images = F.cross_entropy(logits.T, teacher_logits.T.softmax(dim=1))
    return over_texts + over_images


def orthogonality(projection: Tensor) -> Tensor:
    """CaRot's constraint: the Frobenius norm of P^T P - I, ``projection`` P (width, D)."""
    gram = projection.T @ projection
    return torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))


def teacher_momentum(step: int, total_steps: int) -> float:
    """How much of the teacher stays at the update after step ``step``, counted from 0."""
    progress = min(1.0, step / (WARM_UP_SHARE * total_steps))
    return FIRST_MOMENTUM + progress * (LAST_MOMENTUM - FIRST_MOMENTUM)


class CaRot(FLYP):
    """FLYP taught by its own moving average, its projection held orthogonal, arXiv 2311.01723.

    L = FLYP's loss + carot_distillation * `contrastive_distillation`
        + carot_orthogonality * `orthogonality`
    """

    STYLE = Style(row=14, colour="#B5468F", marker="H", dash=(0, (1, 1, 4, 1)), hollow=True)
    HPARAMS = (
        learning_rate(published=1e-5, source="MLAI-Yonsei/CaRot, README"),
        nonnegative(
            "carot_distillation",
            1.5,
            draw=power_of_ten(-1, 1),
            elsewhere=0.0,
            meaning="the weight of the distillation by CaRot's teacher",
            source="MLAI-Yonsei/CaRot, README; the search is ours",
        ),
        nonnegative(
            "carot_orthogonality",
            0.2,
            draw=power_of_ten(-2, 0),
            elsewhere=0.0,
            meaning="the weight of CaRot's orthogonality constraint",
            source="MLAI-Yonsei/CaRot, README; the search is ours",
        ),
        count(
            "carot_interval",
            by_size(2, 500),
            1,
            meaning="steps from one update of CaRot's teacher to the next",
            source="MLAI-Yonsei/CaRot, src/args.py; tiny's is ours",
        ),
    )

    def build_for_training(
        self, clip_model: Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Build what FLYP trains, and the teacher."""
        super().build_for_training(clip_model, prompts, text_features)
        self.teacher = AveragedTeacher(self.encoder, self.text, self.log_scale)
        if self.hparams["carot_orthogonality"]:
            visual_projection(self.encoder)  # raises if there is none

    def add_teacher_terms(
        self, measurements: dict[str, Tensor], batch: Batch, tokens: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """The ``measurements`` with the terms that are active; the first step has no teacher."""
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
            constraint = orthogonality(visual_projection(self.encoder))
            measurements["loss_orthogonality"] = constraint
            loss = loss + orthogonality_weight * constraint
        return {**measurements, "loss": loss}

    @classmethod
    def total_steps_problems(cls, hparams: Mapping[str, Any]) -> list[str]:
        """What needs ``total_steps``: also the momentum of the teacher."""
        problems = super().total_steps_problems(hparams)
        if hparams["carot_distillation"]:
            problems.append(
                "the momentum of CaRot's teacher rises over a share of all steps, whose number is "
                f"unknown; {GIVE_STEPS}"
            )
        return problems

    def after_step(self) -> None:
        """Let the teacher follow, every ``carot_interval`` steps."""
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

    It starts as a copy of them. Not a Module on purpose, as ``FrozenOriginal``: a saved run does
    not need it. The state of a job has it.
    """

    def __init__(self, encoder: nn.Module, text: nn.Module, log_scale: Tensor) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.text = copy.deepcopy(text).eval().requires_grad_(False)
        self.log_scale = log_scale.detach().clone()

    @torch.no_grad()
    def logits(self, images: Tensor, tokens: Tensor, bf16: bool) -> Tensor:
        """Logits (N, N) of ``images`` (N, 3, R, R) and texts of ``tokens`` (N, L)."""
        features = encode(self.encoder, images, bf16).features
        texts = encode(self.text, tokens, bf16).features
        return pair_logits(features, texts, self.log_scale.exp())

    @torch.no_grad()
    def follow(
        self, encoder: nn.Module, text: nn.Module, log_scale: Tensor, momentum: float
    ) -> None:
        """Keep ``momentum`` of itself, and take the rest from the weights being trained."""
        followed = [*encoder.parameters(), *text.parameters(), log_scale]
        averaged = [*self.encoder.parameters(), *self.text.parameters(), self.log_scale]
        for average, weight in zip(averaged, followed, strict=True):
            average.lerp_(weight.detach(), 1 - momentum)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the teacher with the module, to another device say."""
        self.encoder._apply(fn)
        self.text._apply(fn)
        self.log_scale = fn(self.log_scale)

    def state_dict(self) -> dict[str, Any]:
        """The state of both encoders and the logarithm of the scale."""
        return {
            "encoder": self.encoder.state_dict(),
            "text": self.text.state_dict(),
            "log_scale": self.log_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy what `state_dict` returned into the teacher."""
        self.encoder.load_state_dict(state["encoder"])
        self.text.load_state_dict(state["text"])
        self.log_scale.copy_(state["log_scale"])


def visual_projection(encoder: Any) -> Tensor:
    """The projection P (width, D) from an image encoder's last layer into the joint embedding.

    Raises CarftError for an encoder that has none.
    """
    if hasattr(encoder, "attnpool"):  # a ResNet of OpenAI's or open_clip's
        return _transposed_weight([encoder.attnpool.c_proj])
    if isinstance(getattr(encoder, "proj", None), Tensor):  # a ViT of theirs
        projection: Tensor = encoder.proj
        return projection
    # One of timm's ends in open_clip's head, or where that is empty in its own.
    layers = [*getattr(encoder, "head", nn.Module()).children()]
    return _transposed_weight(layers or [getattr(encoder, "trunk", encoder).head])


def _transposed_weight(layers: Sequence[nn.Module]) -> Tensor:
    """The weight of the only linear layer of ``layers``, as (inputs, outputs)."""
    linear_layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear_layers) != 1:
        raise CarftError(
            "carot_orthogonality needs an image encoder that ends in a linear projection; this one "
            f"has {len(linear_layers)} linear layers there. Set it to 0"
        )
    return linear_layers[0].weight.T
