"""Kinds of hyperparameters: what is valid, what the default depends on, how a value is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

EMBEDDED = ("EmojiStyles", "EmojiUnseen", "EmojiShift")
SMALL_DATASETS = (*EMBEDDED, "Debug28", "Debug224")  # served by the embedded "tiny" CLIP


class Conditions(NamedTuple):
    """What defaults and draws depend on; ``clip_backbone`` is "" for the data set's default."""

    algorithm: str
    dataset: str
    clip_backbone: str = ""

    @property
    def trains_tiny(self) -> bool:
        """Whether the learning rate and the batch are those of the embedded CLIP."""
        return self.dataset in SMALL_DATASETS or self.clip_backbone == "tiny"


Draw = Callable[[np.random.RandomState, Conditions], Any]


class Hparam(NamedTuple):
    """A hyperparameter: its default, its valid values, and how it is drawn at random.

    ``absent``: of one that was added after 0.1.0, the value that earlier runs had in effect.
    """

    name: str
    default: Any  # a value, or a function of the conditions
    valid: Callable[[Any], bool]
    expected: str  # in words
    draw: Draw | None = None  # without it the random search keeps the default
    absent: Any = None


def is_number(value: Any) -> bool:
    """Whether it is a number >= 0 that a float can hold; JSON may have 10**400."""
    is_numeric = isinstance(value, (int, float)) and type(value) is not bool
    return is_numeric and 0 <= value <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Whether it is a number > 0 that a float can hold."""
    return is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return is_number(value) and bool(value <= 1)


def is_text_or_texts(value: Any) -> bool:
    """Whether it is a text that is not empty, or a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, (list, tuple)) and len(texts) > 0
    return is_list and all(isinstance(text, str) and text for text in texts)


def by_size(small: Any, large: Any) -> Callable[[Conditions], Any]:
    """The default that is ``small`` on SMALL_DATASETS and ``large`` on others."""
    return lambda conditions: small if conditions.dataset in SMALL_DATASETS else large


def by_algorithm(algorithm: str, published: Any, neutral: Any) -> Callable[[Conditions], Any]:
    """The default that ``algorithm`` was ``published`` with, and is ``neutral`` for others."""
    return lambda conditions: published if conditions.algorithm == algorithm else neutral


def power_of_ten(low: float, high: float) -> Draw:
    """Draw 10 to the power of a uniform number between ``low`` and ``high``."""
    return lambda random_state, conditions: float(10 ** random_state.uniform(low, high))


def choice(name: str, *choices: Any, default: Any = None) -> Hparam:
    """One of these, by default the first."""
    kinds = {type(choice) for choice in choices}
    expected = "one of " + ", ".join(map(repr, choices))
    default = choices[0] if default is None else default
    return Hparam(name, default, lambda v: v in choices and type(v) in kinds, expected)


def count(name: str, default: Any, least: int = 0, draw: Draw | None = None) -> Hparam:
    """A whole number, at least ``least``."""
    expected = f"a whole number >= {least}"
    return Hparam(name, default, lambda v: type(v) is int and v >= least, expected, draw)


def nonnegative(name: str, default: Any, draw: Draw | None = None) -> Hparam:
    """A number >= 0."""
    return Hparam(name, default, is_number, "a number >= 0", draw)


def positive(name: str, default: Any, draw: Draw | None = None) -> Hparam:
    """A number > 0."""
    return Hparam(name, default, is_positive, "a number > 0", draw)


def share(name: str, default: Any, draw: Draw | None = None) -> Hparam:
    """A number in [0, 1]."""
    return Hparam(name, default, _is_share, "a number in [0, 1]", draw)


def filled_in(name: str) -> Hparam:
    """One that the run fills in for its record."""
    return Hparam(name, "", lambda v: isinstance(v, str), "'' or the value in an earlier record")


def term_weight(name: str, algorithm: str, published: float, low: float, high: float) -> Hparam:
    """The weight of a term: ``published`` for ``algorithm``, 0 for others.

    Drawn between 10 to the power of ``low`` and of ``high``.
    """
    draw_power = power_of_ten(low, high)

    def draw(random_state: np.random.RandomState, conditions: Conditions) -> Any:
        return draw_power(random_state, conditions) if conditions.algorithm == algorithm else 0.0

    return nonnegative(name, by_algorithm(algorithm, published, neutral=0.0), draw)
