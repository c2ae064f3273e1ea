"""Pydantic's errors in the words of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.errors import invalid

# Type of pydantic's error -> description of valid values, with fields of the error's context.
_EXPECTATIONS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "text",
    "string_pattern_mismatch": "a match of the pattern {pattern}",
    "string_too_short": "at least {min_length} character",
    "string_type": "text",
    "too_short": "at least {min_length} of them",
    "tuple_type": "a list",
    "value_error": "{error}",
}


def expectation(error: Mapping[str, Any]) -> str:
    """Describe the valid values for an item of ``ValidationError.errors()``, such as "at least 1".

    A ValueError raised by a validator of this package has the description as its message.
    """
    template = _EXPECTATIONS.get(error["type"])
    if template is None:
        return f"another value ({error['msg']})"
    return template.format(**error.get("ctx", {}))


def describe(error: Exception) -> str:
    """Return the text of an error, of pydantic's the first problem with the keys that lead to it.

    Such a text is ``jobs.3.variant is 7, expected text``.
    """
    from pydantic import ValidationError  # takes a tenth of a second

    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if not isinstance(error, ValidationError):
        return str(error)

    first = error.errors(include_url=False)[0]
    keys = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{keys} is missing"
    return invalid(keys, first["input"], expectation(first))
