"""The names in a sweep: data sets, algorithms and hyperparameters of the domainbed in use."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks, tasks
from domainbed_carft.errors import CarftError
from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.method.host_process import in_our_harness
from domainbed_carft.results import published
from domainbed_carft.suites import imagenet_training
from domainbed_carft.sweep.declaration import Override, Shape, Variant, environment
from domainbed_carft.text import unknown

Told = tuple[YamlPath, str]  # where, and what is wrong

# Hparams that every DomainBed's train and data sets ask whether they are on, as the text "no" is.
_SWITCHES = ("data_augmentation", "class_balanced")


def module(name: str) -> Any:
    """A module of the domainbed that jobs started from here would find: from this folder first."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(f"domainbed.{name}")
    except ImportError as error:
        told = f"domainbed.{name} cannot be imported ({error}); see carft doctor"
        raise CarftError(told) from error
    finally:
        sys.path.remove(here)


def skips_in_splits() -> bool:
    """Whether train of the domainbed in use can leave out the training in-splits: our harness's."""
    module("algorithms")  # found from the current folder, as a job would find it
    return in_our_harness()


def algorithm_class(name: str) -> Any:
    """The class of an algorithm. Raises CarftError for an unknown name."""
    host = module("algorithms")
    listed = list(dict.fromkeys([*ours.ALGORITHMS, *getattr(host, "ALGORITHMS", ())]))
    return _asked("algorithm", name, host.get_algorithm_class, listed)


def implied_hparams(
    algorithm: str, dataset: str, overrides: Mapping[str, Any], random_seed: int | None
) -> Mapping[str, Any]:
    """The hparams that a job takes as implied by its ``--hparams``: none but in our harness."""
    if not hasattr(module("algorithms").Algorithm, "implied_hparams"):
        return {}
    asked: Mapping[str, Any] = algorithm_class(algorithm).implied_hparams(
        dataset, overrides, random_seed
    )
    return asked


def _asked(kind: str, name: str, ask: Callable[[str], Any], listed: Sequence[str]) -> Any:
    try:
        return ask(name)
    except Exception as error:  # our harness's own, upstream's NotImplementedError, a KeyError
        said = str(error) if isinstance(error, CarftError) else unknown(kind, name, listed)
        raise CarftError(said) from error


def facts(name: str) -> Dataset:
    """The facts of a data set. Raises CarftError for an unknown name."""
    datasets = module("datasets")
    if os.sep in name and not os.path.isdir(name):
        raise CarftError(f"no such folder: {name}; expected one with a sub-folder per domain")
    ask = getattr(datasets, "get_dataset_class", vars(datasets).__getitem__)
    listed = list(getattr(datasets, "DATASETS", ())) or list(benchmarks.BENCHMARKS)
    found = _asked("data set", name, ask, listed)
    labels = tuple(map(str, getattr(found, "ENVIRONMENTS", None) or ()))
    if not labels:
        raise CarftError(f"the class {name} has no ENVIRONMENTS, so none can be left out")
    # What upstream's base class has, for forks whose data sets say nothing.
    steps, every = getattr(found, "N_STEPS", 5001), getattr(found, "CHECKPOINT_FREQ", 100)
    pictures = getattr(found, "PICTURES", None)
    known = benchmarks.BENCHMARKS.get(name)
    if known is not None and len(known.environments) == len(labels):
        pictures = tuple(known.editions[0].counts[one.folder] for one in known.environments)
    elif name in tasks.TASKS:
        pictures = tasks.TASKS[name].pictures[:1]
    held_out = tuple(getattr(found, "EVALUATED_SPLITS", ())) == ("out",)
    return Dataset(labels, pictures, int(steps), int(every), held_out)


def picture_folder(name: str, data_dir: str) -> str | None:
    """The folder of the data set's pictures; "" if none is needed, None if unknown."""
    if name == "ImageNet":
        return imagenet_training.expected_folder(data_dir)
    known = benchmarks.BENCHMARKS.get(name) or tasks.TASKS.get(name)
    if known is not None:
        return os.path.join(data_dir, known.folder) if known.folder else ""
    return name if os.path.isdir(name) else "" if name.startswith("Debug") else None


