"""Arguments of the Python API, checked by their types where a function begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from domainbed_carft.errors import invalid, raise_for


class Kind(NamedTuple):
    """What an argument may be, in words and as a check of a value."""

    expected: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any, least: float = float("-inf")) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _are_all(values: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether it is a list, or another container, of what fits."""
    is_list = isinstance(values, Iterable) and not isinstance(values, (str, bytes))
    return is_list and all(map(fits, values))


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
TEXTS = Kind("a list of text", lambda values: _are_all(values, TEXT.fits))
INTEGER = Kind("a whole number", _is_whole)
NATURAL = Kind("a whole number of at least 0", lambda value: _is_whole(value, 0))
NATURALS = Kind("whole numbers of at least 0", lambda values: _are_all(values, NATURAL.fits))
COUNT = Kind("a whole number of at least 1", lambda value: _is_whole(value, 1))
NUMBER = Kind("a number", _is_number)
NUMBERS = Kind("a list of numbers", lambda values: _are_all(values, _is_number))
MAPPING = Kind("a mapping, such as {'lr': 1e-5}", lambda value: isinstance(value, Mapping))


def check(kind: Kind, *, is_optional: bool = False, **arguments: Any) -> None:
    """Raise CarftError unless all arguments are of a kind; optional ones may be None."""
    raise_for(
        invalid(name, value, kind.expected)
        for name, value in arguments.items()
        if not (value is None and is_optional) and not kind.fits(value)
    )
