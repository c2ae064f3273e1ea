"""What holds a fine-tuned encoder back beside its loss: a formula, its weight, what it needs.

Every algorithm that trains the image encoder under a cross-entropy may add any of them: a penalty
is active if its weight, a hyperparameter, is not 0. N images, D the dimension of CLIP's joint
embedding; a 0 in a name stands for the frozen original. Each is a scalar that is 0 at the original
weights, but MIRO's, which then is half the mean logarithm of its variances. Where we deviate from
official code: docs/methods.
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
from domainbed_carft.method.encoders import FrozenOriginal, Places, encode, encoder_blocks
from domainbed_carft.method.hparams import Hparam, choice, nonnegative, power_of_ten
from domainbed_carft.method.text_encoder import RandomTexts

QUARTERS = 4
MIRO_VARIANCE = 0.1  # at the start
_MIN_VARIANCE = 1e-5
LIPSUM_TEXTS = 80  # cs-giung/lipsum-ft, scripts/Lipsum-FT.py
LIPSUM_LENGTH = 8  # words of each, the same file
_TIMM_VIT_PARTS = ("patch_embed", "norm_pre")


class Penalty:
    """A term of the loss beside the cross-entropy, added where its weight is not 0.

    ``name``: of the record's key, ``loss_<name>``. ``weight``: the hyperparameter that weights it,
    with the default and the draw of the method that published it. ``hparams``: its others.
    ``places``: the modules of both encoders whose outputs it compares; `Batch.tuned` and
    `Batch.original` then have them in ``activations[name]``. ``trained``: what the optimizer
    trains for it, and ``trained_name`` its name in the state dict.
    """

    name: ClassVar[str]
    weight: ClassVar[Hparam]
    hparams: ClassVar[tuple[Hparam, ...]] = ()
    places: ClassVar[Places | None] = None
    trained: nn.Module | None = None
    trained_name = ""

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        """Take what the penalty needs of the job's ``hparams`` and of its CLIP before training."""

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The penalty of a micro-batch, a scalar. ``encoder``: the one that is trained."""
        raise NotImplementedError

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move what `__init__` took, to another device say."""


def weight_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """L2-SP (arXiv 1802.01483): the sum over all weights of (w - w0)^2, without a factor 1/2."""
    return torch.stack([(now - start).square().sum() for now, start in pairs]).sum()


class L2SPPenalty(Penalty):
    """The squared distance of the encoder's weights to the original ones: `weight_distance`."""

    name = "sp"
    weight = nonnegative(
        "sp_weight",
        0.5,
        draw=power_of_ten(-3, 1),
        elsewhere=0.0,
        meaning="the weight of L2-SP's squared distance of weights",
        source="omegafragger/ldifs_code, args.py",
    )

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The distance, which depends on no image."""
        pairs = zip(encoder.parameters(), original.encoder.parameters(), strict=True)
        return weight_distance(pairs)


def feature_distance(features: Tensor, features_0: Tensor) -> Tensor:
    """The mean over the batch of the squared distance of unit features: 2 - 2 cos. (N, D) both."""
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    return gap.square().sum(dim=-1).mean()


class FeatureDistillationPenalty(Penalty):
    """The squared distance of unit image features to the original ones: `feature_distance`."""

    name = "fd"
    weight = nonnegative(
        "fd_weight",
        1.0,
        draw=power_of_ten(-1, 2),
        elsewhere=0.0,
        meaning="the weight of the squared distance of image features",
    )

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The mean distance of a micro-batch."""
        return feature_distance(batch.tuned.features, batch.original.features)


