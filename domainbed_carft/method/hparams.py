"""The hyperparameters of our algorithms: defaults, valid values, random draws. No torch.

Every value is a plain Python one, so that a record round-trips through JSON. docs/method.md gives
the source of each, and which are our choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data.tasks import TASKS
from domainbed_carft.jobs.algorithms import ALGORITHMS as ALGORITHMS
from domainbed_carft.jobs.job import seed_hash
from domainbed_carft.method import hparam_kinds as kinds
from domainbed_carft.method.hparam_kinds import EMBEDDED, Conditions, Hparam

UNCHECKED = "unchecked"  # the hparam data_edition that trains on any data
# Lipsum-FT's and MIRO's authors have no weight decay; in L2-SP it would pull to another point.
UNDECAYED = ("CLIPL2SP", "LipsumFT", "CLIPMIRO")
# Between which powers of ten the learning rate is drawn, for the embedded CLIP and for others.
TINY_RATES = (-4.5, -3.0)
RATES = (-6.0, -4.5)
# MLAI-Yonsei/CaRot, README; MaxZanella/CLIP-LoRA, run_utils.py.
_PUBLISHED_RATES = {"CaRot": 1e-5, "CLIPLoRA": 2e-4}
# Of those that train a head or low-rank factors alone: the multiple of the learning rate.
RATE_FACTORS = {"CLIPLinearProbe": 10, "CLIPLoRA": 10}
_PREPROCESSING = r"|([1-9][0-9]{0,2}|[123][0-9]{3}) (bicubic|bilinear) (shortest|squash)"
DEFAULT_STEPS = 5001  # DomainBed's
STEPS = dict.fromkeys(EMBEDDED, 101) | {"ImageNet": 25_030}  # of the other data sets


class _PromptLists(NamedTuple):
    """The hparams ``class_names`` and ``contexts`` of a data set."""

    class_names: str
    contexts: str


def _prompt_lists(conditions: Conditions) -> _PromptLists:
    task = TASKS.get(conditions.dataset)
    if conditions.dataset == "ImageNet":
        return _PromptLists("imagenet", "imagenet")
    if task is None:
        contexts = kinds.by_size("emoji", "imagenet")(conditions)
        return _PromptLists(f"dataset:{conditions.dataset}", contexts)
    return _PromptLists(task.words, task.contexts or task.words)


def _protocol(conditions: Conditions) -> str:
    if conditions.dataset == "ImageNet":
        return "wise-ft"
    return "clip" if conditions.dataset in TASKS else "domainbed"


def _learning_rate(conditions: Conditions) -> float:
    rate = 1e-5 if conditions.dataset in ("OfficeHome", "DomainNet") else 5e-6
    if conditions.trains_tiny:
        rate = 3e-4
    elif conditions.algorithm in _PUBLISHED_RATES:
        return _PUBLISHED_RATES[conditions.algorithm]
    return RATE_FACTORS.get(conditions.algorithm, 1) * rate


def _draw_learning_rate(random_state: np.random.RandomState, conditions: Conditions) -> float:
    low, high = TINY_RATES if conditions.trains_tiny else RATES
    rate: float = kinds.power_of_ten(low, high)(random_state, conditions)
    return RATE_FACTORS.get(conditions.algorithm, 1) * rate


def _decay(conditions: Conditions) -> float:
    if conditions.algorithm in UNDECAYED:
        return 0.0
    return 0.01 if conditions.algorithm == "CLIPLoRA" else 0.1


def _draw_decay(random_state: np.random.RandomState, conditions: Conditions) -> float:
    if conditions.algorithm in UNDECAYED:
        return 0.0
    decay: float = kinds.power_of_ten(-3, 0)(random_state, conditions)
    return decay


def _draw_batch_size(random_state: np.random.RandomState, conditions: Conditions) -> int:
    return int(2 ** random_state.uniform(3, 5 if conditions.dataset == "DomainNet" else 5.5))


def _draw_wise_alpha(random_state: np.random.RandomState, conditions: Conditions) -> float:
    return float(random_state.uniform(0.2, 0.9)) if conditions.algorithm == "CLIPWiSEFT" else 1.0


def _lp_steps(conditions: Conditions) -> int:
    if conditions.algorithm != "CLIPLPFT":
        return 0
    return 20 if conditions.dataset in kinds.SMALL_DATASETS else 500


HPARAMS: tuple[Hparam, ...] = (
    Hparam(
        "clip_backbone",
        kinds.by_size("tiny", "ViT-B/16"),
        lambda v: isinstance(v, str) and bool(v),
        "'tiny', one of OpenAI's names ('ViT-B/16'), the path of an OpenAI-format file, or "
        "open_clip:NAME/TAG, open_clip:hf-hub:ORG/REPO or open_clip:local-dir:FOLDER",
    ),
    kinds.nonnegative("kl_weight", 1.0, kinds.power_of_ten(-1, 1)),
    kinds.choice("kl_direction", "original||fine-tuned", "fine-tuned||original"),
    kinds.choice("kl_over", "contexts", "clusters", "captions", "other-captions"),
    kinds.count("context_clusters", 20, 2),
    kinds.choice("kl_schedule", "constant", "linear"),
    Hparam(
        "context_scale",
        "logit_scale",
        lambda v: v == "logit_scale" or kinds.is_positive(v),
        "'logit_scale' or a number > 0",
    ),
    Hparam(
        "contexts",
        lambda conditions: _prompt_lists(conditions).contexts,
        kinds.is_text_or_texts,
        "a shipped list ('imagenet7', ...), 'domains', a text file, or a list of templates",
    ),
    Hparam(
        "class_names",
        lambda conditions: _prompt_lists(conditions).class_names,
        kinds.is_text_or_texts,
        "'dataset:NAME', a shipped list ('cifar10', ...), a text file, or a list of names",
    ),
    kinds.choice(
        "protocol", "domainbed", "clip", "wise-ft", "lipsum-ft", "host", default=_protocol
    ),
    kinds.filled_in("prompts_digest"),
    kinds.filled_in("clip_digest"),
    kinds.filled_in("clip_revision"),
    Hparam(
        "preprocessing",
        "",
        lambda v: type(v) is str and bool(re.fullmatch(_PREPROCESSING, v)),
        "'' or pixels a side, bicubic or bilinear, shortest or squash: '224 bicubic shortest'",
    ),
    kinds.filled_in("data_edition"),
    kinds.choice("head_init", "zero-shot", "random"),
    kinds.choice("head_scale", "folded", "outside"),
    kinds.positive("lr", _learning_rate, _draw_learning_rate),
    kinds.nonnegative("weight_decay", _decay, _draw_decay),
    kinds.choice("weight_decay_all", False, True),
    kinds.choice("sampling", "with-replacement", "passes", "passes-by-shard"),
    kinds.count(
        "batch_size", lambda conditions: 16 if conditions.trains_tiny else 32, 1, _draw_batch_size
    ),
    kinds.choice("lr_schedule", "cosine", "constant"),
    kinds.count("warmup_steps", 0),
    kinds.count("total_steps", lambda conditions: STEPS.get(conditions.dataset, DEFAULT_STEPS), 1),
    Hparam("grad_clip", 1.0, kinds.is_number, "a number >= 0 (0 is off)"),
    kinds.choice("amp", "auto", "off", "bf16"),
    kinds.choice("original_precision", "bf16", "fp32", default=kinds.by_size("fp32", "bf16")),
    kinds.count("micro_batch", 0),
    kinds.choice("checkpoint_blocks", False, True),
    kinds.choice("compile_blocks", False, True),
    kinds.count("drift_every", 10),
    kinds.choice("flyp_targets", "same-class", "diagonal"),
    # MLAI-Yonsei/CaRot, README and src/args.py.
    kinds.term_weight("carot_distillation", "CaRot", 1.5, -1, 1)._replace(absent=0.0),
    kinds.term_weight("carot_orthogonality", "CaRot", 0.2, -2, 0)._replace(absent=0.0),
    kinds.count("carot_interval", kinds.by_size(2, 500), 1)._replace(absent=500),
    # What any algorithm that trains the encoder may add.
    kinds.term_weight("margin", "CLIPood", 0.3, -1.3, 0),
    kinds.choice(
        "average",
        "none",
        "sma",
        "ema",
        "beta",
        "swad",
        default=kinds.by_algorithm("CLIPood", "beta", "none"),
    ),
    kinds.count("average_start", kinds.by_size(10, 100)),
    kinds.share("ema", kinds.by_size(0.9, 0.999)),
    Hparam("beta", 0.5, lambda v: kinds.is_positive(v) and v <= 10, "a number in (0, 10]"),
    # khanrc/swad, config.yaml and README.
    kinds.count("swad_converge", 3, 1)._replace(absent=3),
    kinds.count("swad_tolerance", 6, 1)._replace(absent=6),
    kinds.nonnegative("swad_ratio", lambda c: 0.2 if c.dataset == "VLCS" else 0.3)._replace(
        absent=0.3
    ),
    kinds.share("wise_alpha", kinds.by_algorithm("CLIPWiSEFT", 0.5, 1.0), _draw_wise_alpha),
    kinds.count(
        "lp_steps", lambda c: kinds.by_size(20, 500)(c) if c.algorithm == "CLIPLPFT" else 0
    ),
    kinds.positive("lp_lr", 1e-3),
    # Low-rank adaptation in place of training the encoder: MaxZanella/CLIP-LoRA, run_utils.py.
    kinds.count("lora_rank", kinds.by_algorithm("CLIPLoRA", 2, 0))._replace(absent=0),
    kinds.positive("lora_alpha", 1.0)._replace(absent=1.0),
    kinds.choice("lora_scaling", "alpha/sqrt(r)", "alpha/r")._replace(absent="alpha/r"),
    Hparam(
        "lora_dropout", 0.25, lambda v: kinds.is_number(v) and v < 1, "a number in [0, 1)"
    )._replace(absent=0.25),
    # The weights of the terms, each of its own algorithm and of CARFT.
    kinds.term_weight("sp_weight", "CLIPL2SP", 0.5, -3, 1),
    kinds.choice("sp_form", "coupled", "decoupled"),
    kinds.term_weight("fd_weight", "CLIPFeatureDistillation", 1.0, -1, 2),
    kinds.term_weight("ldifs_weight", "LDIFS", 10.0, 0, 2),
    kinds.choice("ldifs_axis", "channel", "token"),
    kinds.term_weight("lipsum_weight", "LipsumFT", 1.0, -1, 1),
    kinds.count("lipsum_texts", 80, 1),
    Hparam(
        "lipsum_length", 8, lambda v: type(v) is int and 0 < v < 76, "a whole number from 1 to 75"
    ),
    kinds.term_weight("miro_weight", "CLIPMIRO", 1.0, -2, 0),
)

# Name -> the value that runs had in effect before there was a hyperparameter of that name.
EARLIER_VALUES = {hparam.name: hparam.absent for hparam in HPARAMS if hparam.absent is not None}


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
    conditions = Conditions(algorithm, dataset, clip_backbone)
    values = {}
    generator = np.random.RandomState()  # seeding one is much faster than making many
    for hparam in HPARAMS:
        default = hparam.default(conditions) if callable(hparam.default) else hparam.default
        drawn_value = default
        if hparam.draw:
            generator.seed(seed_hash(random_seed, hparam.name))
            drawn_value = hparam.draw(generator, conditions)

        values[hparam.name] = (default, drawn_value)
    return values


def implied(
    algorithm: str, dataset: str, overrides: Mapping[str, Any], random_seed: int | None
) -> dict[str, Any]:
    """The hparams that become others by the ``clip_backbone`` among a user's ``overrides``.

    These are the learning rate and the batch of "tiny", unless the user sets them too.
    ``random_seed``: of a random draw; None for the defaults.
    """
    clip_backbone = overrides.get("clip_backbone", "")
    index = 0 if random_seed is None else 1  # in the pairs of default and random value
    usual_values = overlay(algorithm, dataset, random_seed or 0)
    backbone_values = overlay(algorithm, dataset, random_seed or 0, clip_backbone)
    return {
        name: pair[index]
        for name, pair in backbone_values.items()
        if pair[index] != usual_values[name][index] and name not in overrides
    }
