"""What is checked of a declaration beyond its shape: that the names in it are the names of things.

All functions take the plain data, so that they can run on the sound part of a file with mistakes.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.method import hparams as ours
from domainbed_carft.method import prompts
from domainbed_carft.sweep import names as host
from domainbed_carft.sweep.problems import Path, Problem
from domainbed_carft.text import unknown

Data = Mapping[str, Any]

# Hparams that every DomainBed's train and data sets ask whether they are on, as the text "no" is.
SWITCHES = ("data_augmentation", "class_balanced")


def spelled(name: str) -> str:
    """A data set's name; a path in the form that our harness gives it (its ``lib.own_data``)."""
    if os.sep not in name:
        return name
    path = os.path.normpath(name)
    return path if os.sep in path else os.path.join(os.curdir, path)


def without(data: Any, problems: Iterable[Problem]) -> dict[str, Any]:
    """A copy of ``data`` that lacks what has a problem: the nearest key with all below it."""
    if not isinstance(data, dict):
        return {}
    sound: dict[str, Any] = copy.deepcopy(data)
    for path in (problem.path for problem in problems if problem.breaks):
        while path and not isinstance(path[-1], str):  # list items keep their places
            path = path[:-1]
        above: Any = sound
        with contextlib.suppress(LookupError, TypeError):  # it went with something above it
            for part in path[:-1]:
                above = above[part]
            del above[path[-1]]
    return sound


def environments(dataset: str) -> tuple[str, ...]:
    """Labels of the environments."""
    return host.dataset(spelled(dataset)).labels


def problems(data: Data) -> list[Problem]:
    """Everything that is wrong with the names and values in sound parts of a declaration."""
    return [
        *_unknown_datasets(data.get("datasets", ())),
        *_unknown_algorithms(data.get("algorithms", ())),
        *_foreign_names(data),
        *_test_environments(data),
        *_variants(data),
        *_hparams(data),
    ]


def _exists(dataset: str) -> bool:
    try:
        environments(dataset)
    except CarftError:
        return False
    return True


