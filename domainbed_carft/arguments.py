"""Type checks of the arguments of the Python API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from domainbed_carft import machine, process_variables
from domainbed_carft.errors import CarftError, invalid, raise_for

MAX_BATCH_SIZE = 2**31 - 1  # images in a batch
MAX_WORKERS = 256  # processes that load images; more than this is a slip that stops the machine


class Kind(NamedTuple):
    """A type of argument."""

    expected: str  # the type in words, for messages
    fits: Callable[[Any], bool]


def _is_integer(value: Any, minimum: float = float("-inf")) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= minimum


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _are_all(values: Any, fits: Callable[[Any], bool]) -> bool:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return False
    return all(map(fits, values))


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
TEXTS = Kind("a list of text", lambda values: _are_all(values, TEXT.fits))
INTEGER = Kind("a whole number", _is_integer)
NATURAL = Kind("a whole number of at least 0", lambda value: _is_integer(value, 0))
NATURALS = Kind("whole numbers of at least 0", lambda values: _are_all(values, NATURAL.fits))
COUNT = Kind("a whole number of at least 1", lambda value: _is_integer(value, 1))
BATCH = Kind(
    f"a whole number from 1 to {MAX_BATCH_SIZE}",
    lambda value: _is_integer(value, 1) and value <= MAX_BATCH_SIZE,
)
WORKERS = Kind(
    f"a whole number from 0 to {MAX_WORKERS}",
    lambda value: _is_integer(value, 0) and value <= MAX_WORKERS,
)
NUMBER = Kind("a number", _is_number)
NUMBERS = Kind("a list of numbers", lambda values: _are_all(values, _is_number))
MAPPING = Kind("a mapping, such as {'lr': 1e-5}", lambda value: isinstance(value, Mapping))


def require_kind(kind: Kind, *, is_optional: bool = False, **arguments: Any) -> None:
    """Raise CarftError unless all arguments are of a kind; optional arguments can be None."""
    raise_for(
        invalid(name, value, kind.expected)
        for name, value in arguments.items()
        if not (value is None and is_optional) and not kind.fits(value)
    )


def parse_memory_limit(text: str | None) -> int:
    """Parse a limit of the memory for evaluation images.

    Args:
        text: a size such as "8G" or "500M"; None for the default, a share of the memory.

    Returns:
        The size in bytes.

    Raises:
        CarftError: the text is not a size.
    """
    if text is None:
        return machine.image_memory()

    size = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not size:
        raise CarftError(
            f"train's --image_memory or ${process_variables.IMAGE_MEMORY.name} is {text!r}, "
            "expected a size such as 8G or 500M, or 0 to keep no images"
        )
    return int(float(size[1]) * 1024 ** " KMGT".index(size[2].upper() or " "))
