"""What there is to name in a sweep: data sets, algorithms, hyperparameters.

Facts that need no question to the domainbed in use are answered at once; for other names it is
asked, which loads torch and takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import hparams

# Which every domainbed has (upstream b93c22a and its forks).
ALWAYS = ("ERM",)

# What upstream's registry at b93c22a gives to algorithms without entries of their own.
COMMON_HPARAMS = frozenset(
    "data_augmentation resnet18 resnet50_augmix dinov2 vit vit_attn_tune freeze_bn lars "
    "linear_steps resnet_dropout vit_dropout class_balanced nonlinear_classifier "
    "lr weight_decay batch_size".split()
)
OUR_HPARAMS = {hparam.name: hparam for hparam in hparams.HPARAMS}

# Steps between checkpoints where they are not upstream's 300 for image folders.
_CHECKPOINTS = {"DomainNet": 1000, "EmojiStyles": 50}


@dataclass(frozen=True)
class Dataset:
    """Labels, pictures of each environment (None: not known), default steps and checkpoints."""

    labels: tuple[str, ...]
    folders: tuple[str, ...]
    pictures: tuple[int, ...] | None
    steps: int
    checkpoint_freq: int


_FACTS: dict[str, Dataset] = {}


def assume(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Take these facts of data sets for granted, as they were when the sweep was launched."""
    for name, fields in facts.items():
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        _FACTS[name] = Dataset(**lists)


def dataset(name: str) -> Dataset:
    """What is known of a data set. Raises CarftError where there is none of that name."""
    if name not in _FACTS:
        _FACTS[name] = _find(name)
    return _FACTS[name]


def is_known(name: str) -> bool:
    """Whether ``dataset`` answers without asking the host."""
    return name in _FACTS or name in benchmarks.BENCHMARKS


def _find(name: str) -> Dataset:
    if name in benchmarks.BENCHMARKS:
        return _known(benchmarks.BENCHMARKS[name])
    if os.sep in name:
        return _own_folder(name)
    return _asked(name)


def _known(benchmark: benchmarks.Benchmark) -> Dataset:
    folders = tuple(environment.folder for environment in benchmark.environments)
    return Dataset(
        tuple(environment.label for environment in benchmark.environments),
        folders,
        tuple(benchmark.editions[0].counts[folder] for folder in folders),
        benchmark.steps["DomainBed"],
        _CHECKPOINTS.get(benchmark.name, 300),
    )


def _own_folder(folder: str) -> Dataset:
    own = _own()
    try:
        labels = tuple(own.environments(folder))
    except Exception as error:  # the harness's UsageError
        told = getattr(error, "problems", [str(error)])
        raise CarftError(" ".join(told)) from error
    counts = tuple(_pictures(os.path.join(folder, label)) for label in labels)
    return Dataset(labels, labels, counts, 5001, 300)


def _own() -> Any:
    """The harness's module on own data; CarftError with a domainbed that has nothing like it."""
    try:
        return module("lib.image_folders")
    except CarftError as error:
        raise CarftError(
            "the domainbed that is found here knows no data sets by their folder; the harness of "
            f"domainbed-carft does ({error.__cause__})"
        ) from error


def _pictures(folder: str) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _asked(name: str) -> Dataset:
    try:
        found = _dataset_class(name)
        labels = tuple(map(str, found.ENVIRONMENTS))
    except Exception as error:
        told = getattr(error, "problems", [str(error) or f"there is no data set {name}"])
        raise CarftError(" ".join(told)) from error
    # What upstream's base class has, for forks whose data sets say nothing.
    steps, every = getattr(found, "N_STEPS", 5001), getattr(found, "CHECKPOINT_FREQ", 100)
    return Dataset(labels, labels, None, int(steps), int(every))


def _dataset_class(name: str) -> Any:
    datasets = module("datasets")
    lookup = getattr(datasets, "get_dataset_class", None)
    return lookup(name) if lookup else vars(datasets)[name]


def known_datasets() -> list[str]:
    """Names of data sets, for messages."""
    listed = list(getattr(module("datasets"), "DATASETS", ()))
    return list(dict.fromkeys([*benchmarks.BENCHMARKS, *listed]))


def is_algorithm(name: str) -> bool:
    """Whether an algorithm has that name."""
    return refused_algorithm(name) is None


