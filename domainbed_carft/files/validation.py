"""Pydantic's errors in the words of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Type of pydantic's error -> description of valid values, with fields of the error's context.
_EXPECTATIONS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
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
