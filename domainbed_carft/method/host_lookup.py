"""Lookups in the domainbed in use, which is this package's harness or a foreign one."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from domainbed_carft.jobs import splits


def is_carft_harness() -> bool:
    """Return True if the domainbed in use is this package's harness, which has a flag for it.

    Whatever makes a class or a job asks once, and passes the answer on.
    """
    import domainbed

    return getattr(domainbed, "IS_CARFT_HARNESS", False)


def has_own_clip() -> bool:
    """Return True if the host's networks read ``clip_backbone`` themselves (DPLCLIP)."""
    networks = _import_networks()
    return networks is not None and _reads_clip_backbone(networks)


def has_replaceable_networks() -> bool:
    """Return True if a CLIP model can replace the networks of the host's algorithms."""
    return hasattr(_import_networks(), "Featurizer") and not has_own_clip()


def _import_networks() -> ModuleType | None:
    try:
        return importlib.import_module("domainbed.networks")
    except ImportError:
        return None


@functools.cache
def _reads_clip_backbone(module: ModuleType) -> bool:
    try:
        return "clip_backbone" in inspect.getsource(module)
    except OSError:  # a host without source files
        return False


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
