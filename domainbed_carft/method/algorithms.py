"""CAR-FT and the CLIP baselines it is compared with, as DomainBed algorithms.

One base class, ``CLIPAlgorithm``: an image encoder, a linear head, a frozen original, an optimiser.
Each algorithm sets which parameters it trains and the weight of the KL term.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from domainbed.algorithms import Algorithm
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method import (
    arguments,
    backbone,
    objective,
    observed,
    optimisation,
    pictures,
    prompts,
)


class Frozen:
    """The original image encoder: eval mode, no gradients, in inference precision.

    Deliberately not a Module: it must stay out of ``state_dict``, ``parameters`` and ``train``.
    """

    def __init__(self, encoder: nn.Module, precision: str) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.bf16 = precision == "bf16"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        return encode(self.encoder, pictures, self.bf16)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a resumed run rebuilds the original from CLIP's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to do."""


def encode(encoder: nn.Module, pictures: Tensor, bf16: bool) -> Tensor:
    """Image features (N, D), float32 and not normalised, of pictures as CLIP takes them."""
    with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=bf16):
        features: Tensor = encoder(pictures)
    return features.float()


class CLIPAlgorithm(Algorithm):
    """The body shared by our four algorithms.

    Arguments as DomainBed gives them: ``input_shape`` (3, H, W), ``num_classes``, ``num_domains``
    and the hparams of ``domainbed_carft.method.hparams``. Raises CarftError for hparams that are
    unknown or invalid, pictures without three channels, and classes without names.

    The state dict holds the image encoder, the head, the context weights and the words, but not the
    frozen original: a saved run needs no CLIP to predict again.
    """

    input: pictures.CLIPInput
    words: Tensor  # the text of prompts.as_json as uint8
    trains_encoder = True
    trains_head = True
    original: Frozen | None = None
    restored = False

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int,
        hparams: dict[str, Any],
    ) -> None:  # fmt: skip
        arguments.check(input_shape, hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        normalisation = arguments.checked_data(hparams)  # before anything takes time
        # Making the modules must not move the generators that the training draws from.
        with torch.random.fork_rng(devices=[]):
            clip_model = backbone.load(hparams["clip_backbone"])
            arguments.record(hparams, "clip_digest", clip_model.digest, "the CLIP is another")
            names = prompts.class_names(hparams, num_classes)
            templates = prompts.contexts(hparams["contexts"])
            print(f"CLIP classes: {', '.join(names)}")
            print(f"CLIP contexts: {len(templates)}, such as {templates[0]!r}")
            digest = prompts.digest(templates, names)
            difference = "class names or contexts differ"
            arguments.record(hparams, "prompts_digest", digest, difference)
            words = bytearray(prompts.as_json(templates, names).encode())
            self.register_buffer("words", torch.frombuffer(words, dtype=torch.uint8).clone())
            features = backbone.text_features(clip_model, prompts.prompts(templates, names))
            weights = objective.zero_shot_weights(features)
            self.set_up(clip_model.model.visual, weights, clip_model.logit_scale, normalisation)
        self.steps_taken = 0
        if self.trains_encoder and (self.kl_weight > 0 or hparams["drift_every"] > 0):
            self.original = Frozen(self.encoder, hparams["original_precision"])
        self.train()
        if self.trains_head:
            self.optimizer = optimisation.adamw(self.named_parameters(), hparams)
            self.scheduler = optimisation.schedule(self.optimizer, hparams)

    def set_up(
        self, encoder: nn.Module, weights: objective.ZeroShotWeights, logit_scale: float,
        normalisation: observed.Normalisation = pictures.IMAGENET,
    ) -> None:  # fmt: skip
        """Build the parts that both training and predicting need; a restored algorithm has no more.

        ``normalisation``: the data's, to undo; a saved run has it in its state dict.
        """
        num_classes, dim = weights.classes.shape
        self.encoder = encoder
        resolution = int(encoder.input_resolution)  # type: ignore[arg-type]
        self.input = pictures.CLIPInput(resolution, *normalisation)
        self.head = nn.Linear(dim, num_classes, bias=False)
        if self.hparams["head_init"] == "zero-shot" or not self.trains_head:
            self.head.weight.data.copy_(weights.classes)
        self.register_buffer("context_weights", weights.contexts.clone())
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.encoder.requires_grad_(self.trains_encoder)
        self.head.requires_grad_(self.trains_head)

    @classmethod
    def hparam_problems(cls, dataset: str, overrides: Mapping[str, Any]) -> list[str]:
        """The problems of ``--hparams``, for hosts that check before they load anything."""
        return arguments.refusals(cls.__name__, dataset, overrides)

    @property
    def kl_weight(self) -> float:
        """The weight of the KL term in the loss; 0 except for CARFT."""
        return 0.0

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of pictures (N, 3, H, W) normalised as the data set does."""
        return self.class_logits(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """The same as ``predict``; weight averaging (SWAD) calls the module itself."""
        return self.predict(x)

    def features(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of pictures as ``predict`` takes them."""
        return encode(self.encoder, self.input(x), self.hparams["amp"] == "bf16")

    def class_logits(self, features: Tensor) -> Tensor:
        """Class logits (N, K) of image features (N, D)."""
        logits: Tensor = self.logit_scale * self.head(F.normalize(features, dim=-1))
        return logits

    def context_logits(self, features: Tensor) -> Tensor:
        """Context logits (N, M) of image features (N, D), of this encoder or of the original."""
        scale: float | str = self.hparams["context_scale"]
        t = self.logit_scale if isinstance(scale, str) else scale
        return objective.context_logits(features, self.context_weights, t)

    def train(self, mode: bool = True) -> CLIPAlgorithm:
        """Train mode, except for batch norm (OpenAI's ResNets), which keeps CLIP's statistics.

        With the statistics of a batch, the encoder would differ from the original even before the
        first step, and from the encoder that is evaluated.
        """
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def update(
        self, minibatches: arguments.Minibatches | None = None, unlabeled: Any = None, **more: Any
    ) -> dict[str, float]:
        """One training step on (x, y) of each training environment.

        ``minibatches``: a list of (x, y), x (N, 3, H, W), y (N,), one an environment. SWAD's line
        of forks gives two lists by keyword instead, ``x`` and ``y``. Unlabeled pictures and further
        keyword arguments are not used.

        Returns ``loss``, its parts ``loss_ce`` and ``loss_kl`` (unweighted), in nats, and
        ``context_agreement`` in [0, 1]. CLIPFineTune has the last two only on the steps on which
        it measures the drift (hparam ``drift_every``).
        """
        if self.restored:
            raise CarftError(
                "a restored algorithm can predict but not train, because the file holds no "
                "optimizer. Train from the start instead"
            )
        xs, ys = arguments.pictures_and_labels(minibatches, more)
        x, y = torch.cat(xs), torch.cat(ys)
        measured = self._loss(x, y)
        self._step(measured["loss"])
        return {name: float(value.detach()) for name, value in measured.items()}

    def _loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        clip_pictures = self.input(x)
        features = encode(self.encoder, clip_pictures, self.hparams["amp"] == "bf16")
        logits = self.class_logits(features)
        every = self.hparams["drift_every"]
        drifts = self.trains_encoder and every > 0 and self.steps_taken % every == 0
        if not (self.kl_weight > 0 or drifts):
            cross_entropy = F.cross_entropy(logits, y)
            return {"loss": cross_entropy, "loss_ce": cross_entropy}
        assert self.original is not None  # made wherever contexts are compared
        original = self.context_logits(self.original(clip_pictures))
        with torch.set_grad_enabled(self.kl_weight > 0):
            tuned = self.context_logits(features)
        kl = {"kl_weight": self.kl_weight, "kl_direction": self.hparams["kl_direction"]}
        loss = objective.carft_loss(logits, y, original, tuned, **kl)
        return {
            "loss": loss.total,
            "loss_ce": loss.cross_entropy,
            "loss_kl": loss.kl,
            "context_agreement": objective.context_agreement(original, tuned),
        }

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.hparams["grad_clip"] > 0:
            trained = [p for p in self.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trained, self.hparams["grad_clip"])
        self.optimizer.step()
        self.steps_taken += 1
        if self.steps_taken == self.hparams["total_steps"] + 1:
            warnings.warn(
                f"training continues after total_steps = {self.hparams['total_steps']}, where the "
                "schedule ends; set total_steps to the number of training steps",
                stacklevel=2,
            )
        self.scheduler.step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIPAlgorithm:
        super()._apply(fn, recurse)
        if self.original is not None:
            self.original.encoder._apply(fn)
        return self


class CARFT(CLIPAlgorithm):
    """Context-aware robust fine-tuning, arXiv 2211.16175: cross-entropy + kl_weight * KL."""

    @property
    def kl_weight(self) -> float:
        return float(self.hparams["kl_weight"])


class CLIPFineTune(CLIPAlgorithm):
    """Plain fine-tuning of the image encoder and the zero-shot head: CARFT without the KL term."""


class CLIPLinearProbe(CLIPAlgorithm):
    """Only the head is trained, from W_cls, on the original encoder's features."""

    trains_encoder = False


class CLIPZeroShot(CLIPLinearProbe):
    """Nothing is trained: the original encoder under W_cls. ``update`` only measures the loss."""

    trains_head = False

    def _step(self, loss: Tensor) -> None:
        pass