def problems(shape: Shape) -> tuple[dict[str, Dataset], list[Told]]:
    """The facts of each data set, and all that is wrong with the names and values in a sweep."""
    told: list[Told] = []

    def known(key: str, ask: Any) -> dict[str, Any]:
        found = {}
        for index, name in enumerate(getattr(shape, key)):
            try:
                found[name] = ask(name)
            except CarftError as error:
                told.append(((key, index), str(error)))
        return found

    rows = dict.fromkeys(figure["method"] for figure in published.figures())
    kind = "row of published figures"
    datasets, algorithms = known("datasets", facts), known("algorithms", algorithm_class)
    known("compare_with", lambda name: _asked(kind, name, rows.__getitem__, list(rows)))
    told += [*_foreign(shape), *_environments(shape, datasets)]
    return datasets, [*told, *_hparams(shape, list(datasets), algorithms)]


def _foreign(shape: Shape) -> Iterator[Told]:
    """Names in the settings that are not among the sweep's own data sets and algorithms."""
    named: list[tuple[str, YamlPath, str]] = []
    for key in ("steps", "test_environments"):
        given = getattr(shape, key)
        named += [("datasets", (key, n), n) for n in (given if isinstance(given, dict) else ())]
    for path, setting in _blocks(shape):
        for key in ("datasets", "algorithms"):
            named += [(key, (*path, key, i), n) for i, n in enumerate(getattr(setting, key))]
    for key, path, name in named:
        if name not in getattr(shape, key):
            kind = {"datasets": "data set", "algorithms": "algorithm"}[key]
            yield path, unknown(f"{kind} of this sweep", name, getattr(shape, key))


def _blocks(shape: Shape) -> list[tuple[YamlPath, Variant]]:
    overrides = [(("overrides", i), one) for i, one in enumerate(shape.overrides)]
    return [*overrides, *((("variants", name), one) for name, one in shape.variants.items())]


def _environments(shape: Shape, found: Mapping[str, Dataset]) -> Iterator[Told]:
    needed = 3 if "leave-one-domain-out" in shape.selection else 2
    for name, known in found.items():
        labels = known.labels
        if 1 < len(labels) < needed:
            text = f"{name} has 2 environments; leave-one-domain-out needs at least 3"
            yield ("datasets", shape.datasets.index(name)), text
        by_name = (name,) if isinstance(shape.test_environments, dict) else ()
        for place, one in enumerate(shape.listed_environments(name)):
            if environment(one, labels) is None:
                valid = [f"{label} ({i})" for i, label in enumerate(labels)]
                text = unknown(f"environment of {name}", str(one), valid)
                yield ("test_environments", *by_name, place), text


def _hparams(shape: Shape, datasets: Sequence[str], classes: Mapping[str, Any]) -> Iterator[Told]:
    """Each setting, at the place where it is made, for each algorithm and data set it reaches."""
    registry = module("hparams_registry")
    known = functools.cache(lambda a, d: list(registry.default_hparams(a, d)))
    blocks = [((), Override(hparams=shape.hparams)), *_blocks(shape)]
    settings: list[tuple[YamlPath, str, Any, Variant]] = [
        ((*path, "hparams", key), key, value, block)
        for path, block in blocks
        for key, value in block.hparams.items()
    ]
    for key, values in shape.grid.items():
        settings += [(("grid", key, i), key, value, Override()) for i, value in enumerate(values)]
    if shape.protocol not in (None, "domainbed"):
        settings.append((("protocol",), "protocol", shape.protocol, Override()))
    for path, key, value, setting in settings:
        without: dict[str, list[str]] = {}  # algorithms that have no such key, and their keys
        for dataset, algorithm in ((d, a) for d in datasets for a in classes):
            if not setting.covers(dataset, algorithm):
                continue
            if key not in known(algorithm, dataset):
                without.setdefault(algorithm, known(algorithm, dataset))
            elif key in _SWITCHES and value not in (0, 1):
                yield path, f"got {value!r}, expected true or false"
            elif key == "batch_size" and not (isinstance(value, int) and value > 0):
                yield path, f"got {value!r}, expected a whole number > 0"
        if without:
            valid = dict.fromkeys(name for names in without.values() for name in names)
            yield path, unknown(f"hyperparameter of {', '.join(without)}", key, valid)
    # What an algorithm itself refuses, of all that is set for it. The weights may be on the nodes.
    for variant in shape.settings.values():
        for dataset, (algorithm, asked) in ((d, c) for d in datasets for c in classes.items()):
            ask = getattr(asked, "hparam_problems", None)
            if ask and variant.covers(dataset, algorithm):
                given = shape.hparams_of(dataset, algorithm, variant)
                given.pop("clip_backbone", None)
                for text in ask(dataset, given):
                    key, _, rest = str(text).partition(" is ")
                    where = [path for path, name, *_ in settings if name == key]
                    yield (where[-1], f"got {rest}") if where else (("hparams",), str(text))
