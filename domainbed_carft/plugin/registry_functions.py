"""The two functions of `hparams_registry`, made to answer for our algorithms, too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from domainbed_carft.errors import CarftError, EndedJob
from domainbed_carft.plugin.hooked_modules import warn_of_hparams_to_add, warn_of_kept_names


@dataclass(frozen=True)
class HostNames:
    """Names of ours by which the host already has something, which stays in place.

    These are its own algorithms, its own datasets, or what else it imports by the name of a dataset
     of ours, such as torchvision's CIFAR100. ``problems``: why a user's own methods cannot be
    used, as where the host has something by one of their names.
    """

    algorithms: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def require_usable(self) -> None:
        """Raise CarftError, which ends a foreign host's script, if there are ``problems``."""
        if self.problems:
            from domainbed_carft.method import host_lookup

            raise (CarftError if host_lookup.is_carft_harness() else EndedJob)(*self.problems)


def extended_function(
    original: Callable[..., Any], *, draws: bool, host_names: HostNames
) -> Callable[..., Any]:
    """Wrap the host's `default_hparams`, or `random_hparams`, which ``draws``.

    For an algorithm of ours the result has our hyperparameters over the host's; for any other it is
    what ``original`` returns.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def registry_function(*args: Any, **kwargs: Any) -> Any:
        # Forks disagree on the arguments' names, not on their order.
        by_keyword = [kwargs[name] for name in signature.parameters if name in kwargs]
        values = [*args, *by_keyword]
        if len(values) < (3 if draws else 2):
            return original(*args, **kwargs)

        algorithm = values[0]
        host_names.require_usable()
        if not _is_ours(algorithm) or algorithm in host_names.algorithms:
            return original(*args, **kwargs)

        dataset = values[1]
        if dataset in host_names.datasets:
            warn_of_kept_names("domainbed.datasets", [dataset])
        try:
            host_hparams = original(*args, **kwargs)
        except Exception:
            # This registry knows only its own algorithms; take what it gives each of them.
            host_hparams = original("ERM", *values[1:])
        return with_our_hparams(
            host_hparams, algorithm, dataset, random_seed=int(values[2]) if draws else None
        )

    return registry_function


def _is_ours(algorithm: str) -> bool:
    """Whether it is one of this package's algorithms or of a user's own methods."""
    from domainbed_carft.jobs import own_methods
    from domainbed_carft.jobs.algorithms import ALGORITHMS

    if algorithm in ALGORITHMS or not own_methods.files():
        return algorithm in ALGORITHMS

    from domainbed_carft.method.algorithms import (
        OWN_METHODS,  # takes the seconds of importing torch
    )

    return algorithm in OWN_METHODS


def with_our_hparams(
    host_hparams: Any, algorithm: str, dataset: str, random_seed: int | None
) -> dict[str, Any]:
    """The host's hyperparameters, and over them ours: drawn by ``random_seed``, or the defaults."""
    from domainbed_carft.method import algorithms, host_lookup
    from domainbed_carft.plugin import foreign_jobs

    plain = {name: _as_plain_value(value) for name, value in host_hparams.items()}
    steps = None
    if not host_lookup.is_carft_harness():
        steps = foreign_jobs.planned_steps()
        foreign_jobs.allow(plain.keys())
        to_add = foreign_jobs.hparams_to_add(algorithm, dataset, random_seed)
        if to_add:
            warn_of_hparams_to_add(to_add)

    return {**plain, **algorithms.hparam_values(algorithm, dataset, random_seed, steps=steps)}


def _as_plain_value(value: Any) -> Any:
    """``value``, but Python's number for one of numpy's.

    Upstream draws some as numpy's, which neither JSON nor torch's restricted reader takes.
    """
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value
