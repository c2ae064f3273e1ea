"""All algorithms by name, including the user's methods, and the hyperparameters of their jobs."""

from __future__ import annotations

from typing import Any

from domainbed_carft.jobs.own_methods import find_files
from domainbed_carft.method import hparams, own_methods, resolution, shipped
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam

# The user's methods are added at the end of this module.
CLASSES: dict[str, type[CLIPAlgorithm]] = {**shipped.load_classes()}


def __getattr__(name: str) -> type[CLIPAlgorithm]:
    """Return the class of an algorithm; AttributeError for any other name."""
    if name in CLASSES:
        return CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def recorded_hparams(algorithm: str) -> dict[str, Hparam]:
    """Return by name all hyperparameters in the records of an algorithm."""
    return resolution.get_recorded_hparams(CLASSES[algorithm])


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
    table = recorded_hparams(algorithm)
    defaults = hparams.get_defaults(table, conditions)
    return {**defaults, **hparams.draw_values(table, conditions, random_seed)}


# No job starts if there are problems. The files are loaded last because they can import this
# module.
OWN_METHODS, OWN_PROBLEMS = own_methods.load(CLASSES, find_files())
CLASSES.update(OWN_METHODS)