def refused_algorithm(name: str) -> str | None:
    """What the host says of an algorithm that it lacks; None where there is one of that name."""
    if name in hparams.ALGORITHMS or name in ALWAYS:
        return None
    try:
        module("algorithms").get_algorithm_class(name)
    except CarftError:
        raise
    except Exception as error:  # upstream raises NotImplementedError, a fork's table KeyError
        return str(error)
    return None


def known_algorithms() -> list[str]:
    """Names of algorithms, for messages."""
    listed = list(getattr(module("algorithms"), "ALGORITHMS", ()))
    return list(dict.fromkeys([*hparams.ALGORITHMS, *listed]))


def has_hparam(name: str, algorithm: str, dataset_name: str) -> bool:
    """Whether ``algorithm`` has a hyperparameter of that name."""
    ours = algorithm in hparams.ALGORITHMS
    if name in COMMON_HPARAMS or (ours and name in OUR_HPARAMS):
        return True
    return name in known_hparams(algorithm, dataset_name)


def refused(name: str, value: Any, algorithm: str, dataset_name: str) -> str | None:
    """Why the host refuses a value of one of its own algorithms, if it can be asked.

    Without the name, which stands before it already.
    """
    ask = getattr(module("algorithms").get_algorithm_class(algorithm), "hparam_problems", None)
    for told in ask(dataset_name, {name: value}) if ask else ():
        return str(told).removeprefix(f"--hparams: {name} ").rstrip(".")
    return None


@functools.cache
def known_hparams(algorithm: str, dataset_name: str) -> tuple[str, ...]:
    """Names of hyperparameters, ours first."""
    asked = module("hparams_registry").default_hparams(algorithm, dataset_name)
    first = OUR_HPARAMS if algorithm in hparams.ALGORITHMS else ()
    return tuple(dict.fromkeys([*first, *sorted(asked)]))


@functools.cache
def data_problems(name: str, data_dir: str) -> tuple[str, ...]:
    """What each job would refuse of the data, as far as its folders show."""
    if name in benchmarks.BENCHMARKS:
        folder = benchmarks.BENCHMARKS[name].folder
        expected = os.path.join(data_dir, folder)
        if not folder or os.path.isdir(expected):
            return ()
        return (
            f"{name} is not there: expected the folder {expected} with one sub-folder an "
            f"environment. Is --data_dir {data_dir} the folder that holds it?",
        )
    if os.sep in name:
        return tuple(_own().problems(name))
    ask = getattr(_dataset_class(name), "data_problems", None)
    return tuple(ask(data_dir)) if ask else ()


def lies_in_data_dir(name: str) -> bool:
    """Whether a data set is looked for in ``--data_dir``."""
    if name in benchmarks.BENCHMARKS:
        return bool(benchmarks.BENCHMARKS[name].folder)
    if os.sep in name:
        return False
    found = _dataset_class(name)
    if not hasattr(found, "data_problems"):  # upstream's do not say
        return True
    return found.picture_folder(None) is None and bool(found.data_problems(None))


def picture_folder(name: str, data_dir: str) -> str | None:
    """The folder of the environments' folders; None where it has none, or does not say."""
    if name in benchmarks.BENCHMARKS:
        folder = benchmarks.BENCHMARKS[name].folder
        return os.path.join(data_dir, folder) if folder else None
    if os.sep in name:
        return name
    ask = getattr(_dataset_class(name), "picture_folder", None)
    found: str | None = ask(data_dir) if ask else None
    return found


@contextlib.contextmanager
def _path_of_a_job() -> Iterator[None]:
    """Import as ``python -m domainbed.scripts.train`` does: from the current folder first."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


@functools.cache
def module(name: str) -> Any:
    """A module of the domainbed that jobs started from here would find."""
    try:
        with _path_of_a_job():
            return importlib.import_module(f"domainbed.{name}")
    except ImportError as error:
        raise CarftError(
            f"domainbed.{name} cannot be imported ({error}); carft doctor says what to do"
        ) from error


def class_names(name: str) -> tuple[str, ...]:
    """Classes of a data set of the user's own, by its folders; none for others."""
    if os.sep not in name:
        return ()
    first = os.path.join(name, dataset(name).labels[0])
    return tuple(sorted(entry.name for entry in os.scandir(first) if entry.is_dir()))
