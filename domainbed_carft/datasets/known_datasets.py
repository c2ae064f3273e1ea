"""The facts of the datasets that this process has built in a foreign DomainBed.

Its jobs pass only hparams to datasets and algorithms. So the facts are found by the hparam
``class_names``, which both receive, and an algorithm never gets the facts of whichever dataset was
built last. Copies of the hparams find the same facts.
"""

from __future__ import annotations

import json
from typing import Any

from domainbed_carft.images.dataset_facts import (
    DATASET_PREFIX,
    NO_FACTS,
    DatasetFacts,
    parse_dataset_name,
)

# By the `_make_key` of the class names.
_facts_by_class_names: dict[str, DatasetFacts] = {}


def remember(hparams: Any, dataset: str, facts: DatasetFacts) -> None:
    """Store the facts of ``dataset`` for later calls of `recall`.

    The facts apply to algorithms whose hparam ``class_names`` is "dataset:" and the dataset's name.
    If the ``hparams`` used to build the dataset have other class names (a list, a file), the facts
    also apply to those names.
    """
    _facts_by_class_names[f"{DATASET_PREFIX}{dataset}"] = facts
    class_names = _get_class_names(hparams)
    if class_names is not None and parse_dataset_name(class_names) is None:
        _facts_by_class_names[_make_key(class_names)] = facts


def recall(hparams: Any) -> DatasetFacts:
    """Return the facts of the dataset named by the hparam ``class_names``, empty if unknown."""
    class_names = _get_class_names(hparams)
    if class_names is None:
        return NO_FACTS
    return _facts_by_class_names.get(_make_key(class_names), NO_FACTS)


def _get_class_names(hparams: Any) -> Any:
    """Return the hparam ``class_names``, None if a host's object does not have it."""
    try:
        return hparams["class_names"]
    except (KeyError, TypeError, AttributeError):
        return None


def _make_key(class_names: Any) -> str:
    """Return class names as a text that is equal for a list, a tuple and a JSON copy."""
    return class_names if isinstance(class_names, str) else json.dumps(list(class_names))
