"""What a sweep may name: the data sets, algorithms and hyperparameters of the domainbed in use.

It is asked at a launch, which loads torch; what is read of it goes into the manifest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.method import prompts
from domainbed_carft.results import published
from domainbed_carft.sweep.shape import Override, Problem, Shape, Variant, shown
from domainbed_carft.text import unknown

OUR_HPARAMS = {hparam.name: hparam for hparam in ours.HPARAMS}

# Hparams that every DomainBed's train and data sets ask whether they are on, as the text "no" is.
_SWITCHES = ("data_augmentation", "class_balanced")


def module(name: str) -> Any:
    """A module of the domainbed that jobs started from here would find: from this folder first."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(f"domainbed.{name}")
    except ImportError as error:
        raise CarftError(
            f"domainbed.{name} cannot be imported ({error}); carft doctor says what to do"
        ) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def dataset_class(name: str) -> Any:
    """The class of a data set. Raises CarftError where there is none of that name."""
    datasets = module("datasets")
    is_path = os.sep in name
    if is_path and not os.path.isdir(name):
        raise CarftError(f"there is no folder {name}; expected one with a sub-folder a domain")
    try:
        lookup = getattr(datasets, "get_dataset_class", None)
        return lookup(name) if lookup else vars(datasets)[name]
    except Exception as error:  # the harness's own, upstream's NotImplementedError, a KeyError
        if is_path and not hasattr(error, "problems"):
            raise CarftError(
                f"the domainbed in {os.path.dirname(datasets.__file__)} knows no data set by its "
                "folder; the harness of domainbed-carft does"
            ) from error
        listed = list(getattr(datasets, "DATASETS", ())) or list(benchmarks.BENCHMARKS)
        raise _unknown("data set", name, listed, error) from error


def algorithm_class(name: str) -> Any:
    """The class of an algorithm. Raises CarftError where there is none of that name."""
    algorithms = module("algorithms")
    try:
        return algorithms.get_algorithm_class(name)
    except Exception as error:
        listed = dict.fromkeys([*ours.ALGORITHMS, *getattr(algorithms, "ALGORITHMS", ())])
        raise _unknown("algorithm", name, list(listed), error) from error


def _unknown(kind: str, name: str, listed: Sequence[str], error: Exception) -> CarftError:
    said = " ".join(getattr(error, "problems", [str(error)]))
    told = name in listed or os.sep in name or "not included" in said
    return CarftError(said if told and said else unknown(kind, name, listed))


def facts(name: str) -> Dataset:
    """What is to be known of a data set. Raises CarftError where there is none of that name."""
    found = dataset_class(name)
    if not getattr(found, "ENVIRONMENTS", None):
        raise CarftError(f"the class of {name} names no ENVIRONMENTS, so nothing can be left out")
    labels = tuple(map(str, found.ENVIRONMENTS))
    # What upstream's base class has, for forks whose data sets say nothing.
    steps, every = getattr(found, "N_STEPS", 5001), getattr(found, "CHECKPOINT_FREQ", 100)
    return Dataset(labels, _pictures(name, labels), int(steps), int(every))


def _pictures(name: str, labels: Sequence[str]) -> tuple[int, ...] | None:
    if os.sep in name:
        walks = [os.walk(os.path.join(name, label)) for label in labels]
        return tuple(sum(len(files) for _, _, files in walk) for walk in walks)
    known = benchmarks.BENCHMARKS.get(name)
    if known is None or len(known.environments) != len(labels):
        return None
    return tuple(known.editions[0].counts[one.folder] for one in known.environments)


def picture_folder(name: str, data_dir: str) -> str | None:
    """The folder of the environments' folders; None where it has none, or it is not known."""
    known = benchmarks.BENCHMARKS.get(name)
    if known is not None:
        return os.path.join(data_dir, known.folder) if known.folder else None
    return name if os.path.isdir(name) else None


