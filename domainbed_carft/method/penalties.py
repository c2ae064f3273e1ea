"""Penalties that keep a fine-tuned encoder close to the original: formulas, weights, requirements.

Every algorithm that trains the image encoder under a cross-entropy can add any of them: a penalty
is active if its weight, a hyperparameter, is not 0. N is the number of images, D the dimension of
CLIP's joint embedding; a 0 in a name stands for the frozen original. Each penalty is a scalar that
is 0 at the original weights, except MIRO's, which then is half the mean logarithm of its variances.
Deviations from official code are listed in docs/methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.clips.backbone import Backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method.batch import Batch
from domainbed_carft.method.encoders import Places, encode, get_encoder_blocks
from domainbed_carft.method.hparams import Hparam, choice, nonnegative, power_of_ten
from domainbed_carft.method.text_encoder import RandomTexts

QUARTERS = 4
MIRO_VARIANCE = 0.1  # initial value
MIRO_RATE_FACTOR = 10  # khanrc/miro, domainbed/algorithms/miro.py
_MIN_VARIANCE = 1e-5
LIPSUM_TEXTS = 80  # cs-giung/lipsum-ft, scripts/Lipsum-FT.py
LIPSUM_LENGTH = 8  # words per text, the same file
_TIMM_VIT_PARTS = ("patch_embed", "norm_pre")


class Penalty:
    """A term added to the cross-entropy if its weight is not 0.

    Args:
        hparams: hyperparameters of the job.
        clip_model: the loaded CLIP model, before training.

    Attributes:
        name: part of the records' key ``loss_<name>``.
        weight: hyperparameter that weights the penalty, with the default and the draw of the method
            that published it.
        hparams: further hyperparameters of the penalty.
        places: returns the modules of an encoder whose outputs are compared; `Batch.tuned` and
            `Batch.original` then have these outputs in ``activations[name]``.
        trained: module trained by the optimizer for the penalty, None if there is none.
        trained_name: name of that module in the state dict.
        rate_factor: factor of the learning rate for that module, which has no weight decay.
    """

    name: ClassVar[str]
    weight: ClassVar[Hparam]
    hparams: ClassVar[tuple[Hparam, ...]] = ()
    places: ClassVar[Places | None] = None
    trained: nn.Module | None = None
    trained_name = ""
    rate_factor: ClassVar[float] = 1

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        """Store the parts of ``hparams`` and ``clip_model`` that the penalty needs."""

    def measure(self, batch: Batch) -> Tensor:
        """Return the penalty of a micro-batch.

        Args:
            batch: the micro-batch, with both encoders.

        Returns:
            A scalar, unweighted.
        """
        raise NotImplementedError

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the tensors of the penalty, for example to another device."""


def weight_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return L2-SP (arXiv 1802.01483): the sum over weights of (w - w0)^2, without a factor 1/2."""
    return torch.stack([(now - start).square().sum() for now, start in pairs]).sum()


class L2SPPenalty(Penalty):
    """The squared distance of the encoder's weights to the original weights: `weight_distance`."""

    name = "sp"
    weight = nonnegative(
        "sp_weight",
        0.5,
        draw=power_of_ten(-3, 1),
        elsewhere=0.0,
        meaning="the weight of L2-SP, the squared distance of weights",
        source="omegafragger/ldifs_code, args.py",
    )

    def measure(self, batch: Batch) -> Tensor:
        """Return the distance, which does not depend on the images."""
        originals = batch.original_encoder.encoder.parameters()
        return weight_distance(zip(batch.encoder.parameters(), originals, strict=True))


def feature_distance(features: Tensor, features_0: Tensor) -> Tensor:
    """Return the mean over the batch of the squared distance of unit features: 2 - 2 cos.

    Args:
        features: (N, D) of the tuned encoder, of any length.
        features_0: (N, D) of the original, of any length.
    """
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    return gap.square().sum(dim=-1).mean()


class FeatureDistillationPenalty(Penalty):
    """The squared distance of unit image features to the original features: `feature_distance`."""

    name = "fd"
    weight = nonnegative(
        "fd_weight",
        1.0,
        draw=power_of_ten(-1, 2),
        elsewhere=0.0,
        meaning="the weight of the squared distance of image features",
    )

    def measure(self, batch: Batch) -> Tensor:
        """Return the mean distance of a micro-batch."""
        return feature_distance(batch.tuned.features, batch.original.features)


