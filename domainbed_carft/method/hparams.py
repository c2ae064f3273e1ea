"""The definition of a hyperparameter, and the hyperparameters of all algorithms. No torch.

All values are plain Python values, so that a record round-trips through JSON. The hyperparameters
of a single method are declared in its file, in the `HPARAMS` of its class; all of them together are
in `algorithms.hparam_values`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from domainbed_carft.data.tasks import TASKS
from domainbed_carft.jobs.job import seed_hash

EMBEDDED = ("EmojiStyles", "EmojiUnseen", "EmojiShift")
SMALL_DATASETS = (*EMBEDDED, "Debug28", "Debug224")  # served by the embedded "tiny" CLIP
DEFAULT_STEPS = 5001  # DomainBed's
STEPS = dict.fromkeys(EMBEDDED, 101) | {"ImageNet": 25_030}  # other defaults
KL_DIRECTIONS = ("original||fine-tuned", "fine-tuned||original")
UNVERIFIED = "unverified"  # the value of data_edition that allows any data

_PREPROCESSING = r"([1-9][0-9]{0,2}|[123][0-9]{3}) (bicubic|bilinear) (shortest|squash)"
_SAME_DEFAULT = object()


class Conditions(NamedTuple):
    """The conditions that defaults and draws depend on."""

    dataset: str
    clip_backbone: str = ""  # replaces the dataset's default CLIP model, "" for the default
    steps: int | None = None  # training steps of the job, None for the dataset's default

    @property
    def trains_tiny(self) -> bool:
        """True if learning rate and batch size are chosen for the embedded CLIP model."""
        if self.clip_backbone:
            return self.clip_backbone == "tiny"
        return self.dataset in SMALL_DATASETS


Draw = Callable[[np.random.RandomState, Conditions], Any]


@dataclass(frozen=True)
class Hparam:
    """A hyperparameter: its default, its valid values, its random draw, and its meaning.

    Attributes:
        name: the key in ``--hparams``.
        default: a value, or a function of the `Conditions`.
        valid: returns True for a valid value.
        expected: the valid values, in words.
        draw: draws a value for the random search. Without it, the search keeps the default.
        meaning: one sentence on its effect.
        source: origin of the default.
        elsewhere: for a hyperparameter of one method, the value in the records of other methods, by
            default the same.
        changes_cost: True if the time or memory of a step depends on it.
        changes_result: False if the trained weights do not depend on it, except for rounding.
    """

    name: str
    default: Any
    valid: Callable[[Any], bool]
    expected: str
    draw: Draw | None = None
    meaning: str = ""
    source: str = "this package"
    elsewhere: Any = _SAME_DEFAULT
    changes_cost: bool = True
    changes_result: bool = True

    def default_for(self, conditions: Conditions) -> Any:
        """Return the default under these conditions."""
        return self.default(conditions) if callable(self.default) else self.default

    def for_other_methods(self) -> Hparam:
        """Return the hyperparameter as recorded by other methods."""
        if self.elsewhere is _SAME_DEFAULT:
            return self
        return replace(self, default=self.elsewhere, draw=None)


def get_defaults(hparams: Mapping[str, Hparam], conditions: Conditions) -> dict[str, Any]:
    """Return the default of each hyperparameter under these conditions."""
    return {name: hparam.default_for(conditions) for name, hparam in hparams.items()}


def draw_values(
    hparams: Mapping[str, Hparam], conditions: Conditions, random_seed: int | None
) -> dict[str, Any]:
    """Draw each hyperparameter that has a draw; without a seed, none.

    As in DomainBed, each is drawn from a separate generator, so that adding one never changes
    another.
    """
    values: dict[str, Any] = {}
    if random_seed is None:
        return values

    generator = np.random.RandomState()  # seeding one is much faster than building many
    for name, hparam in hparams.items():
        if hparam.draw:
            generator.seed(seed_hash(random_seed, name))
            values[name] = hparam.draw(generator, conditions)
    return values


def is_number(value: Any) -> bool:
    """Return True for a number >= 0 that fits into a float; JSON can have 10**400."""
    if not isinstance(value, (int, float)) or type(value) is bool:
        return False
    return 0 <= value <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Return True for a number > 0 that fits into a float."""
    return is_number(value) and value > 0


def is_preprocessing(value: Any) -> bool:
    """Return True for the image format of a CLIP model, such as "224 bicubic shortest"."""
    return type(value) is str and bool(re.fullmatch(_PREPROCESSING, value))


def _is_fraction(value: Any) -> bool:
    return is_number(value) and bool(value <= 1)


