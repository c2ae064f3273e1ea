"""All of our algorithms by name, and the hyperparameters that a job of each has.

A user's own methods are among them, see `own_methods`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from domainbed_carft.jobs.algorithms import ALGORITHMS, SHIPPED
from domainbed_carft.jobs.own_methods import files
from domainbed_carft.method import hparams, own_methods
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam


def _shipped_class(name: str, module: str) -> type[CLIPAlgorithm]:
    algorithm: type[CLIPAlgorithm] = getattr(
        importlib.import_module(f"domainbed_carft.method.{module}"), name
    )
    return algorithm


# Each file of this room says which algorithms it has, by a STYLE in their classes. At the end of
# this module a user's own come to them.
CLASSES: dict[str, type[CLIPAlgorithm]] = {
    name: _shipped_class(name, algorithm.file.stem) for name, algorithm in SHIPPED.items()
}


def __getattr__(name: str) -> type[CLIPAlgorithm]:
    """The class of an algorithm; AttributeError for any other name."""
    if name in CLASSES:
        return CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def recorded_hparams(algorithm: str) -> dict[str, Hparam]:
    """Name -> hyperparameter, of all that records of this algorithm have.

    These are its own and those of this package's other methods, so that one ``--hparams`` of a
    sweep can go to all of them, and their records compare. Those of a user's methods are in no
    other records: these do not depend on which files a process has.
    """
    return {**_other_method_hparams(), **CLASSES[algorithm].hparams_by_name()}


@functools.cache
def _other_method_hparams() -> Mapping[str, Hparam]:
    """Name -> hyperparameter, of this package's methods in a job of another one."""
    others: dict[str, Hparam] = {}
    for other in map(CLASSES.__getitem__, ALGORITHMS):
        for name, hparam in other.hparams_by_name().items():
            others.setdefault(name, hparam.for_other_methods())
    return others


def hparam_values(
    algorithm: str,
    dataset: str,
    random_seed: int | None = None,
    clip_backbone: str = "",
    steps: int | None = None,
) -> dict[str, Any]:
    """Name -> default, or with a ``random_seed`` its draw, of all that records of this have.

    ``clip_backbone``: the CLIP that takes the place of the dataset's default, if any. ``steps``:
    how many the job trains, if that is known.
    """
    conditions = Conditions(dataset, clip_backbone, steps)
    return hparams.get_values(recorded_hparams(algorithm), conditions, random_seed)


# A user's own methods, and why some cannot be used: then no job starts. Their files may import this
# module.
OWN_METHODS, OWN_PROBLEMS = own_methods.load(CLASSES, files())
CLASSES.update(OWN_METHODS)