def get_quarter_ends(encoder: Any, first_in_vit: str, penalty: str) -> list[nn.Module]:
    """Return the first module of an encoder, and the last module of each quarter of its blocks.

    In a ViT-B/16 these are ``first_in_vit``, "ln_pre" or "conv1", and the blocks 3, 6, 9 and 12,
    in other ViTs of OpenAI, open_clip and timm the corresponding modules; in a ResNet the end of
    the stem and the four stages. Raises CarftError for a timm encoder that is not a ViT, which the
    ``penalty`` of this name does not support.
    """
    blocks = get_encoder_blocks(encoder)
    if hasattr(encoder, "layer4"):
        return [encoder.avgpool, *blocks]

    if hasattr(encoder, "trunk"):
        trunk = encoder.trunk
        if not blocks or not all(hasattr(trunk, part) for part in _TIMM_VIT_PARTS):
            raise CarftError(
                f"{penalty}_weight needs an image encoder with blocks, but timm's "
                f"{type(trunk).__name__} has none; choose another clip_backbone or algorithm"
            )
        first = trunk.norm_pre if first_in_vit == "ln_pre" else trunk.patch_embed.proj
    else:
        first = getattr(encoder, first_in_vit)

    ends = [-(-len(blocks) * quarter // QUARTERS) for quarter in range(1, QUARTERS + 1)]
    return [first, *(blocks[end - 1] for end in ends)]


def ldifs(activations: Sequence[Tensor], activations_0: Sequence[Tensor], axis: str) -> Tensor:
    """Return LDIFS (arXiv 2308.13320): the distance of activations of several modules.

    The mean is over images, tokens and channels of a module, then over modules.

    Args:
        activations: (N, T, C) of each module of the tuned encoder.
        activations_0: (N, T, C) of each module of the original.
        axis: axis along which activations are scaled to length 1, "channel" or "token".
    """
    dim = 2 if axis == "channel" else 1
    distances = [
        (F.normalize(now, dim=dim) - F.normalize(start, dim=dim)).square().mean()
        for now, start in zip(activations, activations_0, strict=True)
    ]
    return torch.stack(distances).mean()


class LDIFSPenalty(Penalty):
    """The distance of activations at five places to the original activations: `ldifs`."""

    name = "ldifs"
    weight = nonnegative(
        "ldifs_weight",
        10.0,
        draw=power_of_ten(0, 2),
        elsewhere=0.0,
        meaning="the weight of LDIFS, the distance of activations",
        source="omegafragger/ldifs_code, args.py; search range: this package",
    )
    hparams = (
        choice(
            "ldifs_axis",
            *("channel", "token"),
            meaning="the axis along which LDIFS scales activations to length 1",
            source="this package; token in the official code",
            changes_cost=False,
        ),
    )
    places = staticmethod(
        functools.partial(get_quarter_ends, first_in_vit="ln_pre", penalty="ldifs")
    )

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__(hparams, clip_model)
        self.axis: str = hparams["ldifs_axis"]

    def measure(self, batch: Batch) -> Tensor:
        """Return the distance of a micro-batch."""
        return ldifs(
            batch.tuned.activations[self.name], batch.original.activations[self.name], self.axis
        )


def lipsum(features: Tensor, features_0: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return Lipsum-FT (arXiv 2404.00860): squared differences of the logits of random texts.

    The mean over the batch of 1/(2M) sum_m (s f . u_m - s f0 . u_m)^2.

    Args:
        features: (N, D) of the tuned encoder, of any length.
        features_0: (N, D) of the original, of any length.
        texts: (M, D) text features u of any length.
        scale: the logit scale s.
    """
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    logits = scale * gap @ F.normalize(texts, dim=-1).T
    return logits.square().mean() / 2


class LipsumPenalty(Penalty):
    """The change of the logits of 80 random texts of 8 words, drawn at each step: `lipsum`."""

    name = "lipsum"
    weight = nonnegative(
        "lipsum_weight",
        1.0,
        draw=power_of_ten(-1, 1),
        elsewhere=0.0,
        meaning="the weight of Lipsum-FT, the change of the logits of random texts",
        source="cs-giung/lipsum-ft, scripts/Lipsum-FT.py; search range: this package",
    )

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__(hparams, clip_model)
        self.random_texts = RandomTexts(clip_model)
        self.logit_scale = torch.tensor(clip_model.logit_scale)

    def measure(self, batch: Batch) -> Tensor:
        """Return the penalty of a micro-batch; all micro-batches of a step use the same texts."""
        draw = functools.partial(self.random_texts, LIPSUM_TEXTS, LIPSUM_LENGTH)
        texts = batch.draw_once("texts", draw)
        return lipsum(batch.tuned.features, batch.original.features, texts, self.logit_scale)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the text encoder and the scale, for example to another device."""
        self.random_texts.encoder._apply(fn)
        self.logit_scale = fn(self.logit_scale)


def variational(
    activations: Sequence[Tensor], activations_0: Sequence[Tensor], raw: Sequence[Tensor]
) -> Tensor:
    """Return MIRO (arXiv 2203.10789) with the identity as its mean encoder.

    The sum over modules of the mean over (N, T, C) of ((z - z0)^2 / v + log v) / 2, with the
    variances v = softplus(b) + 1e-5 of each channel.

    Args:
        activations: z, (N, T, C) of each module of the tuned encoder.
        activations_0: z0, (N, T, C) of each module of the original.
        raw: b, (C,) of each module.
    """
    terms = []
    for now, start, b in zip(activations, activations_0, raw, strict=True):
        variance = F.softplus(b) + _MIN_VARIANCE
        terms.append(((now - start).square() / variance + variance.log()).mean() / 2)
    return torch.stack(terms).sum()


def raw_variance(variance: float, channels: int) -> Tensor:
    """Return b (C,) of `variational` such that all variances are ``variance``."""
    return torch.full((channels,), variance - _MIN_VARIANCE).expm1().log()


class MIROPenalty(Penalty):
    """MIRO's bound on the mutual information with the original: `variational`.

    Its variances, one per channel of each place, are trained.
    """

    name = "miro"
    weight = nonnegative(
        "miro_weight",
        1.0,
        draw=power_of_ten(-2, 0),
        elsewhere=0.0,
        meaning="the weight of MIRO's term",
        source="khanrc/miro, README; search range: this package",
    )
    places = staticmethod(functools.partial(get_quarter_ends, first_in_vit="conv1", penalty="miro"))
    trained_name = "miro_variances"
    rate_factor = MIRO_RATE_FACTOR

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__(hparams, clip_model)
        resolution = clip_model.preprocessing.resolution
        blank = torch.zeros(1, 3, resolution, resolution)
        with torch.no_grad():
            encoding = encode(clip_model.model.visual, blank, False, {"miro": self.places})
        self.variances = nn.ParameterList(
            nn.Parameter(raw_variance(MIRO_VARIANCE, activations.shape[-1]))
            for activations in encoding.activations["miro"]
        )
        self.trained = self.variances

    def measure(self, batch: Batch) -> Tensor:
        """Return the penalty of a micro-batch."""
        return variational(
            batch.tuned.activations[self.name],
            batch.original.activations[self.name],
            [*self.variances],
        )


# In the order in which they are added to the loss.
PENALTIES: tuple[type[Penalty], ...] = (
    L2SPPenalty,
    FeatureDistillationPenalty,
    LDIFSPenalty,
    LipsumPenalty,
    MIROPenalty,
)
# The defaults of all algorithms. The method that published a penalty declares its weight instead.
HPARAMS = tuple(
    hparam
    for penalty in PENALTIES
    for hparam in (penalty.weight.for_other_methods(), *penalty.hparams)
)


class Penalties(nn.Module):
    """The active penalties of an algorithm, whose weights are not 0.

    The state dict has the parameters trained for penalties.
    """

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__()
        self.active = [
            penalty(hparams, clip_model) for penalty in PENALTIES if hparams[penalty.weight.name]
        ]
        self.weights = {penalty.name: hparams[penalty.weight.name] for penalty in self.active}
        for penalty in self.active:
            if penalty.trained is not None:
                self.add_module(penalty.trained_name, penalty.trained)

    @property
    def places(self) -> dict[str, Places]:
        """Name of a penalty -> function that returns the modules whose outputs it compares."""
        return {
            penalty.name: places
            for penalty in self.active
            if (places := type(penalty).places) is not None
        }

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups of the trained modules; ``rate`` is the learning rate."""
        return [
            {
                "params": [*penalty.trained.parameters()],
                "weight_decay": 0.0,
                "lr": penalty.rate_factor * rate,
            }
            for penalty in self.active
            if penalty.trained is not None
        ]

    def add_to(self, measurements: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the measurements with the weighted penalties in ``loss``, and each unweighted."""
        total = dict(measurements)
        for penalty in self.active:
            value = penalty.measure(batch)
            total["loss"] = total["loss"] + self.weights[penalty.name] * value
            total[f"loss_{penalty.name}"] = value
        return total

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Penalties:
        super()._apply(fn, recurse)
        for penalty in self.active:
            penalty.apply(fn)
        return self
