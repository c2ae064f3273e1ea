"""The hyperparameters of our algorithms: defaults, valid values, random draws. No torch.

Every value is a plain Python one, so that a record round-trips through JSON. docs/method.md gives
the source of each, and which are our choice.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data.tasks import TASKS
from domainbed_carft.jobs.job import seed_hash

ALGORITHMS = (
    "CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot",
    "CLIPood", "CLIPWiSEFT", "CLIPLPFT", "CLIPL2SP", "CLIPFeatureDistillation", "LDIFS", "LipsumFT",
    "CLIPMIRO", "FLYP",
)  # fmt: skip
UNCHECKED = "unchecked"  # the hparam data_edition that trains on any data
# Lipsum-FT's and MIRO's authors have no weight decay; in L2-SP it would pull to another point.
UNDECAYED = ("CLIPL2SP", "LipsumFT", "CLIPMIRO")
EMBEDDED = ("EmojiStyles", "EmojiUnseen", "EmojiShift")
SMALL_DATASETS = (*EMBEDDED, "Debug28", "Debug224")  # served by the embedded "tiny" CLIP
STEPS = dict.fromkeys(EMBEDDED, 101) | {"ImageNet": 25_030}  # of those that do not train for 5,001


class Context(NamedTuple):
    """What a default and a draw depend on; ``clip_backbone`` is "" for the data set's default."""

    algorithm: str
    dataset: str
    clip_backbone: str = ""

    @property
    def trains_tiny(self) -> bool:
        """Whether the learning rate and the batch are those of the embedded CLIP."""
        return self.dataset in SMALL_DATASETS or self.clip_backbone == "tiny"


Draw = Callable[[np.random.RandomState, Context], Any]


class Hparam(NamedTuple):
    name: str
    default: Any  # a value, or a function of the context
    valid: Callable[[Any], bool]
    expected: str  # in words
    draw: Draw | None = None  # without it the random search keeps the default


def _number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and type(value) is not bool
    return known and 0 <= value <= sys.float_info.max  # below 10**400, which JSON can write


def _words(value: Any) -> bool:
    words = [value] if isinstance(value, str) else value
    are_listed = isinstance(words, (list, tuple)) and len(words) > 0
    return are_listed and all(isinstance(word, str) and word for word in words)


_NOT_NEGATIVE = (_number, "a number >= 0")
_POSITIVE = (lambda v: _number(v) and v > 0, "a number > 0")
_SHARE = (lambda v: _number(v) and v <= 1, "a number in [0, 1]")
_PREPROCESSING = r"|([1-9][0-9]{0,2}|[123][0-9]{3}) (bicubic|bilinear) (shortest|squash)"


def _small(small: Any, otherwise: Any) -> Callable[[Context], Any]:
    return lambda context: small if context[1] in SMALL_DATASETS else otherwise


def _of(owner: str, own: Any, otherwise: Any) -> Callable[[Context], Any]:
    """The published value of the algorithm ``owner``, and what leaves all others as they are."""
    return lambda context: own if context[0] == owner else otherwise


def _power_of_ten(low: float, high: float) -> Draw:
    return lambda random_state, context: float(10 ** random_state.uniform(low, high))


def _choice(name: str, *choices: Any, default: Any = None) -> Hparam:
    """One of these, by default the first."""
    kinds = {type(choice) for choice in choices}
    expected = "one of " + ", ".join(map(repr, choices))
    default = choices[0] if default is None else default
    return Hparam(name, default, lambda v: v in choices and type(v) in kinds, expected)


def _count(name: str, default: Any, least: int = 0, draw: Draw | None = None) -> Hparam:
    expected = f"a whole number >= {least}"
    return Hparam(name, default, lambda v: type(v) is int and v >= least, expected, draw)


def _filled_in(name: str) -> Hparam:
    return Hparam(name, "", lambda v: isinstance(v, str), "'' or the value in an earlier record")


def _weight(name: str, owner: str, own: float, low: float, high: float) -> Hparam:
    """Of a term: ``own`` for the algorithm ``owner``, 0 for others, drawn between powers of 10."""

    def draw(state: np.random.RandomState, context: Context) -> Any:
        return _power_of_ten(low, high)(state, context) if context[0] == owner else 0.0

    return Hparam(name, _of(owner, own, 0.0), *_NOT_NEGATIVE, draw)


