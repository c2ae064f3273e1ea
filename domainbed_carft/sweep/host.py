"""Look up modules, algorithms and datasets in the domainbed in use."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks, tasks
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.hparams import ResolvedHparams, get_draw_seed, resolve_from_registry
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method.host_lookup import (
    find_dataset_class,
    get_evaluated_kinds,
    has_replaceable_networks,
    is_carft_harness,
)
from domainbed_carft.suggestions import unknown

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


def find_missing_algorithms(names: Sequence[str]) -> list[str]:
    """Return the names that only a checkout of DomainBed has, if the harness is in use."""
    host = import_module("algorithms")
    missing = getattr(host, "NOT_INCLUDED", ())
    return [name for name in names if name in missing and not hasattr(host, name)]


def resolve_hparams(
    algorithm_class: Any,
    args: Mapping[str, Any],
    given: Mapping[str, Any],
    random_seed: int | None = None,
) -> ResolvedHparams:
    """Return the hyperparameters of a job with these arguments of ``train``.

    ``algorithm_class`` resolves those ``given`` by the user, if it is a class of the package or of
    the harness. None and other classes leave it to the host's registry, with the additions of the
    plugin if they name a CLIP model for an algorithm of the host.
    """
    from domainbed_carft.method import host_hparams  # these import the host's algorithms
    from domainbed_carft.method.algorithms import CLASSES

    algorithm, dataset = args["algorithm"], args["dataset"]
    if hasattr(algorithm_class, "resolve_hparams"):
        resolved: ResolvedHparams = algorithm_class.resolve_hparams(
            dataset, given, random_seed, args.get("steps")
        )
        return resolved
    registry = import_module("hparams_registry")
    is_of_host = algorithm not in CLASSES
    if "clip_backbone" in given and is_of_host and has_replaceable_networks():
        return host_hparams.resolve(registry, algorithm, dataset, given, random_seed)
    return resolve_from_registry(registry, algorithm, dataset, given, random_seed)


def get_job_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that a job with these arguments of ``train`` would have."""
    import_module("algorithms")
    # A foreign train passes on what its registry returns.
    resolving_class = find_algorithm_class(args["algorithm"]) if is_carft_harness() else None
    given = parse_overrides(args)
    return resolve_hparams(resolving_class, args, given, get_draw_seed(args)).values


def get_dataset_facts(name: str) -> Dataset:
    """Return the facts of a dataset for manifests. Raises CarftError for an unknown name."""
    host = import_module("datasets")
    if os.sep in name and not os.path.exists(name):
        raise CarftError(
            f"no such folder: {name}; expected a folder with a sub-folder per environment, or a "
            "CSV file that lists images"
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
