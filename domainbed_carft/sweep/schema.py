"""A declaration against its JSON schema: all errors, in words.

The schema is ``assets/sweep.schema.json``, which editors understand as well. Its keywords
``expected`` and ``kind`` are ours: what a message says was expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from domainbed_carft.sweep.problems import Path, Problem
from domainbed_carft.text import unknown

if TYPE_CHECKING:
    from jsonschema import ValidationError


def load() -> dict[str, Any]:
    """The schema."""
    path = files("domainbed_carft") / "assets" / "sweep.schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def problems(data: Any) -> list[Problem]:
    """Everything in ``data`` that is not as the schema has it."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(load()).iter_errors(data)
    return [problem for error in errors for problem in _told(error)]


def _told(error: ValidationError) -> Iterator[Problem]:
    path: Path = tuple(error.absolute_path)
    instance: Any = error.instance
    value: Any = error.validator_value
    schema: dict[str, Any] = dict(error.schema) if isinstance(error.schema, dict) else {}
    if error.validator == "additionalProperties":
        known = sorted(schema["properties"])
        for key in instance:
            if key not in schema["properties"]:
                yield Problem((*path, key), unknown("key", key, known))
    elif error.validator == "required":
        missing = [key for key in schema["required"] if key not in instance]
        # jsonschema raises one error a missing key; its message starts with that key.
        for key in missing:
            if error.message.startswith(repr(key)):
                yield Problem(path, f"the key {key!r} is missing", False)
    elif error.validator == "enum":
        kind = schema.get("kind", "value")
        yield Problem(path, unknown(kind, str(instance), value))
    elif error.validator == "uniqueItems":
        twice = [v for i, v in enumerate(instance) if v in instance[:i]]
        yield Problem(path, f"{', '.join(map(str, twice))} is there twice; keep one", False)
    elif "propertyNames" in error.absolute_schema_path:
        yield Problem((*path, instance), f"expected {schema['expected']}")
    else:
        expected = schema.get("expected", error.message)
        yield Problem(path, f"{shown(instance)}, expected {expected}")


def shown(value: Any) -> str:
    """A value as one writes it in YAML, shortened."""
    if value is None:
        return "there is nothing"
    if isinstance(value, (list, dict)) and not value:
        return "it is empty"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"it is {text if len(text) <= 60 else text[:57] + '...'}"
