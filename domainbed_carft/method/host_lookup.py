"""Which domainbed is in use: our harness or a foreign one, and its datasets by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainbed_carft.jobs import splits


def is_carft_harness() -> bool:
    """Whether the domainbed in use is this package's harness, by the flag that only it has."""
    import domainbed

    return getattr(domainbed, "IS_CARFT_HARNESS", False)


def find_dataset_class(name: str) -> Any:
    """The class that the domainbed in use has for a dataset's name; our harness, also for a path.

    Raises whatever the host raises for an unknown name: NotImplementedError, KeyError, CarftError.
    """
    from domainbed import datasets

    # Not every fork has the function.
    look_up = getattr(datasets, "get_dataset_class", vars(datasets).__getitem__)
    return look_up(name)


def get_evaluated_kinds(dataset: Any) -> Sequence[str]:
    """The kinds of splits, of `splits.KINDS`, that records have accuracies of.

    ``dataset``: an object or a class; those of a foreign host, which has no such hook, have all.
    """
    kinds: Sequence[str] = getattr(dataset, "EVALUATED_SPLITS", splits.KINDS)
    return kinds
