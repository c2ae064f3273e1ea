"""Read a declaration from a file, and report all of its problems at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.files import parsing, validation
from domainbed_carft.files.parsing import YamlPath, YamlSource
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.suggestions import unknown
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
)

MAX_JOBS = 100_000

# Key of a declaration -> the model of the mapping below it.
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
    """Load the declaration of a sweep.

    Args:
        sweep: path of a sweep file, or the name of an included sweep, such as ``demo``.

    Raises:
        CarftError: all problems of the file, each with its line.
    """
    path = as_path(sweep)
    if not path.is_file():
        included = included_sweeps()
        if str(sweep) not in included:
            raise CarftError(f"{unknown('sweep', str(sweep), included)}, or the path of a file")
        path = included[str(sweep)]
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, name: str) -> Declaration:
    """Parse ``text``, the content of the sweep file ``name``.

    Raises CarftError with all problems of the form, and of names and hyperparameters; if the form
    is right, with all other problems of values, too.
    """
    document, source = parsing.parse_yaml(text, name)
    if not isinstance(document, dict):
        problem = invalid("", document, "a mapping with name, datasets and algorithms")
        raise CarftError(f"{source.place(())}: {problem}")
    try:
        shape = Shape.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_describe_error(item, source) for item in details]
        wrong_keys = {item["loc"][0] for item in details if item["loc"]}
        problems += _find_wrong_names(document, source, wrong_keys)
        raise CarftError(*problems) from error

    # Before the targets are known, so that the checks of the cells end.
    _check_job_count(shape, source, dict.fromkeys(shape.datasets, 1))
    datasets, problems = declaration_checks.check(shape, source)
    raise_for(problems)
    targets = {name: len(shape.targets(name, facts.labels)) for name, facts in datasets.items()}
    _check_job_count(shape, source, targets)
    unread = declaration_checks.find_unread(shape) if shape.search else {}
    return Declaration.model_construct(**dict(shape), facts=datasets, unread=unread, text=text)


def _find_wrong_names(
    document: Mapping[str, Any], source: YamlSource, wrong_keys: Collection[Any]
) -> list[str]:
    """Return the problems of names and hyperparameters below the keys whose form is right."""
    rest = {key: value for key, value in document.items() if key not in wrong_keys}
    try:
        shape = Shape.model_validate({"name": "unnamed", **rest})
        _check_job_count(shape, source, dict.fromkeys(shape.datasets, 1))
    except (ValidationError, CarftError):  # without datasets or algorithms, for example
        return []
    return declaration_checks.check_names(shape, source)[1]


def included_sweeps() -> dict[str, Path]:
    """Return name -> path of the included sweeps, from the source tree or else the package."""
    package = Path(__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps next to an installed package can belong to another project.
    chosen = next((folder for folder in folders if (folder / "demo.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob("*.yaml"))}


def read_descriptions() -> dict[str, str]:
    """Return name -> description of the included sweeps."""
    documents = {
        name: parsing.parse_yaml(path.read_text(encoding="utf-8"), str(path))[0]
        for name, path in included_sweeps().items()
    }
    return {name: document["description"] for name, document in documents.items()}


def _check_job_count(shape: Shape, source: YamlSource, targets: Mapping[str, int]) -> None:
    """Raise CarftError for more than MAX_JOBS, before a list of jobs fills the memory.

    Args:
        shape: the sweep.
        source: its text.
        targets: the number of targets of each dataset, by name.
    """
    n_jobs = 0
    for cell in shape.cells():
        members = math.prod(map(len, cell.searched.values()))
        n_trials = len(shape.trial_seeds) * members
        if shape.has_stages:  # the second one trains the chosen member only
            n_trials = len(shape.choosing_trials) * members + len(shape.trial_seeds)
        n_jobs += n_trials * len(shape.choices) * targets[cell.dataset]
        if n_jobs > MAX_JOBS:
            place = source.place(("datasets",))
            raise CarftError(
                f"{place}: the sweep has more than {MAX_JOBS:,} jobs; split it into several sweeps"
            )


def _get_model(path: YamlPath) -> type[BaseModel]:
    """Return the model of the mapping at a path: the model of the last key that has one."""
    if not path:
        return Shape
    if path[0] == "overrides" and "search" in path:
        return SearchOverride

    keys = [key for key in path if key in _MODELS] if path[0] == "search" else path[:1]
    return _MODELS[keys[-1]]


def _describe_error(error: Mapping[str, Any], source: YamlSource) -> str:
    """Describe an error of pydantic, after its place in the file."""
    # Pydantic marks a key as [key]; names in angle brackets are tags of the model.
    path: YamlPath = tuple(
        part for part in error["loc"] if part != "[key]" and not str(part).startswith("<")
    )
    if error["type"] == "extra_forbidden" and path[-1:] != error["loc"][-1:]:
        path += error["loc"][-1:]  # a key << in the user's file
    if error["type"] == "missing":
        return f"{source.place(path[:-1])}: the key {path[-1]!r} is missing"

    message = invalid("", error["input"], validation.expectation(error))
    if error["type"] == "extra_forbidden":
        fields = _get_model(path[:-1]).model_fields
        valid = sorted(field.alias or name for name, field in fields.items())
        message = unknown("key", str(path[-1]), valid)
    return f"{source.place(path)}: {message}"