def _is_text_or_list(value: Any) -> bool:
    """Return True for a non-empty text, or a list of non-empty texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts:
        return False
    return all(isinstance(text, str) and text for text in texts)


def by_size(small: Any, large: Any) -> Callable[[Conditions], Any]:
    """Return a default that is ``small`` on SMALL_DATASETS and ``large`` on other datasets."""
    return lambda conditions: small if conditions.dataset in SMALL_DATASETS else large


def power_of_ten(low: float, high: float) -> Draw:
    """Return a draw of 10 to the power of a uniform number between ``low`` and ``high``."""
    return lambda random_state, conditions: float(10 ** random_state.uniform(low, high))


def choice(name: str, *choices: Any, default: Any = None, **options: Any) -> Hparam:
    """Return a hyperparameter with a few valid values.

    Args:
        name: the key in ``--hparams``.
        *choices: the valid values.
        default: the default, by default the first choice.
        **options: further fields of `Hparam`.
    """
    kinds = {type(choice) for choice in choices}
    expected = "one of " + ", ".join(map(repr, choices))
    default = choices[0] if default is None else default
    return Hparam(name, default, lambda v: v in choices and type(v) in kinds, expected, **options)


def count(name: str, default: Any, minimum: int = 0, **options: Any) -> Hparam:
    """Return a hyperparameter for whole numbers.

    Args:
        name: the key in ``--hparams``.
        default: a number or a function of the `Conditions`.
        minimum: the smallest valid number.
        **options: further fields of `Hparam`.
    """
    expected = f"a whole number >= {minimum}"
    return Hparam(name, default, lambda v: type(v) is int and v >= minimum, expected, **options)


def nonnegative(name: str, default: Any, **options: Any) -> Hparam:
    """Return a hyperparameter for numbers >= 0; ``options`` are further fields of `Hparam`."""
    return Hparam(name, default, is_number, "a number >= 0", **options)


def positive(name: str, default: Any, **options: Any) -> Hparam:
    """Return a hyperparameter for numbers > 0; ``options`` are further fields of `Hparam`."""
    return Hparam(name, default, is_positive, "a number > 0", **options)


def fraction(name: str, default: Any, **options: Any) -> Hparam:
    """Return a hyperparameter for numbers in [0, 1]; ``options`` are further fields of `Hparam`."""
    return Hparam(name, default, _is_fraction, "a number in [0, 1]", **options)


def learning_rate(
    factor: float = 1,
    published: float | None = None,
    source: str = "thuml/CLIPood, scripts.sh; CAR-FT's value is not known",
) -> Hparam:
    """Return the learning rate of AdamW.

    Args:
        factor: multiplies the usual learning rate in default and draw.
        published: the default on all datasets, except with the embedded CLIP model.
        source: origin of the default.
    """

    def default(conditions: Conditions) -> float:
        if conditions.trains_tiny:
            return factor * 3e-4
        if published is not None:
            return published
        return factor * (1e-5 if conditions.dataset in ("OfficeHome", "DomainNet") else 5e-6)

    def draw(random_state: np.random.RandomState, conditions: Conditions) -> float:
        powers = (-4.5, -3.0) if conditions.trains_tiny else (-6.0, -4.5)
        rate: float = power_of_ten(*powers)(random_state, conditions)
        return factor * rate

    return positive(
        "lr",
        default,
        draw=draw,
        meaning="the learning rate of AdamW",
        source=f"{source}; for tiny: this package",
        changes_cost=False,
    )


def weight_decay(
    default: float = 0.1, is_drawn: bool = True, source: str = "WiSE-FT and CLIPood"
) -> Hparam:
    """Return AdamW's weight decay, which is ``default`` unless it is drawn."""
    return nonnegative(
        "weight_decay",
        default,
        draw=power_of_ten(-3, 0) if is_drawn else None,
        meaning="AdamW's weight decay of matrices and convolutions",
        source=source,
        changes_cost=False,
    )


def _default_class_names(conditions: Conditions) -> str:
    if conditions.dataset == "ImageNet":
        return "imagenet"
    task = TASKS.get(conditions.dataset)
    return task.words if task else f"dataset:{conditions.dataset}"


def _default_contexts(conditions: Conditions) -> str:
    if conditions.dataset == "ImageNet":
        return "imagenet"
    task = TASKS.get(conditions.dataset)
    if task:
        return task.contexts or task.words
    return "emoji" if conditions.dataset in SMALL_DATASETS else "imagenet"


def _default_protocol(conditions: Conditions) -> str:
    if conditions.dataset == "ImageNet":
        return "wise-ft"
    return "clip" if conditions.dataset in TASKS else "domainbed"


def _default_total_steps(conditions: Conditions) -> int:
    return conditions.steps or STEPS.get(conditions.dataset, DEFAULT_STEPS)


def _draw_batch_size(random_state: np.random.RandomState, conditions: Conditions) -> int:
    return int(2 ** random_state.uniform(3, 5 if conditions.dataset == "DomainNet" else 5.5))


# Facts that a job finds itself, and that a user can pin in `--hparams`, by name.
PINNABLE: dict[str, Hparam] = {
    **{
        name: Hparam(name, "", lambda v: isinstance(v, str), "the value in an earlier record")
        for name in ("clip_digest", "clip_revision", "prompts_digest", "data_edition")
    },
    "preprocessing": Hparam(
        "preprocessing",
        "",
        lambda v: v == "" or is_preprocessing(v),
        "the side in pixels, bicubic or bilinear, shortest or squash, such as '224 bicubic "
        "shortest'",
    ),
}

