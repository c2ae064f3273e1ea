"""The hyperparameters of an algorithm by name: its own, the common ones, and other methods'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.method import averages, hparams, lora, penalties
from domainbed_carft.method.dataset_facts import parse_dataset_name
from domainbed_carft.method.hparams import Conditions, Hparam

# The hyperparameters of this package's methods by name, as recorded by other methods. `algorithms`
# adds them, because only it knows all methods.
OTHER_METHODS: dict[str, Hparam] = {}


def get_hparams(algorithm: Any) -> Mapping[str, Hparam]:
    """Return by name all hyperparameters that the class ``algorithm`` reads.

    These are the common ones and those that it declares or inherits, which replace common ones of
    the same name.
    """
    common = (*hparams.COMMON, *averages.HPARAMS, *lora.HPARAMS, *penalties.HPARAMS)
    declared = [
        hparam for base in reversed(algorithm.__mro__) for hparam in vars(base).get("HPARAMS", ())
    ]
    return {hparam.name: hparam for hparam in (*common, *declared)}


def get_recorded_hparams(algorithm: Any) -> dict[str, Hparam]:
    """Return by name all hyperparameters in the records of the class ``algorithm``.

    These are the algorithm's and those of this package's other methods, so that one ``--hparams``
    of a sweep can be passed to all of them, and their records can be compared. Hyperparameters of a
    user's methods are only in the records of those methods, so that other records do not depend on
    the files that a process has loaded.
    """
    return {**OTHER_METHODS, **get_hparams(algorithm)}


def complete(algorithm: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the hparams ``given`` to a class, with the defaults of missing names.

    Outside of a host, no registry provides the defaults.
    """
    missing = {name: hparam for name, hparam in get_hparams(algorithm).items() if name not in given}
    dataset = parse_dataset_name(given.get("class_names")) or ""
    if not dataset:
        missing.pop("class_names", None)
    conditions = Conditions(dataset, str(given.get("clip_backbone", "")))
    return {**hparams.get_defaults(missing, conditions), **given}
