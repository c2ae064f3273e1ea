"""The base class of all algorithms: built from a CLIP model, trained, and used for prediction.

A method derives from `CLIPAlgorithm` and usually declares its hyperparameters and overrides `loss`.
Formulas shared by several methods are in `objective`, penalties that any method can add in
`penalties`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.escaping import print_lines
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.dataset_facts import NO_FACTS, DatasetFacts
from domainbed_carft.images.preprocessing import IMAGENET, Normalisation, Preprocessing
from domainbed_carft.jobs.facts import CHANGED_HPARAMS
from domainbed_carft.method import averages, job, objective, optim, penalties, resolution
from domainbed_carft.method.batch import (
    Batch,
    MicroBatch,
    accumulate_gradients,
    all_reduce_gradients,
    all_reduce_measurements,
    has_dropout,
    require_minibatches,
    split_batch,
)
from domainbed_carft.method.encoders import FrozenOriginal, configure_blocks, encode
from domainbed_carft.method.hosted import HostedAlgorithm, Minibatches, pair_minibatches
from domainbed_carft.method.hparams import Hparam
from domainbed_carft.method.lora import LoRA, get_merged_weights, lora_scale
from domainbed_carft.method.prompts import Prompts
from domainbed_carft.styles import Style as Style


class CLIPAlgorithm(HostedAlgorithm):
    """An image encoder with a head over classes and one over contexts, in DomainBed's interface.

    The constructor takes DomainBed's four arguments and works in any host or without one. Without
    the facts of a dataset, images are expected with DomainBed's normalisation.

    A method declares the class attributes that differ from the defaults, and overrides hooks:
    `loss`, `build_for_training`, `build_for_prediction`, `after_step`, `prediction_weights`,
    `trained_logits`, `single_process_reason`, `total_steps_reasons` and `conflicts`.

    The state dict holds the weights used for prediction, the context weights and the prompts, but
    not the frozen original, so a saved run predicts without the CLIP checkpoint. If the weights
    used for prediction differ from the trained weights, the state of ``predicting`` has the latter.

    Args:
        input_shape: (3, H, W) of the images.
        num_classes: number of classes, K.
        num_domains: number of training environments.
        hparams: any mapping, which is not changed. Missing names get their defaults. Its
            ``class_names`` is a dataset, such as "dataset:PACS", or the list of names.
        dataset_facts: facts of the dataset, above all its normalisation; None if unknown.
        **host_arguments: further arguments that a fork passes.

    Raises:
        CarftError: if hparams or data are invalid, or if there are no ``num_classes`` class names.

    Attributes:
        HPARAMS: hyperparameters of the method. One with the name of a common one replaces it.
        STYLE: colour, marker, dash and row of the method in figures and tables.
        EXEMPT_FROM: name of a check of `carft check` -> the reason why the method does not pass it.
        trains_encoder: True if the image encoder is trained.
        trains_head: True if the class head is trained.
        trains_text: True if the text encoder is trained.
        takes_penalties: True if `penalties` can be added to the loss and the drift is measured.
        uses_original: True if the loss uses ``batch.original``.
        is_constant: True if training never changes the predictions.
        min_contexts: number of contexts that the method needs. A ``kl_weight`` above 0 needs two.
        process_group: processes that share each batch, None for a single process.
        hparams: the complete hyperparameters.
        facts: facts found about the job, as stored in the records.
        input: module from dataset images (N, 3, H, W) to CLIP's input (N, 3, R, R).
        encoder: the image encoder that is trained.
        head: linear layer from unit features (D,) to classes (K,).
        head_factor: factor of the class logits: 1 if the head contains CLIP's logit scale.
        context_weights: W_ctx (M, D), with rows of length 1.
        logit_scale: CLIP's logit scale.
        words: text of `Prompts.as_json` as uint8.
        architecture: open_clip's configuration of the CLIP model as uint8. OpenAI's have none.
        terms: the active penalties, None if the method takes no penalties.
        lora: low-rank factors trained instead of the encoder, None without LoRA.
        original: the frozen original image encoder, None if unused.
        optimizer: AdamW over all trained parameters, None if there are none.
        scheduler: the schedule of its learning rate.
        predicting: the average or interpolation that predicts, None if the trained weights do.
        normalisation: mean and std of the dataset's images, None if only the weights contain them.
        prediction_names: names in the state dict that prediction needs: those that
            `build_for_prediction` and the texts add.
        restored: True if loaded from a saved run, which can predict but not train.
        lp_steps: number of first steps that train only the head.
    """

    HPARAMS: ClassVar[tuple[Hparam, ...]] = ()
    STYLE: ClassVar[Style | None] = None
    EXEMPT_FROM: ClassVar[Mapping[str, str]] = {}
    trains_encoder = True
    trains_head = True
    trains_text = False
    takes_penalties = True
    uses_original = True
    is_constant = False
    min_contexts = 1
    process_group: Any = None

    input: CLIPInput
    words: Tensor
    architecture: Tensor
    head_factor: Tensor
    context_weights: Tensor
    logit_scale: Tensor
    terms: penalties.Penalties | None
    lora: LoRA | None
    normalisation: Normalisation | None = None
    original: FrozenOriginal | None = None
    optimizer: torch.optim.AdamW | None = None
    scheduler: torch.optim.lr_scheduler.LambdaLR
    predicting: averages.PredictionWeights | None = None
    prediction_names: tuple[str, ...] = ()
    restored = False
    lp_steps = 0

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
        dataset_facts: DatasetFacts | None = None,
        **host_arguments: Any,
    ) -> None:
        complete = resolution.complete(type(self), hparams)
        problems = map(str, resolution.find_problems(type(self), complete))
        raise_for([*problems, *job.find_shape_problems(input_shape)])
        facts = job.find_job_facts(
            type(self), complete, num_classes, data=dataset_facts or NO_FACTS
        )
        print_lines(*facts.describe())

        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_domains=num_domains,
            hparams=complete,
            **host_arguments,
        )
        self.facts = {**facts.as_record(), **self.get_method_facts()}
        # A resumed job gets the precision that "auto" found before, which is no change.
        amp = "auto" if facts.amp == job.resolve_amp("auto") else facts.amp
        changed_hparams = resolution.find_changed_hparams(type(self), {**complete, "amp": amp})
        if changed_hparams is not None:
            self.facts[CHANGED_HPARAMS] = changed_hparams
        self.bf16 = facts.amp == "bf16"
        self.normalisation = facts.normalisation

        # Building the modules must not advance the random generators used in training.
        with torch.random.fork_rng(devices=[]):
            self._build(input_shape[-1], facts.prompts, facts.normalisation)
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if trained:
            penalty_groups = self.terms.parameter_groups(complete["lr"]) if self.terms else []
            self.optimizer = optim.build_adamw(trained, penalty_groups, complete)
            self.scheduler = optim.build_schedule(self.optimizer, complete)
            self.predicting = averages.build(self._find_averaged_weights(trained), complete)
        self.train()

    def _build(self, pixels: int, prompts: Prompts, normalisation: Normalisation) -> None:
        """Build all modules for images of ``pixels`` x ``pixels``."""
        clip_model = backbone.load(self.hparams["clip_backbone"])
        self.register_text("words", prompts.as_json())
        if clip_model.architecture:
            self.register_text("architecture", clip_model.architecture)
        text_features = backbone.encode_prompts(clip_model, prompts.by_context)
        weights = objective.zero_shot_weights(text_features)
        preprocessing = clip_model.preprocessing
        if pixels != preprocessing.resolution:
            print(
                f"CLIP input: images are resized from {pixels} to {preprocessing.resolution} pixels"
            )

        encoder = clip_model.model.visual
        self.build_for_prediction(
            encoder, weights, clip_model.logit_scale, preprocessing, normalisation
        )
        self.note_prediction_names()
        self.build_for_training(clip_model, prompts, text_features)
        if self.trains_encoder:
            configure_blocks(self.encoder, self.original, self.hparams)

    # Hyperparameters

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """Return values that are valid on their own but not for this method.

        Args:
            hparams: complete hyperparameters, each of them valid.

        Returns:
            Name of each conflicting hparam -> the expected value, in words.
        """
        return {}

    @classmethod
    def total_steps_reasons(cls, hparams: Mapping[str, Any]) -> list[str]:
        """Return why this method cannot be trained without a given ``total_steps``.

        Args:
            hparams: complete hyperparameters.

        Returns:
            One clause for each part of the method that depends on the last step, in addition to
            the schedule and the average.
        """
        return []

    # Modules

    def register_text(self, name: str, text: str) -> None:
        """Store a text in the state dict, as a uint8 buffer of its UTF-8 bytes."""
        encoded = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self.register_buffer(name, encoded.clone())

    def build_for_prediction(
        self,
        encoder: nn.Module,
        weights: objective.ZeroShotWeights,
        logit_scale: float,
        preprocessing: Preprocessing,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        """Build the modules needed for both training and prediction, also in a restored run.

        A restored run calls neither the constructor nor `build_for_training`, so everything that
        `predict` uses must be built here.

        Args:
            encoder: the image encoder.
            weights: zero-shot weights of classes (K, D) and contexts (M, D).
            logit_scale: CLIP's logit scale.
            preprocessing: the images that the encoder expects.
            normalisation: mean and std of the dataset's images, to be undone.
        """
        self.encoder = encoder
        self.terms = None
        self.lora = None
        self.input = CLIPInput(preprocessing, *normalisation)

        num_classes, dim = weights.classes.shape
        self.head = nn.Linear(dim, num_classes)
        self.head.bias.data.zero_()
        is_random = self.hparams["head_init"] == "random" and self.trains_head
        # With the scale folded into it, a random or a probed head would hardly move.
        can_fold = self.trains_encoder and self.trains_head and not is_random
        is_folded = self.hparams["head_scale"] == "folded" and can_fold
        if not is_random:
            self.head.weight.data.copy_(weights.classes * (logit_scale if is_folded else 1.0))

        self.register_buffer("head_factor", torch.tensor(1.0 if is_folded else logit_scale))
        self.register_buffer("context_weights", weights.contexts.clone())
        self.register_buffer("logit_scale", torch.tensor(logit_scale))

        self.encoder.requires_grad_(self.trains_encoder)
        self.head.requires_grad_(self.trains_head)
        self.head.bias.requires_grad_(is_folded)

    def build_for_training(
        self, clip_model: backbone.Backbone, prompts: Prompts, text_features: Tensor
    ) -> None:
        """Build the modules, buffers and parameters needed only for training.

        They are in the state dict and in weights files, but a restored run does not have them.

        Args:
            clip_model: the loaded CLIP model.
            prompts: contexts and class names.
            text_features: (M, K, D) of M contexts with K classes, not normalised.
        """
        hparams = self.hparams
        self.steps_taken = 0
        self.lp_steps = hparams.get("lp_steps", 0)
        # A distribution over a single context cannot drift.
        self.drift_every = hparams["drift_every"] if len(text_features) > 1 else 0
        if self.trains_encoder and self.takes_penalties:
            self.terms = penalties.Penalties(hparams, clip_model)
            if self.uses_original or self.terms.active or self.drift_every:
                self.original = FrozenOriginal(
                    self.encoder,
                    bf16=self.bf16,
                    keep_weights=bool(hparams["sp_weight"]),  # L2-SP compares weights
                )
        if self.trains_encoder and hparams["lora_rank"]:
            self.lora = LoRA(
                self.encoder,
                rank=hparams["lora_rank"],
                scale=lora_scale(hparams),
                dropout=hparams["lora_dropout"],
            )

    def _find_averaged_weights(
        self, trained: Mapping[str, nn.Parameter]
    ) -> dict[str, nn.Parameter]:
        """Return by name the weights that steps change and that predict (merged with LoRA)."""
        merged = {id(w) for w in get_merged_weights(self.encoder)} if self.lora else set()
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if id(parameter) in merged
            or (name in trained and not name.startswith(("terms.", "lora.")))
        }

    # Prediction

    def predict(self, x: Tensor) -> Tensor:
        """Return class logits (N, K) of images (N, 3, H, W) with the dataset's normalisation."""
        weights = self.prediction_weights()
        logits: Tensor = functional_call(self, weights, (x,)) if weights else self.forward(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits (N, K) of the trained weights, not of their average."""
        return self.class_logits(self.features(x))

    def trained_logits(self, x: Tensor) -> Tensor:
        """Return class logits (N, K) of the trained weights, for validation.

        Args:
            x: images (N, 3, H, W), as for `predict`.
        """
        return self.forward(x)

    def prediction_weights(self) -> dict[str, Tensor]:
        """Return the weights used for prediction.

        Returns:
            Name -> tensor, empty if the trained weights predict.
        """
        return self.predicting.weights() if self.predicting else {}

    def features(self, x: Tensor) -> Tensor:
        """Return image features (N, D), not normalised, of images (N, 3, H, W) as for `predict`."""
        return encode(self.encoder, self.input(x), self.bf16).features

    def class_logits(self, features: Tensor) -> Tensor:
        """Return class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.head.weight, self.head.bias, self.head_factor)

    def context_logits(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (N, M) of features (N, D) over the contexts, or over text ``rows`` (M, D).

        The scale is the hparam ``context_scale``: a number, or "logit_scale" for CLIP's.
        """
        rows = self.context_weights if rows is None else rows
        given = self.hparams["context_scale"]
        scale = self.logit_scale if isinstance(given, str) else given
        return objective.context_logits(features, rows, scale)

    # Training

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a micro-batch, by default the cross-entropy of the class logits.

        Args:
            batch: the micro-batch, with images, labels and the features of both encoders.

        Returns:
            ``loss``, the scalar to minimise, and further scalars for the records, such as
            ``loss_ce``.
        """
        cross_entropy = F.cross_entropy(
            self.class_logits(batch.tuned.features).float(), batch.labels
        )
        return {"loss": cross_entropy, "loss_ce": cross_entropy}

    def update(
        self, minibatches: Minibatches | None = None, unlabeled: Any = None, **keywords: Any
    ) -> dict[str, float]:
        """Take one training step.

        Args:
            minibatches: one pair (x, y) for each training environment, with images x (N, 3, H, W)
                and labels y (N,).
            unlabeled: not used.
            **keywords: SWAD and its forks pass two lists ``x`` and ``y`` instead of
                ``minibatches``. Other keywords are not used.

        Returns:
            ``loss``, its unweighted parts, such as ``loss_ce`` and ``loss_kl`` in nats, and
            ``context_agreement`` in [0, 1]. Without the KL term, ``loss_kl`` and
            ``context_agreement`` are returned only on steps that measure the drift, and never by
            FLYP, CaRot and the first phase of LP-FT.

        Raises:
            CarftError: if the arguments of the first step are invalid, or in a restored run.
        """
        pairs = pair_minibatches(minibatches, keywords)
        if not (self.restored or self.steps_taken):
            require_minibatches(pairs, self.head.out_features)
        measurements = self.step_on_device(pairs)
        values = torch.stack([*measurements.values()]).tolist()  # waits once for all
        return dict(zip(measurements, values))

    def step_on_device(self, minibatches: Minibatches) -> dict[str, Tensor]:
        """Take the step of `update`, but return scalar tensors without waiting for the device."""
        if self.restored:
            raise CarftError(
                "a restored algorithm can predict but not train: its file has no optimizer state"
            )

        x, y = map(torch.cat, zip(*minibatches))
        parts = split_batch(y, self.hparams["micro_batch"], self.process_group)
        measurements = self.take_step(x, parts)

        self.steps_taken += 1
        if self.predicting:
            self.predicting.add(self.steps_taken)
        return all_reduce_measurements(measurements, self.process_group)

    def take_step(self, x: Tensor, parts: Iterable[MicroBatch]) -> dict[str, Tensor]:
        """Take a step with the gradients accumulated over micro-batches.

        Args:
            x: images (N, 3, H, W) of the batch.
            parts: the micro-batches that the images are split into.

        Returns:
            Name -> scalar tensor, averaged over the batch.
        """
        self.zero_grad(set_to_none=True)
        measurements = accumulate_gradients(self._measure, x, parts)
        all_reduce_gradients(self, self.process_group)
        self._step_optimizer()
        self.after_step()
        return measurements

    def _measure(self, x: Tensor, part: MicroBatch) -> dict[str, Tensor]:
        """Return the loss with penalties, and its parts, of a micro-batch of images ``x``."""
        batch = Batch(
            images=self.input(x),
            part=part,
            encoder=self.encoder,
            frozen=self.original,
            bf16=self.bf16,
            places=self.terms.places if self.terms else {},
        )
        measurements = self.loss(batch)
        if not self.terms:
            return measurements

        # Before the drift, which computes features without gradients if nothing has yet.
        measurements = self.terms.add_to(measurements, batch)
        if "loss_kl" in measurements or (
            self.drift_every > 0 and self.steps_taken % self.drift_every == 0
        ):
            measurements = self._add_drift(measurements, batch)
        return measurements

    @torch.no_grad()
    def _add_drift(self, measurements: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the measurements with KL and agreement of both encoders' context distributions.

        A KL that the loss has already measured is kept.
        """
        original_logits = self.context_logits(batch.original.features)
        tuned_logits = self.context_logits(batch.tuned.features)
        added = dict(measurements)
        if "loss_kl" not in added:
            direction = self.hparams["kl_direction"]
            added["loss_kl"] = objective.context_kl(original_logits, tuned_logits, direction)
        added["context_agreement"] = objective.context_agreement(original_logits, tuned_logits)
        return added

    def _step_optimizer(self) -> None:
        """Update the weights by their gradients, and the learning rate by its schedule."""
        if self.optimizer is None:
            return
        if self.hparams["grad_clip"] > 0:
            parameters = [p for p in self.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(parameters, self.hparams["grad_clip"])
        self.optimizer.step()
        if self.lora:
            self.lora.merge(self.encoder)
        self.scheduler.step()

    def after_step(self) -> None:
        """Run after each optimizer step. ``steps_taken`` does not count the step yet."""

    def single_process_reason(self) -> str:
        """Return the reason why several processes cannot share a batch.

        Returns:
            The end of a sentence, "" if each process can compute a slice of the batch.
        """
        if self.trains_encoder and has_dropout(self.encoder):
            return "its encoder has dropout, which each process would draw separately"
        if self.lora and self.lora.has_dropout():
            return "lora_dropout is not 0, and each process would draw it separately"
        return ""
