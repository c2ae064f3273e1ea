"""The hyperparameters of our algorithms: name, default, random draw, reason. No torch.

Every value is a plain Python one, so that a record round-trips through JSON. All four algorithms
take the same names, because one ``--hparams`` of a sweep goes to every algorithm in it. Where the
paper leaves a value open, the reason says that the default is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from domainbed_carft.jobs.job import seed_hash

ALGORITHMS = ("CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")
UNCHECKED = "unchecked"  # the hparam data_edition for data that is to be trained on as it is
SMALL_DATASETS = ("EmojiStyles", "Debug28", "Debug224")  # served by the embedded "tiny" CLIP

Context = tuple[str, str]  # algorithm, data set
Draw = Callable[[np.random.RandomState, Context], Any]


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
    reason: str
    draw: Draw | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", f"{self.reason} Expected: {self.expected}.")


def _number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda v: (
        isinstance(v, (int, float))
        and not isinstance(v, bool)
        and low <= v <= high
        and v < math.inf
    )


def _count(low: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low


def _one_of(*choices: Any) -> dict[str, Any]:
    return {
        "valid": lambda v: v in choices and type(v) in {type(c) for c in choices},
        "expected": "one of " + ", ".join(map(repr, choices)),
    }


def _always(value: Any) -> Callable[[Context], Any]:
    return lambda context: value


def _small(small: Any, otherwise: Any) -> Callable[[Context], Any]:
    return lambda context: small if context[1] in SMALL_DATASETS else otherwise


def _words(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(v, str) and v for v in value)
    )


def _learning_rate(context: Context) -> float:
    algorithm, dataset = context
    if dataset in SMALL_DATASETS:
        rate = 3e-4
    else:
        rate = 1e-5 if dataset in ("OfficeHome", "DomainNet") else 5e-6
    return 10 * rate if algorithm == "CLIPLinearProbe" else rate


def _draw_learning_rate(random_state: np.random.RandomState, context: Context) -> float:
    low, high = (-4.5, -3.0) if context[1] in SMALL_DATASETS else (-6.0, -4.5)
    rate = float(10 ** random_state.uniform(low, high))
    return 10 * rate if context[0] == "CLIPLinearProbe" else rate


def _draw_batch_size(random_state: np.random.RandomState, context: Context) -> int:
    return int(2 ** random_state.uniform(3, 5 if context[1] == "DomainNet" else 5.5))


HPARAMS: tuple[Hparam, ...] = (
    Hparam(
        "clip_backbone",
        _small("tiny", "ViT-B/16"),
        lambda v: isinstance(v, str) and bool(v),
        "'tiny', one of OpenAI's names ('ViT-B/16'), or the path of an OpenAI-format file",
        "The CLIP to fine-tune. The published DomainBed figures are ViT-B/16's.",
    ),
    Hparam(
        "kl_weight",
        _always(1.0),
        _number(0),
        "a number >= 0",
        "lambda, the weight of the KL term (CARFT only). The paper's value is not public; 1 is our "
        "reading. Drawn from 10^U(-1, 1).",
        lambda r, _: float(10 ** r.uniform(-1, 1)),
    ),
    Hparam(
        "kl_direction",
        _always("original||fine-tuned"),
        **_one_of("original||fine-tuned", "fine-tuned||original"),
        reason="Which distribution the expectation of the KL is taken under. Our reading.",
    ),
    Hparam(
        "context_scale",
        _always("logit_scale"),
        lambda v: v == "logit_scale" or (_number(0)(v) and v > 0),
        "'logit_scale' or a number > 0",
        "t, the scale of the context logits. The paper's value is unknown; the model's own logit "
        "scale (100 for OpenAI's) is what zero-shot CLIP uses.",
    ),
    Hparam(
        "contexts",
        _small("emoji", "imagenet"),
        _words,
        "a shipped list ('imagenet', 'emoji'), the path of a text file, or a list of templates",
        "The contexts. OpenAI's 80 ImageNet templates, as in the paper's ImageNet runs; what it "
        "used on DomainBed is unknown, so this is our choice.",
    ),
    Hparam(
        "class_names",
        lambda context: f"dataset:{context[1]}",
        _words,
        "'dataset:NAME', the path of a text file with a name a line, or a list of names",
        "The words for the classes, in label order. 'dataset:NAME' takes the folders' names, else "
        "the built-in table.",
    ),
    Hparam(
        "protocol",
        _always("domainbed"),
        **_one_of("domainbed", "clip", "host"),
        reason="What happens to a picture first: DomainBed's transforms, or those of CLIP's own "
        "pre-processing with crop and flip in training, as CLIPood has them. A run in a fork that "
        "transforms in a way of its own records 'host'.",
    ),
    Hparam(
        "prompts_digest",
        _always(""),
        lambda v: isinstance(v, str),
        "'', or the digest that an earlier record shows",
        "Digest of all class names and contexts, filled in by the run so that each record can be "
        "audited (prompts.digest). Given beforehand, it must fit, or the run is refused.",
    ),
    Hparam(
        "clip_digest",
        _always(""),
        lambda v: isinstance(v, str),
        "'', or the SHA-256 that an earlier record shows",
        "SHA-256 of the CLIP that the run started from, filled in by the run. Given beforehand, it "
        "must fit, or the run is refused.",
    ),
    Hparam(
        "data_edition",
        _always(""),
        lambda v: isinstance(v, str),
        "'', 'unchecked', or the edition that an earlier record shows",
        "Verdict on the data by the counts of its pictures, and their digest where they are no "
        "known edition's, filled in by the run. Data that is broken is refused, unless this is "
        "'unchecked'.",
    ),
    Hparam(
        "head_init",
        _always("zero-shot"),
        **_one_of("zero-shot", "random"),
        reason="Where the linear head starts: W_cls, as the paper's authors do, or at random, "
        "which costs CLIP up to 16 points (khanrc/miro issue 6).",
    ),
    Hparam(
        "lr",
        _learning_rate,
        lambda v: _number(0)(v) and v > 0,
        "a number > 0",
        "AdamW's peak rate: 5e-6, and 1e-5 for OfficeHome and DomainNet, after CLIPood; 3e-4 for "
        "the tiny CLIP, and ten times as much for the linear probe, by our choice. Drawn from "
        "10^U(-6, -4.5), 10^U(-4.5, -3) for tiny.",
        _draw_learning_rate,
    ),
    Hparam(
        "weight_decay",
        _always(0.1),
        _number(0),
        "a number >= 0",
        "AdamW's decoupled decay; 0.1 in WiSE-FT, CLIPood and the CAR-FT authors' own fine-tuning. "
        "Drawn from 10^U(-3, 0).",
        lambda r, _: float(10 ** r.uniform(-3, 0)),
    ),
    Hparam(
        "weight_decay_all",
        _always(False),
        **_one_of(False, True),
        reason="Also decay biases, norms and embeddings, which are left alone by default.",
    ),
    Hparam(
        "batch_size",
        _small(16, 32),
        _count(1),
        "a whole number >= 1",
        "Pictures a training environment and step: DomainBed's 32; 16 for the tiny CLIP, so that "
        "the demo takes minutes. Drawn from 2^U(3, 5.5), "
        "2^U(3, 5) for DomainNet, as DomainBed draws it.",
        _draw_batch_size,
    ),
    Hparam(
        "lr_schedule",
        _always("cosine"),
        **_one_of("cosine", "constant"),
        reason="What the rate does after the warm-up: down to 0 along a cosine, as in the CAR-FT "
        "authors' fine-tuning and CLIPood, or stay.",
    ),
    Hparam(
        "warmup_steps",
        _small(10, 500),
        _count(0),
        "a whole number >= 0",
        "Steps over which the rate rises from 0: WiSE-FT's 500, a tenth of DomainBed's 5,001; 10 "
        "for the tiny CLIP, a tenth of EmojiStyles' 101.",
    ),
    Hparam(
        "total_steps",
        lambda context: 101 if context[1] == "EmojiStyles" else 5001,
        _count(1),
        "a whole number >= 1",
        "Where the cosine ends: DomainBed's 5,001 steps, 101 for EmojiStyles. DomainBed does not "
        "tell the algorithm how long it trains: set it together with --steps.",
    ),
    Hparam(
        "grad_clip",
        _always(1.0),
        _number(0),
        "a number >= 0; 0 is off",
        "Largest norm of the gradient; 1.0 in WiSE-FT and the CAR-FT authors' fine-tuning.",
    ),
    Hparam(
        "amp",
        _always("off"),
        **_one_of("off", "bf16"),
        reason="Autocast of the fine-tuned encoder. Off by default, so that CPU and GPU agree.",
    ),
    Hparam(
        "original_precision",
        _small("fp32", "bf16"),
        **_one_of("bf16", "fp32"),
        reason="Precision of the frozen original encoder. Our choice: bf16 autocast costs less "
        "where the processor computes in it, at a small error of the KL (docs/measured.md); the "
        "tiny model gains nothing from it.",
    ),
    Hparam(
        "drift_every",
        _always(10),
        _count(0),
        "a whole number >= 0; 0 is off",
        "Every how many steps CLIPFineTune measures the drift of the context distribution, which "
        "costs a forward pass of the original encoder. CARFT knows it at every step for free.",
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
