"""What sweeps ask the domainbed in use: its modules, algorithms, datasets and abilities."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks, tasks
from domainbed_carft.errors import CarftError, HparamProblem, raise_for
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import overrides, unset_hparams
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method.host_lookup import (
    find_dataset_class,
    get_evaluated_kinds,
    is_carft_harness,
)
from domainbed_carft.suites import imagenet_training
from domainbed_carft.text import unknown

# What upstream's base class of datasets has, for forks whose datasets do not say.
_UPSTREAM_STEPS = 5001
_UPSTREAM_CHECKPOINT_FREQ = 100


def module(name: str) -> Any:
    """A module of the domainbed that jobs started from here would find: from this folder first.

    Raises CarftError if it cannot be imported.
    """
    current_folder = os.getcwd()
    sys.path.insert(0, current_folder)
    try:
        return importlib.import_module(f"domainbed.{name}")
    except ImportError as error:
        message = f"domainbed.{name} cannot be imported ({error}); see carft doctor"
        raise CarftError(message) from error
    finally:
        sys.path.remove(current_folder)


def skips_in_splits() -> bool:
    """Whether train of the domainbed in use can leave out the training in-splits: our harness's."""
    module("algorithms")  # found from the current folder, as a job would find it
    return is_carft_harness()


def require_own_methods() -> None:
    """Raise CarftError if a user's own methods cannot be used; then no job would start."""
    module("algorithms")
    from domainbed_carft.method.algorithms import OWN_PROBLEMS

    raise_for(OWN_PROBLEMS)


def algorithm_class(name: str) -> Any:
    """The class of an algorithm. Raises CarftError for an unknown name."""
    host = module("algorithms")
    valid_names = list(dict.fromkeys([*ALGORITHMS, *getattr(host, "ALGORITHMS", ())]))
    return _ask_host("algorithm", name, host.get_algorithm_class, valid_names)


def job_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a job that has not run; ``args``: of ``train``."""
    registry = module("hparams_registry")
    hparams_set = overrides(args)
    module("algorithms")
    implying_class = algorithm_class(args["algorithm"]) if is_carft_harness() else None
    return {**unset_hparams(registry, implying_class, args, hparams_set), **hparams_set}


def hparam_problems(
    algorithm: Any, dataset: str, hparams_set: Mapping[str, Any], steps: int | None
) -> Sequence[str | HparamProblem]:
    """The problems that an algorithm's class has with ``--hparams``.

    ``steps``: of the job, None for the dataset's. None of a class that is neither ours nor in our
    harness: other hosts do not have the hook.
    """
    find_problems = getattr(algorithm, "hparam_problems", None)
    if not find_problems:
        return []
    implied = algorithm.implied_hparams(dataset, hparams_set, None, steps)
    problems: Sequence[str | HparamProblem] = find_problems(dataset, {**implied, **hparams_set})
    return problems


def dataset_facts(name: str) -> Dataset:
    """The facts of a dataset, as manifests have them. Raises CarftError for an unknown name."""
    host = module("datasets")
    if os.sep in name and not os.path.isdir(name):
        raise CarftError(f"no such folder: {name}; expected one with a sub-folder per domain")

    valid_names = list(getattr(host, "DATASETS", ())) or list(benchmarks.BENCHMARKS)
    dataset_class = _ask_host("dataset", name, find_dataset_class, valid_names)

    labels = tuple(map(str, getattr(dataset_class, "ENVIRONMENTS", None) or ()))
    if not labels:
        raise CarftError(f"the class {name} has no ENVIRONMENTS, so none can be left out")
    return Dataset(
        labels=labels,
        images=_image_counts(name, dataset_class, len(labels)),
        steps=int(getattr(dataset_class, "N_STEPS", _UPSTREAM_STEPS)),
        checkpoint_freq=int(getattr(dataset_class, "CHECKPOINT_FREQ", _UPSTREAM_CHECKPOINT_FREQ)),
        held_out=tuple(get_evaluated_kinds(dataset_class)) == ("out",),
    )


def image_folder(name: str, data_dir: str) -> str | None:
    """The folder of the dataset's images; "" if none is needed, None if unknown."""
    if name == "ImageNet":
        return imagenet_training.expected_folder(data_dir)

    published = benchmarks.BENCHMARKS.get(name) or tasks.TASKS.get(name)
    if published is not None:
        return os.path.join(data_dir, published.folder) if published.folder else ""
    if os.path.isdir(name):
        return name
    return "" if name.startswith("Debug") else None


def _image_counts(name: str, dataset_class: Any, environments: int) -> Any:
    """The number of images in each environment, if known."""
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is not None and len(benchmark.environments) == environments:
        counts = benchmark.editions[0].counts
        return tuple(counts[environment.folder] for environment in benchmark.environments)
    if name in tasks.TASKS:
        return tasks.TASKS[name].images[:1]
    return getattr(dataset_class, "IMAGES", None)


def _ask_host(
    kind: str, name: str, get_class: Callable[[str], Any], valid_names: Sequence[str]
) -> Any:
    """The class of this name, by a function of the host. Raises CarftError for an unknown name."""
    try:
        return get_class(name)
    except CarftError:  # our harness's, which says more
        raise
    except Exception as error:  # upstream's NotImplementedError, a KeyError
        raise CarftError(unknown(kind, name, valid_names)) from error
