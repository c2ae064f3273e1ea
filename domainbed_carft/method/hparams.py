"""The hyperparameters of our algorithms: defaults, valid values, random draws. No torch.

Every value is a plain Python one, so that a record round-trips through JSON. All algorithms take
the same names, because one ``--hparams`` of a sweep goes to every algorithm in it.
docs/method.md gives the source of each value, and which are our choice.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
EMBEDDED = ("EmojiStyles", "EmojiShift")
SMALL_DATASETS = (*EMBEDDED, "Debug28", "Debug224")  # served by the embedded "tiny" CLIP
STEPS = dict.fromkeys(EMBEDDED, 101) | {"ImageNet": 25_030}  # of those that do not train for 5,001

Context = tuple[str, str]  # algorithm, data set
Draw = Callable[[np.random.RandomState, Context], Any]
Kind = tuple[Callable[[Any], bool], str]


@dataclass(frozen=True)
class Hparam:
    """One hyperparameter.

    ``default(context)`` and ``draw(random_state, context)`` get (algorithm, data set);
    ``valid(value)`` is what a value must satisfy, said in words by ``expected``. Without ``draw``
    the random search keeps the default: the value belongs to the protocol, not to the search.
    """

    name: str
    default: Callable[[Context], Any]
    valid: Callable[[Any], bool]
    expected: str
    draw: Draw | None = None


def _number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and type(value) is not bool
    return known and 0 <= value <= sys.float_info.max  # below 10**400, which JSON can write


def _count(low: int) -> Kind:
    return lambda v: type(v) is int and v >= low, f"a whole number >= {low}"


def _one_of(*choices: Any) -> Kind:
    expected = "one of " + ", ".join(map(repr, choices))
    return lambda v: v in choices and type(v) in {type(c) for c in choices}, expected


def _words(expected: str) -> Kind:
    def valid(value: Any) -> bool:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not words:
            return False
        return all(isinstance(word, str) and word for word in words)

    return valid, expected


_NOT_NEGATIVE: Kind = (_number, "a number >= 0")
_SHARE: Kind = (lambda v: _number(v) and v <= 1, "a number in [0, 1]")
_POSITIVE: Kind = (lambda v: _number(v) and v > 0, "a number > 0")
_PREPROCESSING = r"([1-9][0-9]{0,2}|[123][0-9]{3}) (bicubic|bilinear) (shortest|squash)"
_FILLED_IN: Kind = (lambda v: isinstance(v, str), "'' or the value in an earlier record")


def _always(value: Any) -> Callable[[Context], Any]:
    return lambda context: value


def _small(small: Any, otherwise: Any) -> Callable[[Context], Any]:
    return lambda context: small if context[1] in SMALL_DATASETS else otherwise


def _words_of(context: Context) -> tuple[str, str]:
    """The class names and the contexts of a data set."""
    task = TASKS.get(context[1])
    if context[1] == "ImageNet":
        return "imagenet", "imagenet"
    if task is None:
        return f"dataset:{context[1]}", _small("emoji", "imagenet")(context)
    return task.words, task.contexts or task.words


def _of(name: str, own: Any, otherwise: Any) -> Callable[[Context], Any]:
    """The published value of the algorithm ``name``, and what leaves all others as they are."""
    return lambda context: own if context[0] == name else otherwise


def _drawn_by(name: str, draw: Draw, otherwise: Any) -> Draw:
    return lambda state, context: draw(state, context) if context[0] == name else otherwise


def _power_of_ten(low: float, high: float) -> Draw:
    return lambda random_state, context: float(10 ** random_state.uniform(low, high))


def _learning_rate(context: Context) -> float:
    algorithm, dataset = context
    usual = 1e-5 if dataset in ("OfficeHome", "DomainNet") else 5e-6
    rate = 3e-4 if dataset in SMALL_DATASETS else usual
    return 10 * rate if algorithm == "CLIPLinearProbe" else rate


def _draw_learning_rate(random_state: np.random.RandomState, context: Context) -> float:
    powers = (-4.5, -3.0) if context[1] in SMALL_DATASETS else (-6.0, -4.5)
    rate: float = _power_of_ten(*powers)(random_state, context)
    return 10 * rate if context[0] == "CLIPLinearProbe" else rate


def _decay(context: Context) -> float:
    return 0.0 if context[0] in UNDECAYED else 0.1


def _draw_decay(random_state: np.random.RandomState, context: Context) -> float:
    drawn: float = _power_of_ten(-3, 0)(random_state, context)
    return 0.0 if context[0] in UNDECAYED else drawn


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
    Hparam("kl_weight", _always(1.0), *_NOT_NEGATIVE, _power_of_ten(-1, 1)),
    Hparam(
        "kl_direction",
        _always("original||fine-tuned"),
        *_one_of("original||fine-tuned", "fine-tuned||original"),
    ),
    Hparam(
        "kl_over",
        _always("contexts"),
        *_one_of("contexts", "clusters", "captions", "other-captions"),
    ),
    Hparam("context_clusters", _always(20), *_count(2)),
    Hparam("kl_schedule", _always("constant"), *_one_of("constant", "linear")),
    Hparam(
        "context_scale",
        _always("logit_scale"),
        lambda v: v == "logit_scale" or (_number(v) and v > 0),
        "'logit_scale' or a number > 0",
    ),
    Hparam(
        "contexts",
        lambda context: _words_of(context)[1],
        *_words(
            "a shipped list ('imagenet', 'imagenet7', ...), 'domains', a text file, or a list of "
            "templates"
        ),
    ),
    Hparam(
        "class_names",
        lambda context: _words_of(context)[0],
        *_words(
            "'dataset:NAME', a shipped list ('cifar10', ...), the path of a text file with one "
            "name per line, or a list"
        ),
    ),
    Hparam(
        "protocol",
        lambda c: "wise-ft" if c[1] == "ImageNet" else "clip" if c[1] in TASKS else "domainbed",
        *_one_of("domainbed", "clip", "wise-ft", "host"),
    ),
    Hparam("prompts_digest", _always(""), *_FILLED_IN),
    Hparam("clip_digest", _always(""), *_FILLED_IN),
    Hparam("clip_revision", _always(""), *_FILLED_IN),
    Hparam(
        "preprocessing",
        _always(""),
        lambda v: v == "" or (type(v) is str and bool(re.fullmatch(_PREPROCESSING, v))),
        "'' or what a data set is to deliver, as '224 bicubic shortest': pixels a side, bicubic or "
        "bilinear, shortest or squash",
    ),
    Hparam("data_edition", _always(""), *_FILLED_IN),
    Hparam("head_init", _always("zero-shot"), *_one_of("zero-shot", "random")),
    Hparam("head_scale", _always("folded"), *_one_of("folded", "outside")),
    Hparam("lr", _learning_rate, *_POSITIVE, _draw_learning_rate),
    Hparam("weight_decay", _decay, *_NOT_NEGATIVE, _draw_decay),
    Hparam("weight_decay_all", _always(False), *_one_of(False, True)),
    Hparam(
        "sampling",
        _always("with-replacement"),
        *_one_of("with-replacement", "passes", "passes-by-shard"),
    ),
    Hparam("batch_size", _small(16, 32), *_count(1), _draw_batch_size),
    Hparam("lr_schedule", _always("cosine"), *_one_of("cosine", "constant")),
    Hparam("warmup_steps", _always(0), *_count(0)),
    Hparam("total_steps", lambda context: STEPS.get(context[1], 5001), *_count(1)),
    Hparam("grad_clip", _always(1.0), _number, "a number >= 0 (0 is off)"),
    Hparam("amp", _always("auto"), *_one_of("auto", "off", "bf16")),
    Hparam("original_precision", _small("fp32", "bf16"), *_one_of("bf16", "fp32")),
    Hparam("micro_batch", _always(0), *_count(0)),
    Hparam("checkpoint_blocks", _always(False), *_one_of(False, True)),
    Hparam("compile_blocks", _always(False), *_one_of(False, True)),
    Hparam("drift_every", _always(10), *_count(0)),
    Hparam("flyp_targets", _always("same-class"), *_one_of("same-class", "diagonal")),
    # What any algorithm that trains the encoder may add.
    Hparam(
        "margin",
        _of("CLIPood", 0.3, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("CLIPood", _power_of_ten(-1.3, 0), 0.0),
    ),
    Hparam("average", _of("CLIPood", "beta", "none"), *_one_of("none", "sma", "ema", "beta")),
    Hparam("average_start", _small(10, 100), *_count(0)),
    Hparam("ema", _small(0.9, 0.999), *_SHARE),
    Hparam("beta", _always(0.5), lambda v: _number(v) and 0 < v <= 10, "a number in (0, 10]"),
    Hparam(
        "wise_alpha",
        _of("CLIPWiSEFT", 0.5, 1.0),
        *_SHARE,
        _drawn_by("CLIPWiSEFT", lambda state, context: float(state.uniform(0.2, 0.9)), 1.0),
    ),
    Hparam("lp_steps", lambda c: _small(20, 500)(c) if c[0] == "CLIPLPFT" else 0, *_count(0)),
    Hparam("lp_lr", _always(1e-3), *_POSITIVE),
    # The weights of the terms, each of its own algorithm and of CARFT.
    Hparam(
        "sp_weight",
        _of("CLIPL2SP", 0.5, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("CLIPL2SP", _power_of_ten(-3, 1), 0.0),
    ),
    Hparam("sp_form", _always("coupled"), *_one_of("coupled", "decoupled")),
    Hparam(
        "fd_weight",
        _of("CLIPFeatureDistillation", 1.0, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("CLIPFeatureDistillation", _power_of_ten(-1, 2), 0.0),
    ),
    Hparam(
        "ldifs_weight",
        _of("LDIFS", 10.0, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("LDIFS", _power_of_ten(0, 2), 0.0),
    ),
    Hparam("ldifs_axis", _always("channel"), *_one_of("channel", "token")),
    Hparam(
        "lipsum_weight",
        _of("LipsumFT", 1.0, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("LipsumFT", _power_of_ten(-1, 1), 0.0),
    ),
    Hparam("lipsum_texts", _always(80), *_count(1)),
    Hparam(
        "lipsum_length",
        _always(8),
        lambda v: type(v) is int and 1 <= v <= 75,
        "a whole number from 1 to 75, since CLIP reads 77 tokens",
    ),
    Hparam(
        "miro_weight",
        _of("CLIPMIRO", 1.0, 0.0),
        *_NOT_NEGATIVE,
        _drawn_by("CLIPMIRO", _power_of_ten(-2, 0), 0.0),
    ),
)


def overlay(algorithm: str, dataset: str, random_seed: int) -> dict[str, tuple[Any, Any]]:
    """name -> (default, random value), as ``domainbed.hparams_registry._hparams`` returns them.

    Each value is drawn from its own generator, seeded by ``random_seed`` and its name as DomainBed
    seeds it, so that adding one never moves another.
    """
    context = (algorithm, dataset)
    values = {}
    for h in HPARAMS:
        default = h.default(context)
        generator = np.random.RandomState(seed_hash(random_seed, h.name))
        values[h.name] = (default, h.draw(generator, context) if h.draw else default)
    return values