def lies_in_data_dir(name: str) -> bool:
    """Whether a data set is looked for in ``--data_dir``, as all are that are not known not to."""
    known = benchmarks.BENCHMARKS.get(name)
    if known is not None:
        return bool(known.folder)
    return not name.startswith("Debug") and not os.path.isdir(name)


def environment(one: str | int, dataset: str, labels: Sequence[str]) -> int | None:
    """The index of an environment that is given by index, label or a benchmark's folder."""
    if isinstance(one, int):
        return one if one < len(labels) else None
    known = benchmarks.BENCHMARKS.get(dataset)
    folders = [each.folder for each in known.environments] if known else []
    return next((given.index(one) for given in (labels, folders) if one in given), None)


def known_hparams(algorithm: str, dataset: str) -> list[str]:
    """Names of hyperparameters, ours first."""
    asked = module("hparams_registry").default_hparams(algorithm, dataset)
    first = OUR_HPARAMS if algorithm in ours.ALGORITHMS else ()
    return list(dict.fromkeys([*first, *sorted(asked)]))


def problems(shape: Shape) -> tuple[dict[str, Dataset], list[Problem]]:
    """The facts of each data set, and all that is wrong with the names and values in a sweep."""
    found, told = {}, []
    for index, name in enumerate(shape.datasets):
        try:
            found[name] = facts(name)
        except CarftError as error:
            told.append(Problem(("datasets", index), str(error)))
    for index, name in enumerate(shape.algorithms):
        try:
            algorithm_class(name)
        except CarftError as error:
            told.append(Problem(("algorithms", index), str(error)))
    rows = list(dict.fromkeys(figure.method for figure in published.figures()))
    told += [
        Problem(("compare_with", index), unknown("row of published figures", name, rows))
        for index, name in enumerate(shape.compare_with)
        if name not in rows
    ]
    told += [*_twice(shape), *_foreign(shape), *_environments(shape, found), *_settled(shape)]
    wrong = {problem.path for problem in told}
    algorithms = [n for i, n in enumerate(shape.algorithms) if ("algorithms", i) not in wrong]
    return found, [*told, *_hparams(shape, list(found), algorithms)]


def _twice(shape: Shape) -> Iterator[Problem]:
    keys = ("datasets", "algorithms", "selection")
    lists: list[tuple[YamlPath, Sequence[Any]]] = [((key,), getattr(shape, key)) for key in keys]
    lists += [(("grid", key), values) for key, values in shape.grid.items()]
    for path, given in lists:
        texts = [shown(one).removeprefix("it is ").strip('"') for one in given]
        repeated = [text for text, count in Counter(texts).items() if count > 1]
        if repeated:
            yield Problem(path, f"{', '.join(repeated)} is there twice; keep one")


def _foreign(shape: Shape) -> Iterator[Problem]:
    """Names in the settings that are not among the sweep's own data sets and algorithms."""
    kinds = {"datasets": "data set", "algorithms": "algorithm"}
    named: list[tuple[str, YamlPath, str]] = []
    for key in ("steps", "test_environments"):
        given = getattr(shape, key)
        named += [("datasets", (key, n), n) for n in (given if isinstance(given, dict) else ())]
    for index, override in enumerate(shape.overrides):
        for kind in kinds:
            listed = enumerate(getattr(override, kind))
            named += [(kind, ("overrides", index, kind, i), name) for i, name in listed]
    for variant, setting in shape.variants.items():
        listed = enumerate(setting.algorithms)
        named += [("algorithms", ("variants", variant, "algorithms", i), n) for i, n in listed]
    for kind, path, name in named:
        declared = getattr(shape, kind)
        if declared and name not in declared:
            yield Problem(path, unknown(f"{kinds[kind]} of this sweep", name, declared))


