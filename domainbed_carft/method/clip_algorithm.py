"""The half of our algorithms that trains: the frozen original, an optimizer, the steps.

Each of ``algorithms`` says what it trains and which terms are active; formulas are in
``objective``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method import (
    averages,
    dataset_facts,
    job_clip,
    job_facts,
    micro_batches,
    objective,
    optimizer,
    prompts,
    swad,
)
from domainbed_carft.method.blocks import configure_blocks
from domainbed_carft.method.clip_predictor import CLIPPredictor
from domainbed_carft.method.lora import LoRA, merged_weights, scale_of
from domainbed_carft.method.micro_batches import MicroBatch
from domainbed_carft.method.terms import Terms
from domainbed_carft.pictures.preprocessing import IMAGENET, Normalisation

Minibatches = Sequence[tuple[Tensor, Tensor]]
# Of the names in a state dict that no prediction needs.
TRAINING_PREFIXES = ("terms.", "lora.", "text.", "log_scale")


class CLIPAlgorithm(CLIPPredictor):
    """The body shared by our algorithms: built from a CLIP, and trained.

    ``input_shape``: (3, H, W). ``hparams``: as `resolve_hparams` completes them; they are not
    changed. Raises CarftError for hparams that are not resolved, for environments that normalise
    pictures differently, and where the CLIP has changed since.
    """

    # The hparams that the harness resolves where a job starts, and keeps where it is resumed.
    RESOLVED_HPARAMS = ("amp",)
    is_constant = False  # whether nothing that is trained changes what it predicts
    # The processes that each get a slice of every batch, where our harness has several.
    process_group: Any = None

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: dict[str, Any],
        **host_arguments: Any,
    ) -> None:
        facts = job_facts.recall(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams, **host_arguments)
        environments = facts.data.environments
        normalisation = dataset_facts.agreed_normalisation(environments) or IMAGENET
        mean, std = normalisation
        print(f"CLIP input: undoes mean {list(mean)}, std {list(std)}")

        # Making the modules must not move the generators that the training draws from.
        with torch.random.fork_rng(devices=[]):
            self._build(input_shape[-1], facts.prompts, normalisation)
        self.train()

    def _build(
        self, pixels: int, job_prompts: prompts.Prompts, normalisation: Normalisation
    ) -> None:
        """Build all modules for pictures of ``pixels`` a side."""
        clip_model = self._load_clip()
        self.register_text("words", job_prompts.as_json())
        if clip_model.architecture:
            self.register_text("architecture", clip_model.architecture)
        text_features = backbone.text_features(clip_model, job_prompts.rows)
        weights = objective.zero_shot_weights(text_features)
        preprocessing = clip_model.preprocessing
        if pixels != preprocessing.resolution:
            print(
                f"CLIP input: pictures are resized from {pixels} to {preprocessing.resolution} "
                "pixels"
            )

        encoder = clip_model.model.visual
        self.set_up(encoder, weights, clip_model.logit_scale, preprocessing, normalisation)
        self.set_up_training(clip_model, job_prompts, text_features)
        if self.trains_encoder:
            original = self.terms.original if self.terms else None
            original_encoder = original.encoder if original else None
            configure_blocks(self.encoder, original_encoder, self.hparams)

    def _load_clip(self) -> backbone.Backbone:
        """Load the CLIP; CarftError if it is not the one of the hparams, as in a changed file."""
        clip_model = job_clip.load(self.hparams)
        expected_digest = self.hparams["clip_digest"]
        if clip_model.digest != expected_digest:
            raise CarftError(
                f"{clip_model.path} has the SHA-256 {clip_model.digest}, expected "
                f"{expected_digest}, which it had when the job began; start the job again"
            )
        return clip_model

    def set_up_training(
        self, clip_model: backbone.Backbone, job_prompts: prompts.Prompts, text_features: Tensor
    ) -> None:
        """Build what only training needs, of the original and its ``text_features`` (M, K, D)."""
        hparams = self.hparams
        self.steps_taken = 0
        self.lp_steps = hparams["lp_steps"] if self.trains_encoder else 0
        if self.trains_encoder and self.term_weights is not None:
            self.terms = Terms(hparams, self.term_weights, clip_model, text_features)
        if self.trains_encoder and hparams["lora_rank"]:
            self.lora = LoRA(
                self.encoder,
                rank=hparams["lora_rank"],
                scale=scale_of(hparams),
                dropout=hparams["lora_dropout"],
            )

        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not trained:
            return
        self.optimizer = optimizer.adamw(trained.items(), hparams)
        self.scheduler = optimizer.schedule(self.optimizer, hparams, self.lp_steps)
        if self.lp_steps:
            # Adam's steps do not know the scale of a weight: folded, it needs the head's scale.
            rate = hparams["lp_lr"] * float(self.logit_scale / self.head_factor)
            self.probe_optimizer = torch.optim.Adam([self.head.weight], lr=rate)

        if hparams["average"] != "none" or hparams["wise_alpha"] < 1:
            averaged = self._averaged_weights(trained)
            kind = swad.SWAD if hparams["average"] == "swad" else averages.Predicting
            self.predicting = kind(averaged, {**hparams, "lp_steps": self.lp_steps})

    def _averaged_weights(self, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Name -> those weights that predict and that a step changes; of LoRA, the merged ones."""
        merged = {id(weight) for weight in merged_weights(self.encoder)} if self.lora else set()
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if id(parameter) in merged
            or (name in trained and not name.startswith(("terms.", "lora.")))
        }

    def update(
        self, minibatches: Minibatches | None = None, unlabeled: Any = None, **keywords: Any
    ) -> dict[str, float]:
        """Take one training step on (x, y) of each training environment.

        ``minibatches``: a list of (x, y), x (N, 3, H, W), y (N,), one per environment. SWAD's line
        of forks gives two lists by keyword instead, ``x`` and ``y``. Other arguments are not used.

        Returns ``loss``, its parts, unweighted, as ``loss_ce`` and ``loss_kl`` in nats, and
        ``context_agreement`` in [0, 1]. Without the KL term the last two come only on the steps on
        which the drift is measured, with FLYP, CaRot and in the first phase of LP-FT never.
        """
        if minibatches is None and not {"x", "y"} <= keywords.keys():
            raise CarftError(
                f"update got no pictures but the arguments {sorted(keywords) or 'none'}; expected "
                "update(minibatches), a list of (x, y), or update(x=..., y=...), two lists"
            )

        pairs = [*zip(keywords["x"], keywords["y"])] if minibatches is None else minibatches
        measurements = self.step_on_device(pairs)
        values = torch.stack([*measurements.values()]).tolist()  # waits once for all
        return dict(zip(measurements, values))

    def indivisible(self) -> str:
        """Why ``process_group`` cannot each take the step of a slice; "" if they can."""
        if self.trains_encoder and micro_batches.has_dropout(self.encoder):
            return "its encoder has dropout, which each would draw for itself"
        if self.lora and self.lora.has_dropout():
            return "lora_dropout is not 0, and each would draw for itself"
        return self.terms.indivisible() if self.terms else ""

    @property
    def wants_validation_loss(self) -> bool:  # type: ignore[override]
        """Whether `at_checkpoint` is to be called: SWAD ends a segment there."""
        return isinstance(self.predicting, swad.SWAD)

    def trained_logits(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of pictures, as `predict` has them, by the weights being trained."""
        return self.forward(x)

    def at_checkpoint(self, validation_loss: float) -> None:
        """Take the validation loss in nats of the weights being trained; SWAD decides by it."""
        if isinstance(self.predicting, swad.SWAD):
            self.predicting.at_checkpoint(validation_loss)

    def step_on_device(self, minibatches: Minibatches) -> dict[str, Tensor]:
        """Take the step of `update`, but return scalar tensors, for which the CPU does not wait."""
        if self.restored:
            raise CarftError(
                "a restored algorithm can predict but not train: its file holds no optimizer"
            )

        x, y = map(torch.cat, zip(*minibatches))
        batch = micro_batches.split_batch(y, self.hparams["micro_batch"], self.process_group)
        is_probing = self.steps_taken < self.lp_steps
        measurements = self._probing_step(x, batch) if is_probing else self._full_step(x, batch)

        self.steps_taken += 1
        if self.predicting:
            self.predicting.add(self.steps_taken)
        return micro_batches.all_reduce_measurements(measurements, self.process_group)

    def _full_step(self, x: Tensor, batch: Iterable[MicroBatch]) -> dict[str, Tensor]:
        """A step of all that is trained, by the gradients accumulated over the micro-batches."""
        self.zero_grad(set_to_none=True)
        measurements = micro_batches.accumulate_gradients(self._losses, x, batch)
        micro_batches.all_reduce_gradients(self, self.process_group)
        self._step_optimizer()
        return measurements

    def _probing_step(self, x: Tensor, batch: Iterable[MicroBatch]) -> dict[str, Tensor]:
        """A step of LP-FT's first phase (arXiv 2202.10054): the head alone, at its own rate."""
        parts = [*batch]
        with torch.no_grad():
            features = torch.cat([self.features(x[part.positions]) for part in parts])

        share = len(features) / parts[0].batch_size
        logits = self.class_logits(features)
        cross_entropy = F.cross_entropy(logits, parts[0].batch_labels) * share
        self.zero_grad(set_to_none=True)
        cross_entropy.backward()
        micro_batches.all_reduce_gradients(self, self.process_group)
        self.probe_optimizer.step()
        return dict.fromkeys(("loss", "loss_ce"), cross_entropy.detach())

    def _losses(self, x: Tensor, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """The loss of a micro-batch with pictures ``x``, and what its parts measure."""
        clip_pictures = self.input(x)
        encoding = self.encode(clip_pictures, self.terms.methods if self.terms else ())
        logits = self.class_logits(encoding.features)
        if self.terms and self.hparams["margin"]:
            logits = self.terms.with_margin(logits, micro_batch.labels)
        cross_entropy = F.cross_entropy(logits.float(), micro_batch.labels)
        if not self.terms:
            return {"loss": cross_entropy, "loss_ce": cross_entropy}

        terms = self.terms(
            step=self.steps_taken,
            pictures=clip_pictures,
            micro_batch=micro_batch,
            tuned=encoding,
            encoder=self.encoder,
        )
        loss = cross_entropy + terms.weighted_sum
        return {"loss": loss, "loss_ce": cross_entropy, **terms.measurements}

    def _step_optimizer(self) -> None:
        """Change the weights by their gradients, and the learning rate by its schedule."""
        if self.hparams["grad_clip"] > 0:
            trained = [p for p in self.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trained, self.hparams["grad_clip"])
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.lora:
            self.lora.merge(self.encoder)
        if self.terms:
            self.terms.pull_to_original(self.encoder, self.steps_taken, rate)

        if self.steps_taken == self.hparams["total_steps"]:
            warnings.warn(
                f"training continues after total_steps = {self.hparams['total_steps']}, where the "
                "schedule ends; set total_steps to the number of training steps",
                stacklevel=2,
            )
        self.scheduler.step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIPAlgorithm:
        super()._apply(fn, recurse)
        if getattr(self, "optimizer", None):  # a host may set it to None
            optimizer.fuse(self.optimizer)
        if self.predicting is not None:
            self.predicting.apply(fn)
        return self