def quarter_ends(encoder: Any, first_in_vit: str, penalty: str) -> list[nn.Module]:
    """The module where an encoder begins, and the last one of each quarter of its blocks.

    In a ViT-B/16 these are ``first_in_vit``, "ln_pre" or "conv1", and the blocks 3, 6, 9 and 12,
    in other ViTs of OpenAI's, open_clip's and timm's the corresponding ones; in a ResNet the end of
    the stem and the four stages. Raises CarftError for an encoder of timm's that is not a ViT,
    which the ``penalty`` of this name cannot compare.
    """
    blocks = encoder_blocks(encoder)
    if hasattr(encoder, "layer4"):
        return [encoder.avgpool, *blocks]

    if hasattr(encoder, "trunk"):
        trunk = encoder.trunk
        if not blocks or not all(hasattr(trunk, part) for part in _TIMM_VIT_PARTS):
            raise CarftError(
                f"{penalty}_weight needs an image encoder of blocks, and {type(trunk).__name__} of "
                "timm has none; choose another clip_backbone or algorithm"
            )
        first = trunk.norm_pre if first_in_vit == "ln_pre" else trunk.patch_embed.proj
    else:
        first = getattr(encoder, first_in_vit)

    ends = [-(-len(blocks) * quarter // QUARTERS) for quarter in range(1, QUARTERS + 1)]
    return [first, *(blocks[end - 1] for end in ends)]


def ldifs(activations: Sequence[Tensor], activations_0: Sequence[Tensor], axis: str) -> Tensor:
    """LDIFS (arXiv 2308.13320): the distance of activations of several modules.

    Each is (N, T, C), and is scaled to length 1 along ``axis``, "channel" or "token"; the mean is
    over images, tokens and channels of a module, then over modules.
    """
    dim = 2 if axis == "channel" else 1
    distances = [
        (F.normalize(now, dim=dim) - F.normalize(start, dim=dim)).square().mean()
        for now, start in zip(activations, activations_0, strict=True)
    ]
    return torch.stack(distances).mean()


class LDIFSPenalty(Penalty):
    """The distance of activations at five places to the original ones: `ldifs`."""

    name = "ldifs"
    weight = nonnegative(
        "ldifs_weight",
        10.0,
        draw=power_of_ten(0, 2),
        elsewhere=0.0,
        meaning="the weight of LDIFS's distance of activations",
        source="omegafragger/ldifs_code, args.py; the search is ours",
    )
    hparams = (
        choice(
            "ldifs_axis",
            *("channel", "token"),
            meaning="the axis along which LDIFS scales activations to length 1",
            source="ours; the official code's is token",
            changes_cost=False,
        ),
    )
    places = staticmethod(functools.partial(quarter_ends, first_in_vit="ln_pre", penalty="ldifs"))

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__(hparams, clip_model)
        self.axis: str = hparams["ldifs_axis"]

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The distance of a micro-batch."""
        return ldifs(
            batch.tuned.activations[self.name], batch.original.activations[self.name], self.axis
        )


def lipsum(features: Tensor, features_0: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Lipsum-FT (arXiv 2404.00860): gaps of the logits of random texts, squared.

    The mean over the batch of 1/(2M) sum_m (s f . u_m - s f0 . u_m)^2. ``features``: (N, D) of any
    length; ``texts``: (M, D) text features of any length; ``scale``: s, the logit scale.
    """
    gap = F.normalize(features, dim=-1) - F.normalize(features_0, dim=-1)
    logits = scale * gap @ F.normalize(texts, dim=-1).T
    return logits.square().mean() / 2


class LipsumPenalty(Penalty):
    """The gap of the logits of 80 random texts of 8 words, new ones at each step: `lipsum`."""

    name = "lipsum"
    weight = nonnegative(
        "lipsum_weight",
        1.0,
        draw=power_of_ten(-1, 1),
        elsewhere=0.0,
        meaning="the weight of Lipsum-FT's gap of the logits of random texts",
        source="cs-giung/lipsum-ft, scripts/Lipsum-FT.py; the search is ours",
    )

    def __init__(self, hparams: Mapping[str, Any], clip_model: Backbone) -> None:
        super().__init__(hparams, clip_model)
        self.random_texts = RandomTexts(clip_model)
        self.logit_scale = torch.tensor(clip_model.logit_scale)

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The gap of a micro-batch; all micro-batches of a step have the same texts."""
        draw = functools.partial(self.random_texts, LIPSUM_TEXTS, LIPSUM_LENGTH)
        texts = batch.draw_once("texts", draw)
        return lipsum(batch.tuned.features, batch.original.features, texts, self.logit_scale)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the text encoder and the scale, to another device say."""
        self.random_texts.encoder._apply(fn)
        self.logit_scale = fn(self.logit_scale)


def variational(
    activations: Sequence[Tensor], activations_0: Sequence[Tensor], raw: Sequence[Tensor]
) -> Tensor:
    """MIRO (arXiv 2203.10789) with the identity as its mean encoder.

    The sum over modules of the mean over (N, T, C) of ((z - z0)^2 / v + log v) / 2, with the
    variances v = softplus(b) + 1e-5 of each channel; ``raw`` has a b (C,) a module.
    """
    terms = []
    for now, start, b in zip(activations, activations_0, raw, strict=True):
        variance = F.softplus(b) + _MIN_VARIANCE
        terms.append(((now - start).square() / variance + variance.log()).mean() / 2)
    return torch.stack(terms).sum()


def raw_variance(variance: float, channels: int) -> Tensor:
    """The b (C,) of `variational` whose variances are ``variance``."""
    return torch.full((channels,), variance - _MIN_VARIANCE).expm1().log()


class MIROPenalty(Penalty):
    """MIRO's bound on the mutual information with the original: `variational`.

    Its variances, one a channel of each place, are trained at ten times the learning rate.
    """

    name = "miro"
    weight = nonnegative(
        "miro_weight",
        1.0,
        draw=power_of_ten(-2, 0),
        elsewhere=0.0,
        meaning="the weight of MIRO's term",
        source="khanrc/miro, README; the search is ours",
    )
    places = staticmethod(functools.partial(quarter_ends, first_in_vit="conv1", penalty="miro"))
    trained_name = "miro_variances"

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

    def measure(self, batch: Batch, encoder: nn.Module, original: FrozenOriginal) -> Tensor:
        """The term of a micro-batch."""
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
# As every algorithm has them; the method that published one has its weight by default.
HPARAMS = tuple(
    hparam
    for penalty in PENALTIES
    for hparam in (penalty.weight.for_other_methods(), *penalty.hparams)
)


class Penalties(nn.Module):
    """The active penalties of an algorithm, those whose weight is not 0.

    The state dict has what is trained for them.
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
        """Name -> the modules whose outputs the penalty of that name compares."""
        places_by_name = {}
        for penalty in self.active:
            places = type(penalty).places
            if places is not None:
                places_by_name[penalty.name] = places
        return places_by_name

    def measure(
        self, batch: Batch, encoder: nn.Module, original: FrozenOriginal
    ) -> dict[str, Tensor]:
        """Name -> penalty of a micro-batch, unweighted."""
        return {penalty.name: penalty.measure(batch, encoder, original) for penalty in self.active}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Penalties:
        super()._apply(fn, recurse)
        for penalty in self.active:
            penalty.apply(fn)
        return self
