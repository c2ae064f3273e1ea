"""The shape of a declared sweep: its keys, their kinds and ranges, and what is said of others.

Editors have the same as a JSON schema, ``assets/sweep.schema.json`` (``tools/sweep_schema.py``).
"""

from __future__ import annotations

import copy
import json
import os
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.text import unknown


class Problem(NamedTuple):
    """What is wrong and what was expected, and where."""

    path: YamlPath
    text: str


def spelled(dataset: str) -> str:
    """A data set's name; a path in the form that our harness gives it, ``./pets`` for ``pets/``."""
    if os.sep not in dataset:
        return dataset
    path = os.path.normpath(dataset)
    return path if os.sep in path else os.path.join(os.curdir, path)


def _setting(value: Any) -> Any:
    is_words = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if is_words or isinstance(value, (str, int, float)):
        return value
    text = f"{shown(value)}, expected a word, a number, true or false, or a list of words"
    raise PydanticCustomError("ours", "{text}", {"text": text})


_ANY = ["string", "number", "boolean"]
_WORDS = {"type": "array", "items": {"type": "string"}}
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$"
# Tags in angles are no part of a place that is told.
_HOW = Discriminator(lambda given: "<each>" if isinstance(given, dict) else "<all>")
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Index = Annotated[int, Field(ge=0, le=10**9)]
_Dataset = Annotated[str, StringConstraints(min_length=1), AfterValidator(spelled)]
_Datasets = Annotated[list[_Dataset], Field(min_length=1)]
_Algorithms = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
_Setting = Annotated[
    Any, BeforeValidator(_setting), WithJsonSchema({"anyOf": [{"type": _ANY}, _WORDS]})
]
_Hparams = dict[str, _Setting]
_Environment = Annotated[
    Annotated[_Index, Tag("<index>")] | Annotated[str, Tag("<label>")],
    Discriminator(lambda given: "<index>" if isinstance(given, int) else "<label>"),
]
_Environments = Annotated[list[_Environment], Field(min_length=1)]
_Steps = Annotated[
    Annotated[_Count, Tag("<all>")] | Annotated[dict[_Dataset, _Count], Tag("<each>")], _HOW
]
_ByEnvironment = Annotated[
    Annotated[_Environments, Tag("<all>")]
    | Annotated[dict[_Dataset, _Environments], Tag("<each>")],
    _HOW,
]
_Method = Literal["training-domain", "leave-one-domain-out", "oracle"]


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Seeds(_Mapping):
    """A range of hparams seeds."""

    first: _Index = Field(default=0, alias="from")
    n: _Count


class Variant(_Mapping):
    """Settings over all others, for some algorithms; none named are all."""

    algorithms: _Algorithms = []
    hparams: _Hparams = {}

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Whether it is about this data set and this algorithm."""
        return not self.algorithms or algorithm in self.algorithms


class Override(Variant):
    """The same for some data sets, too; 0 steps are the default."""

    datasets: _Datasets = []
    steps: _Count = 0

    def covers(self, dataset: str, algorithm: str) -> bool:
        """As in a variant."""
        return super().covers(dataset, algorithm) and dataset in (self.datasets or [dataset])


_Seeds = Annotated[Annotated[_Count, Tag("<all>")] | Annotated[Seeds, Tag("<each>")], _HOW]


class Shape(_Mapping):
    """Which jobs a sweep has: docs/sweeps.md says what each key means."""

    model_config = ConfigDict(
        title="A sweep of domainbed-carft",
        json_schema_extra={"required": ["name", "datasets", "algorithms"]},
    )

    name: Annotated[str, StringConstraints(pattern=_WORD)] = ""
    description: str = ""
    datasets: _Datasets = []
    algorithms: _Algorithms = []
    trials: _Count = 3
    hparams_seeds: _Seeds = 1
    steps: _Steps = {}
    hparams: _Hparams = {}
    overrides: list[Override] = []
    variants: dict[Annotated[str, StringConstraints(pattern=_FOLDER)], Variant] = {}
    grid: dict[str, Annotated[list[_Setting], Field(min_length=1)]] = {}
    test_environments: _ByEnvironment = {}
    selection: Annotated[list[_Method], Field(min_length=1)] = ["training-domain", "oracle"]
    protocol: Literal["domainbed", "clip"] | None = None  # not told is another job than domainbed
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    compare_with: list[str] = []


_WITHIN: dict[Any, type[BaseModel]] = {
    "hparams_seeds": Seeds, "overrides": Override, "variants": Variant,
}  # fmt: skip
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "one entry at least",
    "string_too_short": "a name",
    "string_pattern_mismatch": "letters, digits and . _ - (for a variant = , + too)",
    "greater_than_equal": "a whole number of at least {ge}",
    "less_than_equal": "a whole number of at most {le}",
    "greater_than": "a number over {gt:g}",
    "less_than": "a number below {lt:g}",
}


def read(data: Any) -> tuple[Shape, list[Problem]]:
    """What ``data`` declares, without the keys that are wrong, and everything that is wrong."""
    needed = ("name", "datasets", "algorithms")
    if not isinstance(data, dict):
        text = f"{shown(data)}, expected a mapping with name, datasets and algorithms"
        return Shape(), [Problem((), text)]
    problems = [Problem((), f"the key {key!r} is missing") for key in needed if key not in data]
    sound = copy.deepcopy(data)
    while True:
        try:
            return Shape.model_validate(sound), problems
        except ValidationError as error:
            found = [_told(one) for one in error.errors(include_url=False)]
            problems += dict.fromkeys(found)
            for problem in found:
                _remove(sound, problem.path)


def _told(error: Any) -> Problem:
    path = tuple(part for part in error["loc"] if part != "[key]" and str(part)[:1] != "<")
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return Problem(path[:-1], f"the key {path[-1]!r} is missing")
    if kind == "extra_forbidden":
        fields = _WITHIN[path[0]].model_fields if len(path) > 1 else Shape.model_fields
        known = sorted(field.alias or name for name, field in fields.items())
        return Problem(path, unknown("key", str(path[-1]), known))
    if kind == "literal_error":
        valid = re.findall("'([^']*)'", error["ctx"]["expected"])
        return Problem(path, unknown(str(path[0]), str(value), valid))
    if kind == "ours":
        return Problem(path, error["msg"])
    expected = _EXPECTED[kind].format(**error.get("ctx", {})) if kind in _EXPECTED else error["msg"]
    return Problem(path, f"{shown(value)}, expected {expected}")


def _remove(data: dict[str, Any], path: YamlPath) -> None:
    """Take the nearest key of a path out, with all below it; what is in lists keeps its place."""
    last = max(index for index, part in enumerate(path) if isinstance(part, str))
    above: Any = data
    try:
        for part in path[:last]:
            above = above[part]
        del above[path[last]]
    except (LookupError, TypeError):  # it went with something above it
        data.pop(str(path[0]), None)


def shown(value: Any) -> str:
    """A value as one writes it in YAML, shortened."""
    if value is None:
        return "there is nothing"
    if isinstance(value, (list, dict)) and not value:
        return "it is empty"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"it is {text if len(text) <= 60 else text[:57] + '...'}"
