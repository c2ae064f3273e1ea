"""A declaration from a file, or all that is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.files import parsing, validation
from domainbed_carft.files.parsing import YamlPath, YamlSource
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import declaration_checks
from domainbed_carft.sweep.declaration import (
    Declaration,
    DeclaredSearch,
    Override,
    SearchOverride,
    Seeds,
    Shape,
    Trials,
    Variant,
    folder_name,
)
from domainbed_carft.text import unknown

MAX_JOBS = 100_000

# The model of the mappings below a key of a declaration.
_MODELS: dict[Any, type[BaseModel]] = {
    "trials": Seeds,
    "hparams_seeds": Seeds,
    "overrides": Override,
    "variants": Variant,
    "search": DeclaredSearch,
    "choose_on": Trials,
    "repeat_on": Trials,
}


def load(sweep: AnyPath) -> Declaration:
    """The sweep that a file declares, or an included one by its bare name, such as ``demo``.

    Raises CarftError with all problems of the file, each at its line.
    """
    path = as_path(sweep)
    if not path.is_file():
        included = included_sweeps()
        if str(sweep) not in included:
            raise CarftError(f"{unknown('sweep', str(sweep), included)}, or the path of a file")
        path = included[str(sweep)]
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, name: str) -> Declaration:
    """The sweep that ``text``, the content of the file ``name``, declares.

    Raises CarftError with all problems: of the form first, of names and values once that is right.
    """
    document, source = parsing.parse_yaml(text, name)
    shape = _parse_shape(document, source)
    _require_few_jobs(shape, source)

    datasets, problems = declaration_checks.check(shape, source)
    if clash := _shared_folder(shape):
        place = source.place(("grid" if shape.grid else "search",))
        problems.append(
            f"{place}: several combinations would share {clash}; use named variants instead"
        )
    raise_for(problems)
    return Declaration.model_construct(**dict(shape), facts=datasets, text=text)


def included_sweeps() -> dict[str, Path]:
    """The included sweeps by name: in ``sweeps/`` of the source tree, or in the package."""
    package = Path(__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps beside an installed package need not be ours.
    chosen = next((folder for folder in folders if (folder / "demo.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob("*.yaml"))}


def _parse_shape(document: Any, source: YamlSource) -> Shape:
    """The keys and values of a declaration, of the right types and in their ranges."""
    if not isinstance(document, dict):
        problem = invalid("", document, "a mapping with name, datasets and algorithms")
        raise CarftError(f"{source.place(())}: {problem}")

    try:
        return Shape.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise CarftError(*(_type_problem(item, source) for item in details)) from error


def _require_few_jobs(shape: Shape, source: YamlSource) -> None:
    """Refuse more than MAX_JOBS before a list of them is made."""
    cells = len(shape.datasets) * len(shape.algorithms) * _point_count(shape)
    n_trials = len(shape.trial_seeds) + len(shape.choosing_trials)
    if n_trials * len(shape.choices) * cells * _most_members(shape) > MAX_JOBS:
        place = source.place(("datasets",))
        raise CarftError(
            f"{place}: the sweep has more than {MAX_JOBS:,} jobs; split it into several sweeps"
        )


def _point_count(shape: Shape) -> int:
    """How many combinations of variants and grid values are declared."""
    return math.prod(map(len, shape.grid.values())) * max(1, len(shape.variants))


def _most_members(shape: Shape) -> int:
    """The most combinations of searched values that any dataset and algorithm has."""
    members = [
        math.prod(map(len, shape.searched_values(dataset, algorithm).values()))
        for dataset in shape.datasets
        for algorithm in shape.algorithms
    ]
    return max(members)


def _shared_folder(shape: Shape) -> str:
    """A folder that jobs of several variants or members would share; "" if there is none."""
    if len(shape.settings) < _point_count(shape):
        return "a folder"

    owners: dict[str, object] = {}
    for cell in shape.cells():
        for values in shape.members(cell.dataset, cell.algorithm):
            folder = folder_name(cell.name, values)
            owner = [cell.name, values]
            if owners.setdefault(folder, owner) != owner:
                return f"the folder {folder}"
    return ""


def _model_at(path: YamlPath) -> type[BaseModel]:
    """The model of the mapping at a path: that of the last key that has one."""
    if not path:
        return Shape
    if path[0] == "overrides" and "search" in path:
        return SearchOverride

    keys = [key for key in path if key in _MODELS] if path[0] == "search" else path[:1]
    return _MODELS[keys[-1]]


def _type_problem(error: Mapping[str, Any], source: YamlSource) -> str:
    """One of pydantic's errors, in our words, behind its place in the file."""
    # Pydantic marks a key as [key]; in angle brackets are tags of the model.
    path: YamlPath = tuple(
        part for part in error["loc"] if part != "[key]" and not str(part).startswith("<")
    )
    if error["type"] == "extra_forbidden" and path[-1:] != error["loc"][-1:]:
        path += error["loc"][-1:]  # a user's own <<
    if error["type"] == "missing":
        return f"{source.place(path[:-1])}: the key {path[-1]!r} is missing"

    message = invalid("", error["input"], validation.expectation(error))
    if error["type"] == "extra_forbidden":
        fields = _model_at(path[:-1]).model_fields
        valid = sorted(field.alias or name for name, field in fields.items())
        message = unknown("key", str(path[-1]), valid)
    return f"{source.place(path)}: {message}"