def _unknown_datasets(names: Sequence[str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        try:
            environments(name)
        except CarftError as error:
            valid = host.known_datasets()
            told = os.sep in name or name in valid or "not included" in str(error)
            text = str(error) if told else unknown("data set", name, valid)
            yield Problem(("datasets", index), text)


def _unknown_algorithms(names: Sequence[str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        said = host.refused_algorithm(name)
        if said is not None:
            told = "not included" in said
            text = said if told else unknown("algorithm", name, host.known_algorithms())
            yield Problem(("algorithms", index), text)


def _foreign_names(data: Data) -> Iterator[Problem]:
    """Names in the settings that are not among the sweep's own data sets and algorithms."""
    for kind, path, name in _named(data):
        if kind not in data:
            continue
        declared = [spelled(n) if kind == "datasets" else n for n in data[kind]]
        if (spelled(name) if kind == "datasets" else name) not in declared:
            what = "data set" if kind == "datasets" else "algorithm"
            yield Problem(path, unknown(f"{what} of this sweep", name, declared))


def _named(data: Data) -> Iterator[tuple[str, Path, str]]:
    for key in ("steps", "test_environments"):
        if isinstance(data.get(key), dict):
            for name in data[key]:
                yield "datasets", (key, name), name
    for index, override in enumerate(data.get("overrides", ())):
        for kind in ("datasets", "algorithms"):
            for place, name in enumerate(override.get(kind, ())):
                yield kind, ("overrides", index, kind, place), name
    for variant, given in data.get("variants", {}).items():
        for place, name in enumerate(given.get("algorithms", ())):
            yield "algorithms", ("variants", variant, "algorithms", place), name


def _test_environments(data: Data) -> Iterator[Problem]:
    given = data.get("test_environments")
    pairs = "leave-one-domain-out" in data.get("selection", ())
    for index, name in enumerate(data.get("datasets", ())):
        if not _exists(name):
            continue
        labels = environments(name)
        if 1 < len(labels) < (3 if pairs else 2) or not labels:
            more = "leave-one-domain-out needs at least 3" if pairs else "a job needs at least 2"
            yield Problem(("datasets", index), f"{name} has {len(labels)} environments; {more}")
        by_dataset = isinstance(given, dict)
        listed = _of_dataset(given, name) if by_dataset else given or ()
        path: Path = ("test_environments", *((name,) if by_dataset else ()))
        for place, one in enumerate(listed):
            if _index(one, name) is None:
                valid = [f"{label} ({i})" for i, label in enumerate(labels)]
                near = unknown(f"environment of {name}", str(one), labels).split("Valid:")[0]
                yield Problem((*path, place), f"{near}Valid: {', '.join(valid)}")


def _of_dataset(given: Any, dataset: str) -> Any:
    return {spelled(name): listed for name, listed in given.items()}.get(spelled(dataset), ())


def _index(one: Any, dataset: str) -> int | None:
    """Index of an environment that is given by index, label or folder."""
    facts = host.dataset(spelled(dataset))
    if isinstance(one, int):
        return one if one < len(facts.labels) else None
    for names in (facts.labels, facts.folders):
        if one in names:
            return names.index(one)
    return None


def test_environments(data: Data, dataset: str) -> tuple[int, ...]:
    """Indices of the environments to leave out, of a declaration without problems."""
    given = data.get("test_environments")
    listed = _of_dataset(given, dataset) if isinstance(given, dict) else given
    if not listed:
        return tuple(range(len(environments(dataset))))
    indices = [_index(one, dataset) for one in listed]
    return tuple(sorted({index for index in indices if index is not None}))


def variant_name(setting: Mapping[str, Any]) -> str:
    """A folder's name for a point of a grid, such as ``kl_weight=3,amp=bf16``."""
    parts = (f"{key}={value}" for key, value in setting.items())
    return "".join(c if c.isalnum() or c in "._=,+-" else "-" for c in ",".join(parts))


def _variants(data: Data) -> Iterator[Problem]:
    if "grid" in data and "variants" in data:
        yield Problem(("grid",), "there are variants as well; expected one of the two")
    grid = data.get("grid", {})
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    names = Counter(variant_name(point) for point in points)
    for name, count in names.items():
        if count > 1:
            text = f"{count} combinations would share the folder {name}; name them as variants"
            yield Problem(("grid",), text)
    for index, override in enumerate(data.get("overrides", ())):
        if not {"datasets", "algorithms"} & override.keys():
            text = "it is about everything; name datasets or algorithms, or move it to hparams"
            yield Problem(("overrides", index), text)
        if not {"hparams", "steps"} & override.keys():
            yield Problem(("overrides", index), "it sets nothing; expected hparams or steps")


def _hparams(data: Data) -> Iterator[Problem]:
    """Each setting, at the place where it is made, for each algorithm and data set it reaches."""
    datasets = [spelled(name) for name in data.get("datasets", ()) if _exists(name)]
    algorithms = [name for name in data.get("algorithms", ()) if host.is_algorithm(name)]
    for path, key, value, only in _settings(data):
        for algorithm in only.get("algorithms", algorithms):
            for dataset in map(spelled, only.get("datasets", datasets)):
                if algorithm not in algorithms or dataset not in datasets:
                    continue
                if path == ("protocol",) and algorithm not in ours.ALGORITHMS:
                    yield Problem(path, _no_preset(value, algorithm))
                elif not host.has_hparam(key, algorithm, dataset):
                    known = host.known_hparams(algorithm, dataset)
                    text = unknown(f"hyperparameter of {algorithm}", key, known)
                    yield Problem(path, text)
                elif problem := _value_problem(key, value, algorithm, dataset):
                    yield Problem(path, problem)


def _no_preset(preset: str, algorithm: str) -> str:
    return (
        f"the preset {preset!r} is for {', '.join(ours.ALGORITHMS)}; {algorithm} has none. Leave "
        f"protocol out, or {algorithm}"
    )


def _value_problem(key: str, value: Any, algorithm: str, dataset: str) -> str | None:
    if key in SWITCHES and not (isinstance(value, int) and value in (0, 1)):
        return f"it is {value!r}, expected true or false"
    known = host.OUR_HPARAMS.get(key)
    if known is None or not (algorithm in ours.ALGORITHMS or key == "batch_size"):
        is_ours = algorithm in ours.ALGORITHMS
        return None if is_ours else host.refused(key, value, algorithm, dataset)
    if not known.valid(value):
        return f"it is {value!r}, expected {known.expected}"
    if key == "contexts":
        try:
            prompts.contexts(value)
        except CarftError as error:
            return str(error)
    return None


def _settings(data: Data) -> Iterator[tuple[Path, str, Any, Mapping[str, Any]]]:
    """Path, hparam, value, and what it is restricted to."""
    if data.get("protocol", "domainbed") != "domainbed":
        yield ("protocol",), "protocol", data["protocol"], {}
    for key, value in data.get("hparams", {}).items():
        yield ("hparams", key), key, value, {}
    for index, override in enumerate(data.get("overrides", ())):
        for key, value in override.get("hparams", {}).items():
            yield ("overrides", index, "hparams", key), key, value, override
    for variant, given in data.get("variants", {}).items():
        for key, value in given.get("hparams", {}).items():
            yield ("variants", variant, "hparams", key), key, value, given
    for key, values in data.get("grid", {}).items():
        for index, value in enumerate(values):
            yield ("grid", key, index), key, value, {}