def _words_of(context: Context) -> tuple[str, str]:
    """The class names and the contexts of a data set."""
    task = TASKS.get(context[1])
    if context[1] == "ImageNet":
        return "imagenet", "imagenet"
    if task is None:
        return f"dataset:{context[1]}", _small("emoji", "imagenet")(context)
    return task.words, task.contexts or task.words


def _protocol(context: Context) -> str:
    usual = "clip" if context[1] in TASKS else "domainbed"
    return "wise-ft" if context[1] == "ImageNet" else usual


def _learning_rate(context: Context) -> float:
    usual = 1e-5 if context.dataset in ("OfficeHome", "DomainNet") else 5e-6
    rate = 3e-4 if context.trains_tiny else usual
    return 10 * rate if context.algorithm == "CLIPLinearProbe" else rate


def _draw_learning_rate(random_state: np.random.RandomState, context: Context) -> float:
    powers = (-4.5, -3.0) if context.trains_tiny else (-6.0, -4.5)
    rate: float = _power_of_ten(*powers)(random_state, context)
    return 10 * rate if context.algorithm == "CLIPLinearProbe" else rate


def _draw_decay(random_state: np.random.RandomState, context: Context) -> float:
    return 0.0 if context[0] in UNDECAYED else _power_of_ten(-3, 0)(random_state, context)


def _draw_batch_size(random_state: np.random.RandomState, context: Context) -> int:
    return int(2 ** random_state.uniform(3, 5 if context[1] == "DomainNet" else 5.5))


HPARAMS: tuple[Hparam, ...] = (
    Hparam(
        "clip_backbone",
        _small("tiny", "ViT-B/16"),
        lambda v: isinstance(v, str) and bool(v),
        "'tiny', one of OpenAI's names ('ViT-B/16'), the path of an OpenAI-format file, or "
        "open_clip:NAME/TAG, open_clip:hf-hub:ORG/REPO or open_clip:local-dir:FOLDER",
    ),
    Hparam("kl_weight", 1.0, *_NOT_NEGATIVE, _power_of_ten(-1, 1)),
    _choice("kl_direction", "original||fine-tuned", "fine-tuned||original"),
    _choice("kl_over", "contexts", "clusters", "captions", "other-captions"),
    _count("context_clusters", 20, 2),
    _choice("kl_schedule", "constant", "linear"),
    Hparam(
        "context_scale",
        "logit_scale",
        lambda v: v == "logit_scale" or (_number(v) and v > 0),
        "'logit_scale' or a number > 0",
    ),
    Hparam(
        "contexts",
        lambda context: _words_of(context)[1],
        _words,
        "a shipped list ('imagenet7', ...), 'domains', a text file, or a list of templates",
    ),
    Hparam(
        "class_names",
        lambda context: _words_of(context)[0],
        _words,
        "'dataset:NAME', a shipped list ('cifar10', ...), a text file, or a list of names",
    ),
    _choice("protocol", "domainbed", "clip", "wise-ft", "lipsum-ft", "host", default=_protocol),
    _filled_in("prompts_digest"),
    _filled_in("clip_digest"),
    _filled_in("clip_revision"),
    Hparam(
        "preprocessing",
        "",
        lambda v: type(v) is str and bool(re.fullmatch(_PREPROCESSING, v)),
        "'' or pixels a side, bicubic or bilinear, shortest or squash: '224 bicubic shortest'",
    ),
    _filled_in("data_edition"),
    _choice("head_init", "zero-shot", "random"),
    _choice("head_scale", "folded", "outside"),
    Hparam("lr", _learning_rate, *_POSITIVE, _draw_learning_rate),
    Hparam(
        "weight_decay", lambda c: 0.0 if c[0] in UNDECAYED else 0.1, *_NOT_NEGATIVE, _draw_decay
    ),
    _choice("weight_decay_all", False, True),
    _choice("sampling", "with-replacement", "passes", "passes-by-shard"),
    _count("batch_size", lambda context: 16 if context.trains_tiny else 32, 1, _draw_batch_size),
    _choice("lr_schedule", "cosine", "constant"),
    _count("warmup_steps", 0),
    _count("total_steps", lambda context: STEPS.get(context[1], 5001), 1),
    Hparam("grad_clip", 1.0, _number, "a number >= 0 (0 is off)"),
    _choice("amp", "auto", "off", "bf16"),
    _choice("original_precision", "bf16", "fp32", default=_small("fp32", "bf16")),
    _count("micro_batch", 0),
    _choice("checkpoint_blocks", False, True),
    _choice("compile_blocks", False, True),
    _count("drift_every", 10),
    _choice("flyp_targets", "same-class", "diagonal"),
    # What any algorithm that trains the encoder may add.
    _weight("margin", "CLIPood", 0.3, -1.3, 0),
    _choice("average", "none", "sma", "ema", "beta", default=_of("CLIPood", "beta", "none")),
    _count("average_start", _small(10, 100)),
    Hparam("ema", _small(0.9, 0.999), *_SHARE),
    Hparam("beta", 0.5, lambda v: _number(v) and 0 < v <= 10, "a number in (0, 10]"),
    Hparam(
        "wise_alpha",
        _of("CLIPWiSEFT", 0.5, 1.0),
        *_SHARE,
        lambda state, c: float(state.uniform(0.2, 0.9)) if c[0] == "CLIPWiSEFT" else 1.0,
    ),
    _count("lp_steps", lambda c: _small(20, 500)(c) if c[0] == "CLIPLPFT" else 0),
    Hparam("lp_lr", 1e-3, *_POSITIVE),
    # The weights of the terms, each of its own algorithm and of CARFT.
    _weight("sp_weight", "CLIPL2SP", 0.5, -3, 1),
    _choice("sp_form", "coupled", "decoupled"),
    _weight("fd_weight", "CLIPFeatureDistillation", 1.0, -1, 2),
    _weight("ldifs_weight", "LDIFS", 10.0, 0, 2),
    _choice("ldifs_axis", "channel", "token"),
    _weight("lipsum_weight", "LipsumFT", 1.0, -1, 1),
    _count("lipsum_texts", 80, 1),
    Hparam(
        "lipsum_length", 8, lambda v: type(v) is int and 0 < v < 76, "a whole number from 1 to 75"
    ),
    _weight("miro_weight", "CLIPMIRO", 1.0, -2, 0),
)


