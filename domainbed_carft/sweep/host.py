"""Look up modules, algorithms and datasets in the domainbed in use."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks, tasks
from domainbed_carft.errors import CarftError, HparamProblem, raise_for
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import get_base_hparams, parse_overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method.host_lookup import (
    find_dataset_class,
    get_evaluated_kinds,
    is_carft_harness,
)
from domainbed_carft.suites import imagenet_training
from domainbed_carft.text import unknown

# The defaults of upstream's base class of datasets, for forks whose datasets have neither.
_UPSTREAM_STEPS = 5001
_UPSTREAM_CHECKPOINT_FREQ = 100


def import_module(name: str) -> Any:
    """Import a module of the domainbed that jobs would use: first from the current folder.

    Raises CarftError if the module cannot be imported.
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


def can_skip_in_splits() -> bool:
    """Return True if the domainbed in use is the harness, whose train can skip in-splits."""
    import_module("algorithms")  # from the current folder, where a job would find it
    return is_carft_harness()


def require_own_methods() -> None:
    """Raise CarftError if the user's own methods cannot be loaded, because no job would start."""
    import_module("algorithms")
    from domainbed_carft.method.algorithms import OWN_PROBLEMS

    raise_for(OWN_PROBLEMS)


def find_algorithm_class(name: str) -> Any:
    """Return the class of an algorithm. Raises CarftError for an unknown name."""
    host = import_module("algorithms")
    valid_names = list(dict.fromkeys([*ALGORITHMS, *getattr(host, "ALGORITHMS", ())]))
    return _find_class("algorithm", name, host.get_algorithm_class, valid_names)


def get_job_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that a job with these arguments of ``train`` would have."""
    registry = import_module("hparams_registry")
    hparams_set = parse_overrides(args)
    import_module("algorithms")
    implying_class = find_algorithm_class(args["algorithm"]) if is_carft_harness() else None
    return {**get_base_hparams(registry, implying_class, args, hparams_set), **hparams_set}


def find_hparam_problems(
    algorithm: Any, dataset: str, hparams_set: Mapping[str, Any], steps: int | None
) -> Sequence[str | HparamProblem]:
    """Return what is wrong with ``--hparams`` for an algorithm's class.

    ``steps`` is the job's number of steps, or None for the dataset's default.
    """
    # Only classes of the package and of the harness have this hook.
    find_problems = getattr(algorithm, "hparam_problems", None)
    if not find_problems:
        return []
    implied = algorithm.implied_hparams(dataset, hparams_set, None, steps)
    problems: Sequence[str | HparamProblem] = find_problems(dataset, {**implied, **hparams_set})
    return problems


def get_dataset_facts(name: str) -> Dataset:
    """Return the facts of a dataset for manifests. Raises CarftError for an unknown name."""
    host = import_module("datasets")
    if os.sep in name and not os.path.isdir(name):
        raise CarftError(
            f"no such folder: {name}; expected a folder with a sub-folder per environment"
        )

    valid_names = list(getattr(host, "DATASETS", ())) or list(benchmarks.BENCHMARKS)
    dataset_class = _find_class("dataset", name, find_dataset_class, valid_names)

    labels = tuple(map(str, getattr(dataset_class, "ENVIRONMENTS", None) or ()))
    if not labels:
        raise CarftError(f"the class {name} has no ENVIRONMENTS, so none can be held out")
    return Dataset(
        labels=labels,
        images=_get_image_counts(name, dataset_class, len(labels)),
        steps=int(getattr(dataset_class, "N_STEPS", _UPSTREAM_STEPS)),
        checkpoint_freq=int(getattr(dataset_class, "CHECKPOINT_FREQ", _UPSTREAM_CHECKPOINT_FREQ)),
        held_out=tuple(get_evaluated_kinds(dataset_class)) == ("out",),
    )


def find_image_folder(name: str, data_dir: str) -> str | None:
    """Return the folder of the dataset's images: "" if none is needed, None if unknown."""
    if name == "ImageNet":
        return imagenet_training.expected_folder(data_dir)

    published = benchmarks.BENCHMARKS.get(name) or tasks.TASKS.get(name)
    if published is not None:
        return os.path.join(data_dir, published.folder) if published.folder else ""
    if os.path.isdir(name):
        return name
    return "" if name.startswith("Debug") else None


def _get_image_counts(name: str, dataset_class: Any, environments: int) -> Any:
    """Return the number of images in each environment, or None if unknown."""
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is not None and len(benchmark.environments) == environments:
        counts = benchmark.editions[0].counts
        return tuple(counts[environment.folder] for environment in benchmark.environments)
    if name in tasks.TASKS:
        return tasks.TASKS[name].images[:1]
    return getattr(dataset_class, "IMAGES", None)


def _find_class(
    kind: str, name: str, get_class: Callable[[str], Any], valid_names: Sequence[str]
) -> Any:
    """Call ``get_class`` of the host. Raises CarftError for an unknown name."""
    try:
        return get_class(name)
    except CarftError:  # from the harness, with a better message
        raise
    except Exception as error:  # upstream's NotImplementedError, a KeyError
        raise CarftError(unknown(kind, name, valid_names)) from error
