"""The body that our algorithms share: built from a CLIP, trained, and asked for predictions.

A method derives from `CLIPAlgorithm` and usually says two things: its hyperparameters, and the loss
of a micro-batch. Formulas that several share are in `objective`, penalties that any method may add
in `penalties`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from domainbed.algorithms import Algorithm
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError, HparamProblem, raise_for
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET, Normalisation, Preprocessing
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.jobs.algorithms import Style as Style
from domainbed_carft.machine import devices
from domainbed_carft.method import (
    averages,
    dataset_facts,
    hparam_checks,
    job,
    objective,
    penalties,
)
from domainbed_carft.method import (
    hparams as hparam_module,
)
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
from domainbed_carft.method.encoders import (
    FrozenOriginal,
    configure_blocks,
    encode,
)
from domainbed_carft.method.hparams import Conditions, Hparam
from domainbed_carft.method.lora import HPARAMS as LORA_HPARAMS
from domainbed_carft.method.lora import LoRA, lora_scale, merged_weights
from domainbed_carft.method.parts import PARTS
from domainbed_carft.method.prompts import Prompts
from domainbed_carft.text import printable

Minibatches = Sequence[tuple[Tensor, Tensor]]
# Of the names in a state dict that no prediction needs.
TRAINING_PREFIXES = ("terms.", "lora.", "text.", "log_scale")
# The hyperparameters without an effect on an algorithm that trains nothing.
TRAINING_HPARAMS = {
    *"head_init head_scale lr weight_decay weight_decay_all lr_schedule warmup_steps".split(),
    *"total_steps grad_clip checkpoint_blocks compile_blocks".split(),
    *(hparam.name for hparam in (*averages.HPARAMS, *LORA_HPARAMS)),
}
GIVE_STEPS = "give steps=..., the number of updates that you will take"
MIRO_RATE_FACTOR = 10  # of MIRO's variances (khanrc/miro, domainbed/algorithms/miro.py)
# Parameters with these names do not decay; the last one is timm's.
EMBEDDINGS = {
    "class_embedding",
    "positional_embedding",
    "token_embedding",
    "cls_token",
    "pos_embed",
    "latent",
}


class CLIPAlgorithm(Algorithm):
    """An image encoder under a head over classes and one over contexts, in DomainBed's interface.

    It is built from four arguments, in any host or without one. ``input_shape``: (3, H, W) of the
    images. ``hparams``: any mapping, which is not changed; names that it lacks get their
    defaults. Its ``class_names`` names the dataset, "dataset:PACS", or is the list of names. The
    facts of a dataset that this process has built, above all how it normalises images, are found
    by them; without them images are taken as normalised as DomainBed does. Raises CarftError for
    hparams and data that do not fit, and where nothing gives ``num_classes`` names.

    A method declares, in its class:

    - ``HPARAMS``: its own hyperparameters; one with the name of a common one takes its place
    - ``STYLE``: its colour, marker, dash and row in figures and tables
    - ``trains_encoder``, ``trains_head``, ``trains_text``: what it trains
    - ``takes_penalties``: whether `penalties` may be added to its loss, and its drift is measured
    - ``uses_original``: whether its loss asks for ``batch.original``

    and overrides what it does differently:

    - `loss` (batch): the loss of a micro-batch, and what its parts measure
    - `build_for_training`: modules, buffers and parameters that only training needs
    - `build_for_prediction`: all that a run restored from a file has
    - `after_step`: what follows an optimizer's step
    - `prediction_weights`: the weights that predict, where they are not those being trained
    - `trained_logits`: class logits by the weights being trained
    - `indivisible`: why several processes cannot share a batch
    - `total_steps_problems`: what of it needs ``total_steps``

    ``hparams``: of the algorithm, complete. ``facts``: what it has found out about its job, as the
    records have it. The state dict holds the weights that predict, the context weights and the
    prompts, but not the frozen original: a saved run needs no CLIP to predict again. Where the
    weights that predict are not those that are trained, the latter are in the state of
    ``predicting``.
    """

    HPARAMS: ClassVar[tuple[Hparam, ...]] = ()
    STYLE: ClassVar[Style | None] = None
    trains_encoder = True
    trains_head = True
    trains_text = False
    takes_penalties = True
    uses_original = True
    EXTRA_HPARAMS = hparam_module.PINNABLE
    # The hparams for which records have what they are on the job's machine.
    RESOLVED_HPARAMS = ("amp",)
    # The SHA-256 and the name of the user's file that declares it; "" for this package's methods.
    method_digest = ""
    method_file = ""
    is_constant = False  # whether nothing that is trained changes what it predicts
    # The processes that each get a slice of every batch, where our harness has several.
    process_group: Any = None

    input: CLIPInput
    words: Tensor  # the text of prompts.as_json as uint8
    architecture: Tensor  # open_clip's configuration of the CLIP as uint8; OpenAI's have none
    head_factor: Tensor
    context_weights: Tensor
    logit_scale: Tensor
    terms: penalties.Penalties | None
    lora: LoRA | None  # where low-rank factors are trained instead of the encoder
    # Mean and std of the images that it takes; None where only the weights know them.
    normalisation: Normalisation | None = None
    original: FrozenOriginal | None = None
    predicting: averages.PredictionWeights | None = None
    restored = False
    lp_steps = 0  # how many steps train the head alone, first

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
        **host_arguments: Any,
    ) -> None:
        """Build it; ``host_arguments``: what a fork passes beyond upstream's four."""
        complete = self.complete_hparams(hparams)
        raise_for(hparam_checks.job_problems(type(self), input_shape, complete))
        facts = job.find_job_facts(complete, num_classes, self.has_kl(complete))
        print(*map(printable, facts.describe()), sep="\n")

        self._initialize_host_class(
            input_shape=input_shape,
            num_classes=num_classes,
            num_domains=num_domains,
            hparams=complete,
            **host_arguments,
        )
        self.facts = facts.as_record()
        if self.method_digest:
            self.facts["method_digest"] = self.method_digest
            self.facts["method_file"] = self.method_file
        self.bf16 = facts.amp == "bf16"
        environments = facts.data.environments
        normalisation = dataset_facts.common_normalisation(environments) or IMAGENET
        self.normalisation = normalisation
        mean, std = normalisation
        print(f"CLIP input: undoes mean {list(mean)}, std {list(std)}")

        # Making the modules must not move the generators that the training draws from.
        with torch.random.fork_rng(devices=[]):
            self._build(input_shape[-1], facts.prompts, normalisation)
        self.train()

    def _initialize_host_class(self, **arguments: Any) -> None:
        """Call the constructor of the host's `Algorithm` with those of ``arguments`` it takes."""
        names = inspect.signature(Algorithm.__init__).parameters
        super().__init__(**{name: arguments[name] for name in names if name in arguments})
        self.hparams = arguments["hparams"]

        # DomainBed-v2 sets them to None, for its subclasses to replace.
        for name in PARTS:
            with contextlib.suppress(AttributeError):
                delattr(self, name)

    def _build(self, pixels: int, prompts: Prompts, normalisation: Normalisation) -> None:
        """Build all modules for images of ``pixels`` a side."""
        clip_model = backbone.load(self.hparams["clip_backbone"])
        self.register_text("words", prompts.as_json())
        if clip_model.architecture:
            self.register_text("architecture", clip_model.architecture)
        text_features = backbone.encode_prompts(clip_model, prompts.rows)
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
        self.build_for_training(clip_model, prompts, text_features)
        self._build_optimizer()
        if self.trains_encoder:
            configure_blocks(self.encoder, self.original, self.hparams)

    # Hyperparameters

    @classmethod
    def hparams_by_name(cls) -> dict[str, Hparam]:
        """Name -> hyperparameter, of all that this algorithm has."""
        common = (
            *hparam_module.COMMON,
            *averages.HPARAMS,
            *LORA_HPARAMS,
            *penalties.HPARAMS,
        )
        declared = [
            hparam for base in reversed(cls.__mro__) for hparam in vars(base).get("HPARAMS", ())
        ]
        return {hparam.name: hparam for hparam in (*common, *declared)}

    @classmethod
    def complete_hparams(cls, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """These ``hparams``, and the defaults of the names that they lack.

        A notebook that builds an algorithm has asked no host's registry for them.
        """
        given = dict(hparams)
        dataset = dataset_facts.parse_dataset_name(given.get("class_names")) or ""
        conditions = Conditions(dataset, str(given.get("clip_backbone", "")))
        defaults = hparam_module.get_values(cls.hparams_by_name(), conditions)
        if not dataset:
            del defaults["class_names"]
        return {**defaults, **given}

    @classmethod
    def hparam_problems(
        cls, dataset: str, overrides: Mapping[str, Any]
    ) -> list[str | HparamProblem]:
        """The problems of ``--hparams``, for hosts that check before they load anything."""
        return hparam_checks.hparam_problems(cls, dataset, overrides)

    @classmethod
    def conflicts(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        """Name -> what is expected, of values that this method does not go with."""
        return {}

    @classmethod
    def total_steps_problems(cls, hparams: Mapping[str, Any]) -> list[str]:
        """What cannot be trained with these complete ``hparams`` if no ``total_steps`` is given."""
        trains = cls.trains_encoder or cls.trains_head or cls.trains_text
        problems = []
        if trains and hparams["lr_schedule"] == "cosine":
            problems.append(
                "lr_schedule 'cosine' falls to 0 at the last step, which is unknown; "
                f"{GIVE_STEPS}, or set lr_schedule to 'constant'"
            )
        if trains and hparams["average"] == "beta":
            problems.append(
                "average 'beta' weights the steps up to the last one, which is unknown; "
                f"{GIVE_STEPS}, or set average to 'none', 'sma' or 'ema'"
            )
        return problems

    @classmethod
    def implied_hparams(
        cls,
        dataset: str,
        overrides: Mapping[str, Any],
        random_seed: int | None,
        steps: int | None = None,
    ) -> dict[str, Any]:
        """The hparams that follow from what a user sets: from ``clip_backbone`` and the steps.

        ``random_seed``: of a random draw; None for the defaults. What the user sets comes last.
        """
        clip_backbone = str(overrides.get("clip_backbone", ""))
        conditions = Conditions(dataset, clip_backbone, steps)
        hparams = cls.hparams_by_name()
        usual_values = hparam_module.get_values(hparams, Conditions(dataset), random_seed)
        values = hparam_module.get_values(hparams, conditions, random_seed)
        return {
            name: value
            for name, value in values.items()
            if value != usual_values[name] and name not in overrides
        }

    @classmethod
    def unused_hparams(cls, names: Sequence[str]) -> list[str]:
        """The ``names`` that change nothing here, such as penalties that this cannot add."""
        read = {*cls.hparams_by_name(), *cls.EXTRA_HPARAMS}
        if not (cls.trains_encoder and cls.takes_penalties):
            read -= {"drift_every", "kl_direction"}
            read -= {hparam.name for hparam in penalties.HPARAMS}
        if cls.is_constant:
            read -= TRAINING_HPARAMS
        return [name for name in names if name not in read]

    @classmethod
    def has_kl(cls, hparams: Mapping[str, Any]) -> bool:
        """Whether the loss compares distributions over contexts, which takes two of them."""
        return False

    def recorded_facts(self) -> dict[str, Any]:
        """What records and files of weights hold beside the hparams: ``facts``."""
        return self.facts

    wanted_images = staticmethod(job.wanted_images)

    # What it consists of

    def register_text(self, name: str, text: str) -> None:
        """Put a text into the state dict, as a buffer of its bytes."""
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
        """Build what training and predicting need; ``normalisation``: the data's, to undo."""
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
        """Build what only training needs, of the CLIP and its ``text_features`` (M, K, D)."""
        hparams = self.hparams
        self.steps_taken = 0
        # Over a single context there is no distribution that could drift.
        self.drift_every = hparams["drift_every"] if len(text_features) > 1 else 0
        if self.trains_encoder and self.takes_penalties:
            self.terms = penalties.Penalties(hparams, clip_model)
            if self.uses_original or self.terms.active or self.drift_every:
                self.original = FrozenOriginal(
                    self.encoder,
                    bf16=self.bf16,
                    keep_weights=bool(hparams["sp_weight"]),  # which compares weights
                )
        if self.trains_encoder and hparams["lora_rank"]:
            self.lora = LoRA(
                self.encoder,
                rank=hparams["lora_rank"],
                scale=lora_scale(hparams),
                dropout=hparams["lora_dropout"],
            )

    def _build_optimizer(self) -> None:
        """Build AdamW over all that is trained, its schedule, and the average that predicts."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not trained:
            return
        hparams = {**self.hparams, "lp_steps": self.lp_steps}
        self.optimizer = build_adamw(trained.items(), hparams)
        self.scheduler = build_schedule(self.optimizer, hparams)
        if hparams["average"] != "none" or hparams["wise_alpha"] < 1:
            averaged = self._averaged_weights(trained)
            kind = averages.SWAD if hparams["average"] == "swad" else averages.PredictionWeights
            self.predicting = kind(averaged, hparams)

    def _averaged_weights(self, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Name -> those weights that predict and that a step changes; of LoRA, the merged ones."""
        merged = {id(w) for w in merged_weights(self.encoder)} if self.lora else set()
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if id(parameter) in merged
            or (name in trained and not name.startswith(("terms.", "lora.")))
        }

    # PredictionWeights

    def preprocess(self, image: Any) -> Tensor:
        """The image (3, R, R) that `update` and `predict` take, of a Pillow image.

        It is resized and cropped to R pixels a side as the CLIP's own images are, and normalised
        as the dataset of the algorithm normalises: without one as DomainBed does, by ImageNet's
        mean and standard deviation. The algorithm itself goes from there to CLIP's normalisation,
        so do not normalise once more. Nothing is random; augment before or after.
        """
        preprocessing = self.input.preprocessing
        mean, std = self.normalisation or self.input.undone_normalisation()
        plan = ImagePlan(
            size=preprocessing.resolution,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            mean=mean,
            std=std,
        )
        tensor: Tensor = PlanTransform(plan)(image.convert("RGB"))
        return tensor

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of images (N, 3, H, W) that are normalised as the dataset does."""
        weights = self.prediction_weights()
        logits: Tensor = functional_call(self, weights, (x,)) if weights else self.forward(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, K) by the weights that are being trained, not the averaged ones."""
        return self.class_logits(self.features(x))

    def trained_logits(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of images, as `predict` has them, by the weights being trained."""
        return self.forward(x)

    def prediction_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights that predict, where they are not those being trained."""
        return self.predicting.weights() if self.predicting else {}

    def features(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of images as `predict` takes them."""
        return encode(self.encoder, self.input(x), self.bf16).features

    def class_logits(self, features: Tensor) -> Tensor:
        """Class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.head.weight, self.head.bias, self.head_factor)

    def context_logits(self, features: Tensor) -> Tensor:
        """Context logits (N, M) of image features (N, D)."""
        return self.logits_over(features, self.context_weights)

    def logits_over(self, features: Tensor, rows: Tensor) -> Tensor:
        """Logits (N, M) of image features (N, D) over ``rows`` (M, D), by ``context_scale``."""
        scale = objective.context_scale(self.hparams["context_scale"], self.logit_scale)
        return objective.context_logits(features, rows, scale)

    # Training

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The ``loss`` of a micro-batch and what its parts measure, scalars that records have.

        Here the cross-entropy of the class logits.
        """
        cross_entropy = F.cross_entropy(
            self.class_logits(batch.tuned.features).float(), batch.labels
        )
        return {"loss": cross_entropy, "loss_ce": cross_entropy}

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
                f"update got no images but the arguments {sorted(keywords) or 'none'}; expected "
                "update(minibatches), a list of (x, y), or update(x=..., y=...), two lists"
            )

        pairs = [*zip(keywords["x"], keywords["y"])] if minibatches is None else [*minibatches]
        if not (self.restored or self.steps_taken):
            require_minibatches(pairs, self.head.out_features)
        measurements = self.step_on_device(pairs)
        values = torch.stack([*measurements.values()]).tolist()  # waits once for all
        return dict(zip(measurements, values))

    def step_on_device(self, minibatches: Minibatches) -> dict[str, Tensor]:
        """Take the step of `update`, but return scalar tensors, for which the CPU does not wait."""
        if self.restored:
            raise CarftError(
                "a restored algorithm can predict but not train: its file holds no optimizer"
            )

        x, y = map(torch.cat, zip(*minibatches))
        parts = split_batch(y, self.hparams["micro_batch"], self.process_group)
        measurements = self.take_step(x, parts)

        self.steps_taken += 1
        if self.predicting:
            self.predicting.add(self.steps_taken)
        return all_reduce_measurements(measurements, self.process_group)

    def take_step(self, x: Tensor, parts: Iterable[MicroBatch]) -> dict[str, Tensor]:
        """Take a step by the gradients accumulated over the ``parts`` of the images ``x``."""
        self.zero_grad(set_to_none=True)
        measurements = accumulate_gradients(self._measure, x, parts)
        all_reduce_gradients(self, self.process_group)
        self._step_optimizer()
        self.after_step()
        return measurements

    def _measure(self, x: Tensor, part: MicroBatch) -> dict[str, Tensor]:
        """The loss of a micro-batch with images ``x``, penalties included, and all its parts."""
        places = self.terms.places if self.terms else {}
        batch = Batch(
            images=self.input(x),
            part=part,
            encode=lambda images: encode(self.encoder, images, self.bf16, places),
            encode_original=lambda images: self._get_original()(images, places),
        )
        measurements = self.loss(batch)
        if not self.terms:
            return measurements

        is_drift_due = self.drift_every > 0 and self.steps_taken % self.drift_every == 0
        if "loss_kl" in measurements or is_drift_due:
            measurements = {**measurements, **self._drift(batch), **measurements}
        if self.terms.active:
            values = self.terms.measure(batch, self.encoder, self._get_original())
            for name, value in values.items():
                weighted = self.terms.weights[name] * value
                measurements["loss"] = measurements["loss"] + weighted
                measurements[f"loss_{name}"] = value
        return measurements

    def _get_original(self) -> FrozenOriginal:
        if self.original is None:
            raise CarftError(
                f"the loss of {type(self).__name__} asks for batch.original, which it did not "
                "build; set uses_original = True in its class"
            )
        return self.original

    @torch.no_grad()
    def _drift(self, batch: Batch) -> dict[str, Tensor]:
        """How far the distribution over the contexts has moved."""
        original_logits = self.context_logits(batch.original.features)
        tuned_logits = self.context_logits(batch.tuned.features)
        direction = self.hparams["kl_direction"]
        return {
            "loss_kl": objective.context_kl(original_logits, tuned_logits, direction),
            "context_agreement": objective.context_agreement(original_logits, tuned_logits),
        }

    def _step_optimizer(self) -> None:
        """Change the weights by their gradients, and the learning rate by its schedule."""
        if self.hparams["grad_clip"] > 0:
            trained = [p for p in self.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trained, self.hparams["grad_clip"])
        self.optimizer.step()
        if self.lora:
            self.lora.merge(self.encoder)
        self.scheduler.step()

    def after_step(self) -> None:
        """Do what follows an optimizer's step; ``steps_taken`` is still the number before it."""

    def indivisible(self) -> str:
        """Why ``process_group`` cannot each take the step of a slice; "" if they can."""
        if self.trains_encoder and has_dropout(self.encoder):
            return "its encoder has dropout, which each would draw for itself"
        if self.lora and self.lora.has_dropout():
            return "lora_dropout is not 0, and each would draw for itself"
        return ""

    @property
    def wants_validation_loss(self) -> bool:  # type: ignore[override]
        """Whether `at_checkpoint` is to be called: SWAD ends a segment there."""
        return isinstance(self.predicting, averages.SWAD)

    def at_checkpoint(self, validation_loss: float) -> None:
        """Take the validation loss in nats of the weights being trained; SWAD decides by it."""
        if isinstance(self.predicting, averages.SWAD):
            self.predicting.at_checkpoint(validation_loss)

    # As a module, and taken apart by hosts

    def train(self, mode: bool = True) -> CLIPAlgorithm:
        """Train mode, except for batch norm (OpenAI's ResNets), which keeps CLIP's statistics.

        With the statistics of a batch the encoder would differ from the original before the first
        step.
        """
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The state dict of the module, with the weights that predict.

        Loaded into an algorithm that goes on training, these do not reach what it averages. To
        predict with a saved state, use `runs.saved.open_run`.
        """
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        weights = self.prediction_weights()
        state.update({prefix + name: tensor for name, tensor in weights.items()})
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIPAlgorithm:
        super()._apply(fn, recurse)
        if self.original is not None:
            self.original.apply(fn)
        if getattr(self, "optimizer", None):  # a host may set it to None
            fuse(self.optimizer)
        if self.predicting is not None:
            self.predicting.apply(fn)
        return self

    def __getattr__(self, name: str) -> Any:
        """A part of the algorithm, unless the host has assigned something by this name.

        They are made when a host asks for one, so that a state dict has no more keys.
        """
        if name in PARTS and name not in self._modules:
            return PARTS[name](self)
        return super().__getattr__(name)


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], hparams: Mapping[str, Any]
) -> torch.optim.AdamW:
    """AdamW over the named parameters, all of which are trained.

    Weight decay acts on matrices and convolutions. Biases, norms and embeddings are in a group
    without weight decay, unless ``weight_decay_all`` is true: decay would make these forget, and
    they cannot overfit. MIRO's variances have ten times the rate and no decay.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    miro_variances: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim > 1 and not {*name.split(".")} & EMBEDDINGS
        if name.startswith("terms."):
            miro_variances.append(parameter)
        elif is_matrix or hparams["weight_decay_all"]:
            decay.append(parameter)
        else:
            no_decay.append(parameter)

    groups = [
        {"params": decay, "weight_decay": hparams["weight_decay"]},
        {"params": no_decay, "weight_decay": 0.0},
        {"params": miro_variances, "weight_decay": 0.0, "lr": MIRO_RATE_FACTOR * hparams["lr"]},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=hparams["lr"])
    optimizer.register_load_state_dict_post_hook(fuse)
    return optimizer


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step all weights of a group in one kernel, where they are on a GPU.

    Call it wherever weights have moved. The optimizer's step counts must be on the GPU, too; those
    of a run that began on a CPU are not.
    """
    for group in optimizer.param_groups:
        step_counts = [optimizer.state[p]["step"] for p in group["params"] if p in optimizer.state]
        tensors = [*group["params"], *step_counts]
        on_gpu = all(devices.is_gpu(tensor.device) for tensor in tensors)
        group["fused"] = True if on_gpu else None


def build_schedule(
    optimizer: torch.optim.Optimizer, hparams: Mapping[str, Any]
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rates after ``lp_steps`` of training the head alone.

    A linear warm-up, then by ``lr_schedule`` a cosine to 0 at ``total_steps``, or a constant.
    """
    warmup_steps = hparams["warmup_steps"]
    total_steps = hparams["total_steps"] - hparams["lp_steps"]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if hparams["lr_schedule"] == "constant":
            return 1.0

        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
