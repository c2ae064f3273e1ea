"""Lookups in the domainbed in use, which is this package's harness or a foreign one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainbed_carft.jobs import splits


def is_carft_harness() -> bool:
    """Return True if the domainbed in use is this package's harness, which has a flag for it."""
    import domainbed

    return getattr(domainbed, "IS_CARFT_HARNESS", False)


def get_host_hparams(
    algorithm: str, dataset: str, random_seed: int | None = None
) -> tuple[dict[str, Any], Sequence[str]]:
    """Return the host's hyperparameters of a job, and names that are valid without a default.

    With a ``random_seed``, they are drawn.
    """
    from domainbed import hparams_registry

    # The harness has the same ones for all algorithms. For those of this package, its registry adds
    # theirs, which the caller knows already.
    name = "ERM" if is_carft_harness() else algorithm
    if random_seed is None:
        hparams = hparams_registry.default_hparams(name, dataset)
    else:
        hparams = hparams_registry.random_hparams(name, dataset, random_seed)
    return hparams, getattr(hparams_registry, "OPTIONAL_HPARAMS", ())


def find_dataset_class(name: str) -> Any:
    """Return the host's class for a dataset's name; in this package's harness, also for a path.

    Raises the host's exception for an unknown name: NotImplementedError, KeyError, CarftError.
    """
    from domainbed import datasets

    # Some forks do not have the function.
    look_up = getattr(datasets, "get_dataset_class", vars(datasets).__getitem__)
    return look_up(name)


def get_evaluated_kinds(dataset: Any) -> Sequence[str]:
    """Return the kinds of splits, of `splits.KINDS`, whose accuracies are in the records.

    ``dataset`` is an object or a class. Foreign datasets do not define the hook and have all kinds.
    """
    kinds: Sequence[str] = getattr(dataset, "EVALUATED_SPLITS", splits.KINDS)
    return kinds
