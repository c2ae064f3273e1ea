"""All algorithms by name, including the user's methods, and the hyperparameters of their jobs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.algorithms import ALGORITHMS, SHIPPED
from domainbed_carft.jobs.own_methods import find_files
from domainbed_carft.method import hparams, own_methods
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam

# The user's methods are added at the end of this module.
CLASSES: dict[str, type[CLIPAlgorithm]] = {
    name: getattr(importlib.import_module(f"domainbed_carft.method.{Path(method.file).stem}"), name)
    for name, method in SHIPPED.items()
}


def __getattr__(name: str) -> type[CLIPAlgorithm]:
    """Return the class of an algorithm; AttributeError for any other name."""
    if name in CLASSES:
        return CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def recorded_hparams(algorithm: str) -> dict[str, Hparam]:
    """Return by name all hyperparameters in the records of an algorithm.

    These are the algorithm's and those of this package's other methods, so that one ``--hparams``
    of a sweep can be passed to all of them, and their records can be compared. Hyperparameters of a
    user's methods are only in the records of those methods, so that other records do not depend on
    the files that a process has loaded.
    """
    return {**_other_method_hparams(), **CLASSES[algorithm].hparams_by_name()}


@functools.cache
def _other_method_hparams() -> Mapping[str, Hparam]:
    """Return by name the hyperparameters of this package's methods as recorded by other methods."""
    hparams_by_name: dict[str, Hparam] = {}
    for algorithm in map(CLASSES.__getitem__, ALGORITHMS):
        for name, hparam in algorithm.hparams_by_name().items():
            hparams_by_name.setdefault(name, hparam.for_other_methods())
    return hparams_by_name


def hparam_values(
    algorithm: str,
    dataset: str,
    random_seed: int | None = None,
    clip_backbone: str = "",
    steps: int | None = None,
) -> dict[str, Any]:
    """Return the default, or with a ``random_seed`` the draw, of each recorded hyperparameter.

    ``clip_backbone`` replaces the dataset's default CLIP model if given. ``steps`` is the number of
    training steps if known.
    """
    conditions = Conditions(dataset, clip_backbone, steps)
    return hparams.get_values(recorded_hparams(algorithm), conditions, random_seed)


# No job starts if there are problems. The files are loaded last because they can import this
# module.
OWN_METHODS, OWN_PROBLEMS = own_methods.load(CLASSES, find_files())
CLASSES.update(OWN_METHODS)