# Of a host's algorithm that trains a CLIP model, and without an effect on this package's.
CLIP_HEAD = choice(
    "clip_head",
    *("random", "zero-shot"),
    meaning="the initial classifier: the random one of the host, or the text features of the "
    "classes with CLIP's logit scale, for features of length 1",
    source="random: khanrc/miro",
)

# The hyperparameters of all algorithms; `averages`, `lora` and `penalties` declare further ones.
CONTEXTS = Hparam(
    "contexts",
    _default_contexts,
    _is_text_or_list,
    "a shipped list ('imagenet7', ...), 'domains', a text file, or a list of templates",
    meaning="the contexts: templates for class names",
    source="openai/CLIP; quoted by Lipsum-FT as CAR-FT's on ImageNet; other datasets: this package",
)

COMMON: tuple[Hparam, ...] = (
    Hparam(
        "clip_backbone",
        by_size("tiny", "ViT-B/16"),
        lambda v: isinstance(v, str) and bool(v),
        "'tiny', one of OpenAI's names ('ViT-B/16'), the path of an OpenAI-format file, or "
        "open_clip:NAME/TAG, open_clip:hf-hub:ORG/REPO or open_clip:local-dir:FOLDER",
        meaning="the CLIP checkpoint that training starts from",
        source="the published DomainBed figures use ViT-B/16",
    ),
    Hparam(
        "context_scale",
        "logit_scale",
        lambda v: v == "logit_scale" or is_positive(v),
        "'logit_scale' or a number > 0",
        meaning="the factor of the cosines to the contexts: the scale of zero-shot CLIP, or a "
        "number",
        changes_cost=False,
    ),
    CONTEXTS,
    Hparam(
        "class_names",
        _default_class_names,
        _is_text_or_list,
        "'dataset:NAME', a shipped list ('cifar10', ...), a text file, or a list of names",
        meaning="the names of the classes, in label order",
    ),
    choice(
        "protocol",
        *("domainbed", "clip", "wise-ft", "lipsum-ft", "host"),
        default=_default_protocol,
        meaning="how images are transformed in training and testing",
        source="DomainBed; CLIP for the tasks",
    ),
    choice(
        "head_init",
        *("zero-shot", "random"),
        meaning="the initial head: the text features of the classes, or random weights",
        source="alibaba/easyrobust, clip_models.py; by CAR-FT's first author, for WiSE-FT",
    ),
    choice(
        "head_scale",
        *("folded", "outside"),
        meaning="whether the head's weights contain CLIP's logit scale or are multiplied by it",
        source="alibaba/easyrobust, clip_models.py; by CAR-FT's first author, for WiSE-FT",
    ),
    learning_rate(),
    weight_decay(),
    choice(
        "weight_decay_all",
        *(False, True),
        meaning="whether biases, norms and embeddings have weight decay as well",
        changes_cost=False,
    ),
    choice(
        "sampling",
        *("with-replacement", "passes"),
        meaning="how batches are drawn; passes draw each image once before any is drawn again",
        source="DomainBed",
    ),
    count(
        "batch_size",
        lambda conditions: 16 if conditions.trains_tiny else 32,
        1,
        draw=_draw_batch_size,
        meaning="the number of images of each training environment in a step",
        source="DomainBed; for tiny: this package",
        changes_cost=False,  # per image
    ),
    choice(
        "lr_schedule",
        *("cosine", "constant"),
        meaning="whether the learning rate falls along a cosine to 0 at total_steps",
        source="WiSE-FT and CLIPood",
        changes_cost=False,
    ),
    count(
        "warmup_steps",
        0,
        meaning="the number of steps in which the learning rate rises linearly",
        changes_cost=False,
    ),
    count(
        "total_steps",
        _default_total_steps,
        1,
        meaning="the step at which schedules and averages end",
        source="the steps of the job",
        changes_cost=False,
    ),
    Hparam(
        "grad_clip",
        1.0,
        is_number,
        "a number >= 0 (0 is off)",
        meaning="the norm to which the gradients of a step are clipped",
        source="mlfoundations/wise-ft",
        changes_cost=False,
    ),
    choice(
        "amp",
        *("auto", "off", "bf16"),
        meaning="the precision of the encoders; auto is bf16 on GPUs that support it",
    ),
    count(
        "micro_batch",
        0,
        meaning="the number of images computed at once, with accumulated gradients; 0 is the batch",
        changes_result=False,
    ),
    choice(
        "checkpoint_blocks",
        *(False, True),
        meaning="whether the encoder's blocks are computed twice to save memory",
        changes_result=False,
    ),
    choice(
        "compile_blocks",
        *(False, True),
        meaning="whether torch compiles the encoder's blocks",
        changes_result=False,
    ),
    count(
        "drift_every",
        10,
        meaning="the number of steps between measurements of the drift over contexts; 0 is off",
        changes_result=False,
    ),
    choice(
        "kl_direction",
        *KL_DIRECTIONS,
        meaning="the direction of the KL divergence between the two distributions over contexts, "
        "in the loss and in the measured drift",
        source="this package; the paper's abstract leaves it open",
        changes_cost=False,
    ),
)