def has_kl(algorithm: str, kl_weight: Any) -> bool:
    """Whether the loss of ``algorithm`` has CAR-FT's term; one that we do not know may have it."""
    return bool(kl_weight) and (algorithm == "CARFT" or algorithm not in ALGORITHMS)


def overlay(
    algorithm: str, dataset: str, random_seed: int, clip_backbone: str = ""
) -> dict[str, tuple[Any, Any]]:
    """name -> (default, random value), as ``domainbed.hparams_registry._hparams`` returns them.

    As in DomainBed each is drawn from its own generator, so that adding one never moves another.
    ``clip_backbone``: the CLIP that takes the place of the data set's default, if any.
    """
    context = Context(algorithm, dataset, clip_backbone)
    values = {}
    for h in HPARAMS:
        default = h.default(context) if callable(h.default) else h.default
        generator = np.random.RandomState(seed_hash(random_seed, h.name))
        values[h.name] = (default, h.draw(generator, context) if h.draw else default)
    return values


def implied(
    algorithm: str, dataset: str, overrides: Mapping[str, Any], random_seed: int | None
) -> dict[str, Any]:
    """The hparams that become others by the ``clip_backbone`` among a user's ``overrides``.

    These are the learning rate and the batch of "tiny", unless the user sets them too.
    ``random_seed``: of a random draw; None for the defaults.
    """
    clip_backbone = overrides.get("clip_backbone", "")
    which = 0 if random_seed is None else 1
    usual = overlay(algorithm, dataset, random_seed or 0)
    of_backbone = overlay(algorithm, dataset, random_seed or 0, clip_backbone)
    return {
        name: values[which]
        for name, values in of_backbone.items()
        if values[which] != usual[name][which] and name not in overrides
    }