def _environments(shape: Shape, found: Mapping[str, Dataset]) -> Iterator[Problem]:
    needed = 3 if "leave-one-domain-out" in shape.selection else 2
    given = shape.test_environments
    for name, known in found.items():
        labels = known.labels
        if 1 < len(labels) < needed:
            text = f"{name} has 2 environments; leave-one-domain-out needs at least 3"
            yield Problem(("datasets", shape.datasets.index(name)), text)
        by_name = isinstance(given, dict)
        path = ("test_environments", name) if by_name else ("test_environments",)
        for place, one in enumerate(given.get(name, ()) if isinstance(given, dict) else given):
            if environment(one, name, labels) is None:
                valid = ", ".join(f"{label} ({i})" for i, label in enumerate(labels))
                near = unknown(f"environment of {name}", str(one), labels).partition("Valid:")[0]
                yield Problem((*path, place), f"{near}Valid: {valid}")


def _settled(shape: Shape) -> Iterator[Problem]:
    if shape.grid and shape.variants:
        yield Problem(("grid",), "there are variants as well; expected one of the two")
    for index, override in enumerate(shape.overrides):
        if not override.datasets and not override.algorithms:
            text = "it is about everything; name datasets or algorithms, or move it to hparams"
            yield Problem(("overrides", index), text)
        if not override.hparams and not override.steps:
            yield Problem(("overrides", index), "it sets nothing; expected hparams or steps")


def _hparams(shape: Shape, datasets: Sequence[str], algorithms: Sequence[str]) -> Iterator[Problem]:
    """Each setting, at the place where it is made, for each algorithm and data set it reaches."""
    known = functools.cache(known_hparams)
    blocks: list[tuple[YamlPath, Variant]] = [(("hparams",), Override(hparams=shape.hparams))]
    blocks += [(("overrides", i, "hparams"), one) for i, one in enumerate(shape.overrides)]
    blocks += [(("variants", name, "hparams"), one) for name, one in shape.variants.items()]
    settings: list[tuple[YamlPath, str, Any, Variant]] = []
    for path, block in blocks:
        settings += [((*path, key), key, value, block) for key, value in block.hparams.items()]
    for key, values in shape.grid.items():
        settings += [(("grid", key, i), key, value, Override()) for i, value in enumerate(values)]
    if shape.protocol not in (None, "domainbed"):
        settings.append((("protocol",), "protocol", shape.protocol, Override()))
    for path, key, value, setting in settings:
        pairs = [(a, d) for a in algorithms for d in datasets if setting.covers(d, a)]
        for algorithm, dataset in pairs:
            if path == ("protocol",) and algorithm not in ours.ALGORITHMS:
                named = ", ".join(ours.ALGORITHMS)
                text = f"the preset {value!r} is for {named}; {algorithm} has none. Leave "
                yield Problem(path, f"{text}protocol out, or {algorithm}")
            elif key not in known(algorithm, dataset):
                kind = f"hyperparameter of {algorithm}"
                yield Problem(path, unknown(kind, key, known(algorithm, dataset)))
            else:
                for text in _value(key, value, algorithm, dataset):
                    yield Problem(path, text)


def _value(key: str, value: Any, algorithm: str, dataset: str) -> Iterator[str]:
    own = OUR_HPARAMS.get(key)
    if key in _SWITCHES and not (isinstance(value, int) and value in (0, 1)):
        yield f"it is {value!r}, expected true or false"
    elif own is not None and (algorithm in ours.ALGORITHMS or key == "batch_size"):
        if not own.valid(value):
            yield f"it is {value!r}, expected {own.expected}"
        elif key == "contexts":
            try:
                prompts.contexts(value)
            except CarftError as error:
                yield str(error)
    elif algorithm not in ours.ALGORITHMS:
        ask = getattr(algorithm_class(algorithm), "hparam_problems", None)
        for told in ask(dataset, {key: value}) if ask else ():
            yield str(told).removeprefix(f"--hparams: {key} ").rstrip(".")
