"""The two functions of `hparams_registry`, extended to the package's algorithms."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from domainbed_carft.errors import get_job_error
from domainbed_carft.plugin import clip_networks
from domainbed_carft.plugin.hooked_modules import warn_about_kept_names, warn_about_missing_hparams


@dataclass
class HostNames:
    """The host, and its names, for which nothing is added."""

    algorithms: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)  # also imports such as torchvision's CIFAR100
    # Reasons why a user's own methods cannot be used, such as a name in use by the host.
    problems: list[str] = field(default_factory=list)
    is_checkout: bool = False  # the host is not the included harness

    def require_usable(self) -> None:
        """Raise CarftError if there are ``problems``; in a checkout, end its script."""
        if self.problems:
            raise get_job_error(self.is_checkout)(*self.problems)


def wrap_function(
    original: Callable[..., Any], *, draws: bool, host_names: HostNames
) -> Callable[..., Any]:
    """Wrap the host's `default_hparams` or `random_hparams`.

    For algorithms of this package and the user, their hyperparameters replace the host's. For all
    other algorithms nothing changes, unless ``--hparams`` names a CLIP model.

    Args:
        original: the function of the host.
        draws: True for `random_hparams`.
        host_names: names of algorithms and datasets that belong to the host.
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
        if not _is_added(algorithm) or algorithm in host_names.algorithms:
            host_hparams = original(*args, **kwargs)
            if not host_names.is_checkout:  # the harness resolves the hyperparameters of each job
                return host_hparams
            return clip_networks.add_hparams(
                host_hparams, values[1], random_seed=int(values[2]) if draws else None
            )

        dataset = values[1]
        if dataset in host_names.datasets:
            warn_about_kept_names("domainbed.datasets", [dataset])
        try:
            host_hparams = original(*args, **kwargs)
        except Exception:
            # The registry fails for unknown algorithms, so use its hyperparameters of ERM.
            host_hparams = original("ERM", *values[1:])
        return add_hparams(
            host_hparams,
            algorithm,
            dataset,
            random_seed=int(values[2]) if draws else None,
            is_checkout=host_names.is_checkout,
        )

    return registry_function


def _is_added(algorithm: str) -> bool:
    """Return True for an algorithm of this package or one of a user's own methods."""
    from domainbed_carft.jobs import own_methods
    from domainbed_carft.jobs.algorithms import ALGORITHMS

    if algorithm in ALGORITHMS or not own_methods.find_files():
        return algorithm in ALGORITHMS

    from domainbed_carft.method.algorithms import (
        OWN_METHODS,  # takes the seconds of importing torch
    )

    return algorithm in OWN_METHODS


def add_hparams(
    host_hparams: Any,
    algorithm: str,
    dataset: str,
    random_seed: int | None,
    is_checkout: bool,
) -> dict[str, Any]:
    """Add an algorithm's hyperparameters, drawn or by default, to the hyperparameters of a host."""
    from domainbed_carft.method import algorithms
    from domainbed_carft.plugin import foreign_jobs

    plain = {name: foreign_jobs.to_python_number(value) for name, value in host_hparams.items()}
    steps = None
    if is_checkout:
        steps = foreign_jobs.get_planned_steps()
        foreign_jobs.allow_keys(plain.keys())
        missing_hparams = foreign_jobs.get_missing_hparams(algorithm, dataset, random_seed)
        if missing_hparams:
            warn_about_missing_hparams(missing_hparams)

    return {**plain, **algorithms.hparam_values(algorithm, dataset, random_seed, steps=steps)}
