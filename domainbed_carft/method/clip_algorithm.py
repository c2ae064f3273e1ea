"""The one body of our algorithms: an image encoder, a head, a frozen original, an optimizer.

Each of ``algorithms`` says what it trains and which terms count; formulas are in ``objective``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from domainbed_carft.clips import backbone, pictures
from domainbed_carft.errors import CarftError
from domainbed_carft.method import (
    averages,
    dataset_facts,
    host_arguments,
    objective,
    optimizer,
    prompts,
)
from domainbed_carft.method.hosting import HostedAlgorithm
from domainbed_carft.method.micro_batches import Piece, accumulated, add_up, drops, split, summed
from domainbed_carft.method.original import arrange, encode
from domainbed_carft.method.terms import Terms

Minibatches = Sequence[tuple[Tensor, Tensor]]
ONLY_TRAINED = ("terms.", "text.", "log_scale")  # in a state dict, and needed by no prediction


class CLIPAlgorithm(HostedAlgorithm):
    """The body shared by our algorithms.

    ``input_shape``: (3, H, W). Raises CarftError as `arguments.check`, and for classes without
    names.

    The state dict holds the weights that predict, the context weights and the words, but not the
    frozen original: a saved run needs no CLIP to predict again. Where other weights are trained
    than predict, these are in the state of ``predicting``.
    """

    input: pictures.CLIPInput
    words: Tensor  # the text of prompts.as_json as uint8
    architecture: Tensor  # open_clip's configuration of the CLIP as uint8; OpenAI's have none
    SETTLED = ("amp",)  # by the machine on which a job starts, and kept where it is resumed
    trains_encoder = True
    trains_head = True
    # The hparams that weigh a term of the loss; None: no terms, and the drift is not measured.
    weighed: tuple[str, ...] | None = ()
    predicting: averages.Predicting | None = None
    restored = False
    is_constant = False  # whether nothing that is trained changes what it predicts
    # The processes that each get a slice of every batch, where our harness has several.
    process_group: Any = None

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int,
        hparams: dict[str, Any],
    ) -> None:  # fmt: skip
        host_arguments.check(input_shape, hparams, type(self).__name__)
        hparams["amp"] = optimizer.settled_amp(hparams["amp"])
        super().__init__(input_shape, num_classes, num_domains, hparams)
        normalisation = host_arguments.checked_data(hparams)  # before anything takes time
        # Making the modules must not move the generators that the training draws from.
        with torch.random.fork_rng(devices=[]):
            clip_model = backbone.load(hparams["clip_backbone"])
            host_arguments.record(hparams, "clip_digest", clip_model.digest, "the CLIP is another")
            host_arguments.record(
                hparams, "clip_revision", clip_model.revision, "the hub's is another"
            )
            hparams["preprocessing"] = (
                hparams["preprocessing"] or clip_model.preprocessing.hparam_value
            )
            names = prompts.class_names(hparams, num_classes)
            has_kl = "kl_weight" in (self.weighed or ()) and hparams["kl_weight"] > 0
            templates = prompts.contexts_of(hparams, least=2 if has_kl else 1)
            print(f"CLIP classes: {', '.join(names)}")
            print(f"CLIP contexts: {len(templates)}, such as {templates[0]!r}")
            words = prompts.digest(templates, names)
            host_arguments.record(
                hparams, "prompts_digest", words, "class names or contexts differ"
            )
            self.keep_text("words", prompts.as_json(templates, names))
            if clip_model.architecture:
                self.keep_text("architecture", clip_model.architecture)
            features = backbone.text_features(clip_model, prompts.prompts(templates, names))
            weights, wanted = objective.zero_shot_weights(features), clip_model.preprocessing
            if (pixels := input_shape[-1]) != wanted.resolution:
                print(
                    f"CLIP input: pictures are resized from {pixels} to {wanted.resolution} pixels"
                )
            encoder, scale = clip_model.model.visual, clip_model.logit_scale
            self.set_up(encoder, weights, scale, wanted, normalisation)
            self.set_up_training(clip_model, features)
            if self.trains_encoder:
                arrange(self.encoder, self.terms and self.terms.original, hparams)
        self.train()

    def keep_text(self, name: str, text: str) -> None:
        """Put a text into the state dict, as a buffer of its bytes."""
        found = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self.register_buffer(name, found.clone())

    def set_up(
        self, encoder: nn.Module, weights: objective.ZeroShotWeights, logit_scale: float,
        preprocessing: pictures.Preprocessing,
        normalisation: dataset_facts.Normalisation = pictures.IMAGENET,
    ) -> None:  # fmt: skip
        """Build what training and predicting need; ``normalisation``: the data's, to undo."""
        self.encoder, self.terms = encoder, cast("Terms | None", None)
        self.input = pictures.CLIPInput(preprocessing, *normalisation)
        self.head = nn.Linear(*weights.classes.T.shape)
        self.head.bias.data.zero_()
        is_random = self.hparams["head_init"] == "random" and self.trains_head
        # Folded, a random or a probed head would hardly move.
        moves = self.trains_encoder and self.trains_head and not is_random
        folded = self.hparams["head_scale"] == "folded" and moves
        if not is_random:
            self.head.weight.data.copy_(weights.classes * (logit_scale if folded else 1.0))
        self.register_buffer("head_factor", torch.tensor(1.0 if folded else logit_scale))
        self.register_buffer("context_weights", weights.contexts.clone())
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.encoder.requires_grad_(self.trains_encoder)
        self.head.requires_grad_(self.trains_head)
        self.head.bias.requires_grad_(folded)

    def set_up_training(self, clip_model: backbone.Backbone, text_features: Tensor) -> None:
        """Build what only training needs, of the original and its ``text_features`` (M, K, D)."""
        hparams, self.steps_taken = self.hparams, 0
        self.lp_steps = hparams["lp_steps"] if self.trains_encoder else 0
        if self.trains_encoder and self.weighed is not None:
            self.terms = Terms(hparams, self.weighed, clip_model, text_features)
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
            own = {n: p for n, p in trained.items() if not n.startswith("terms.")}
            self.predicting = averages.Predicting(own, {**hparams, "lp_steps": self.lp_steps})
        if hparams["average"] == "beta":
            averages.warn_of_cut_average(host_arguments.planned_steps(), hparams["total_steps"])

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of pictures (N, 3, H, W) normalised as the data set does."""
        weights = self.predicting_weights()
        logits: Tensor = functional_call(self, weights, (x,)) if weights else self.forward(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """The same by the weights that are trained."""
        return self.class_logits(self.features(x))

    def predicting_weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the weights that predict, where these are not those trained."""
        return self.predicting.weights() if self.predicting else {}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The module's, with the weights that predict.

        Loaded into an algorithm that goes on training, these do not reach what it averages: predict
        with a saved state by `runs.saved.open_run`.
        """
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        state.update({prefix + name: t for name, t in self.predicting_weights().items()})
        return state

    def features(self, x: Tensor) -> Tensor:
        """Image features (N, D), not normalised, of pictures as ``predict`` takes them."""
        return encode(self.encoder, self.input(x), self.hparams["amp"] == "bf16")[0]

    def class_logits(self, features: Tensor) -> Tensor:
        """Class logits (N, K) of image features (N, D)."""
        return objective.class_logits(features, self.head.weight, self.head.bias, self.head_factor)

    def context_logits(self, features: Tensor) -> Tensor:
        """Context logits (N, M) of image features (N, D)."""
        t = objective.context_scale(self.hparams["context_scale"], self.logit_scale)
        return objective.context_logits(features, self.context_weights, t)

    def train(self, mode: bool = True) -> CLIPAlgorithm:
        """Train mode, except for batch norm (OpenAI's ResNets), which keeps CLIP's statistics.

        With those of a batch the encoder would differ from the original before the first step.
        """
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def update(
        self, minibatches: Minibatches | None = None, unlabeled: Any = None, **more: Any
    ) -> dict[str, float]:
        """One training step on (x, y) of each training environment.

        ``minibatches``: a list of (x, y), x (N, 3, H, W), y (N,), one an environment. SWAD's line
        of forks gives two lists by keyword instead, ``x`` and ``y``. More arguments are not used.

        Returns ``loss``, its parts, unweighted, as ``loss_ce`` and ``loss_kl`` in nats, and
        ``context_agreement`` in [0, 1]. Without the KL term the last two come only on the steps on
        which the drift is measured, with FLYP and in the first phase of LP-FT never.
        """
        if minibatches is None and not {"x", "y"} <= more.keys():
            raise CarftError(
                f"update got no pictures but the arguments {sorted(more) or 'none'}; expected "
                "update(minibatches), a list of (x, y), or update(x=..., y=...), two lists"
            )
        pairs = [*zip(more["x"], more["y"])] if minibatches is None else minibatches
        measured = self.step_on_device(pairs)
        return dict(zip(measured, torch.stack([*measured.values()]).tolist()))  # waits once for all

    def indivisible(self) -> str:
        """Why ``process_group`` cannot each take the step of a slice; "" if they can."""
        if self.trains_encoder and drops(self.encoder):
            return "its encoder has dropout, which each would draw for itself"
        return self.terms.indivisible() if self.terms else ""

    def step_on_device(self, minibatches: Minibatches) -> dict[str, Tensor]:
        """``update`` without waiting for the device: its values are scalar tensors there."""
        if self.restored:
            raise CarftError(
                "a restored algorithm can predict but not train: its file holds no optimizer"
            )
        x, y = map(torch.cat, zip(*minibatches))
        learn = self._probe if self.steps_taken < self.lp_steps else self._learn
        measured = learn(x, split(y, self.hparams["micro_batch"], self.process_group))
        self.steps_taken += 1
        if self.predicting:
            self.predicting.add(self.steps_taken)
        return summed(measured, self.process_group)

    def _learn(self, x: Tensor, batch: Iterable[Piece]) -> dict[str, Tensor]:
        """A step, the gradients of the ``batch`` added up piece by piece."""
        self.zero_grad(set_to_none=True)
        found = accumulated(self._loss, x, batch)
        add_up(self, self.process_group)
        self._step()
        return found

    def _probe(self, x: Tensor, batch: Iterable[Piece]) -> dict[str, Tensor]:
        """A step of LP-FT's first phase (arXiv 2202.10054): the head alone, at its own rate."""
        parts = [*batch]
        with torch.no_grad():
            features = torch.cat([self.features(x[piece.place]) for piece in parts])
        labels, share = parts[0].labels, len(features) / parts[0].whole
        cross_entropy = F.cross_entropy(self.class_logits(features), labels) * share
        self.zero_grad(set_to_none=True)
        cross_entropy.backward()
        add_up(self, self.process_group)
        self.probe_optimizer.step()
        return dict.fromkeys(("loss", "loss_ce"), cross_entropy.detach())

    def _loss(self, x: Tensor, piece: Piece) -> dict[str, Tensor]:
        clip_pictures, bf16 = self.input(x), self.hparams["amp"] == "bf16"
        methods = self.terms.methods if self.terms else []
        features, seen = encode(self.encoder, clip_pictures, bf16, methods)
        logits = self.class_logits(features)
        if self.terms and self.hparams["margin"]:
            logits = self.terms.with_margin(logits, piece.own)
        cross_entropy = F.cross_entropy(logits.float(), piece.own)
        if not self.terms:
            return {"loss": cross_entropy, "loss_ce": cross_entropy}
        of_them = (self.steps_taken, clip_pictures, piece, features, seen, self.encoder)
        parts, weighted = self.terms(*of_them)
        return {"loss": cross_entropy + weighted, "loss_ce": cross_entropy, **parts}

    def _step(self) -> None:
        if self.hparams["grad_clip"] > 0:
            trained = [p for p in self.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trained, self.hparams["grad_clip"])
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.terms:
            self.terms.decouple(self.encoder, self.steps_taken, rate)
        if self.steps_taken == self.hparams["total_steps"]:
            warnings.warn(
                f"training continues after total_steps = {self.hparams['total_steps']}, where the "
                "schedule ends; set total_steps to the number of training steps",
                stacklevel=2,
            )
        self.scheduler.step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIPAlgorithm:
        super()._apply(fn, recurse)
        if hasattr(self, "optimizer"):
            optimizer.fuse(self.optimizer)
        if self.predicting is not None:
            self.predicting.apply(fn)
        return self
