"""Facts that an algorithm needs about its dataset: class names, normalisation, data check.

The facts are looked up by the hparam ``class_names``, which both the dataset and the algorithm
receive, so that an algorithm never gets the facts of whichever dataset was built last. Copies of
the hparams find the same facts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from domainbed_carft.data.verify import DataReport
from domainbed_carft.errors import CarftError
from domainbed_carft.images.preprocessing import Normalisation

DATASET_PREFIX = "dataset:"


class EnvironmentFacts(NamedTuple):
    """An environment of a dataset, with None for unknown facts."""

    name: str
    classes: Sequence[str] | None  # names in label order
    normalisation: Normalisation | None = None


class DatasetFacts(NamedTuple):
    """All environments of a dataset, and the report of its data check."""

    environments: Sequence[EnvironmentFacts] = ()
    report: DataReport | None = None  # None if the data was not checked
    protocol: str = "domainbed"  # the preset of image transforms
    test_envs: Sequence[int] | None = None  # numbers of the test environments; None if unknown

    @property
    def edition(self) -> str:
        """The status and edition of the data for the records, "" if the data was not checked."""
        return self.report.data_edition if self.report else ""


# The facts of each dataset built in this process, by the `_make_key` of its class names.
_facts_by_class_names: dict[str, DatasetFacts] = {}


def remember(
    hparams: Any,
    dataset: str,
    environments: Sequence[EnvironmentFacts],
    report: DataReport | None = None,
    protocol: str = "domainbed",
    test_envs: Sequence[int] | None = None,
) -> DatasetFacts:
    """Store and return the facts of ``dataset`` for later calls of `recall`.

    The facts apply to algorithms whose hparam ``class_names`` is "dataset:" and the dataset's name.
    If the ``hparams`` used to build the dataset have other class names (a list, a file), the facts
    also apply to those names.
    """
    facts = DatasetFacts(environments, report, protocol, test_envs)
    _facts_by_class_names[f"{DATASET_PREFIX}{dataset}"] = facts
    class_names = _get_class_names(hparams)
    if class_names is not None and parse_dataset_name(class_names) is None:
        _facts_by_class_names[_make_key(class_names)] = facts
    return facts


def recall(hparams: Any) -> DatasetFacts:
    """Return the facts of the dataset named by the hparam ``class_names``, empty if unknown."""
    class_names = _get_class_names(hparams)
    if class_names is None:
        return DatasetFacts()
    return _facts_by_class_names.get(_make_key(class_names), DatasetFacts())


def forget() -> None:
    """Forget the facts of all datasets, for a process that starts another job."""
    _facts_by_class_names.clear()


def set_normalisation(hparams: Any, normalisation: Normalisation) -> bool:
    """Change the normalisation of the dataset whose facts `recall` returns.

    Returns False, without changes, if the dataset has no known environments.
    """
    facts = recall(hparams)
    if not facts.environments:
        return False

    environments = [
        environment._replace(normalisation=normalisation) for environment in facts.environments
    ]
    changed_facts = facts._replace(environments=environments)
    for key, known_facts in _facts_by_class_names.items():
        if known_facts is facts:
            _facts_by_class_names[key] = changed_facts
    return True


def parse_dataset_name(class_names: Any) -> str | None:
    """Return NAME if the hparam ``class_names`` is "dataset:NAME", otherwise None."""
    if isinstance(class_names, str) and class_names.startswith(DATASET_PREFIX):
        return class_names.removeprefix(DATASET_PREFIX)
    return None


def _get_class_names(hparams: Any) -> Any:
    """Return the hparam ``class_names``, None if a host's object does not have it."""
    try:
        return hparams["class_names"]
    except (KeyError, TypeError, AttributeError):
        return None


def _make_key(class_names: Any) -> str:
    """Return class names as a text that is equal for a list, a tuple and a JSON copy."""
    return class_names if isinstance(class_names, str) else json.dumps(list(class_names))


def common_normalisation(environments: Sequence[EnvironmentFacts]) -> Normalisation | None:
    """Return the common normalisation of the environments, None if unknown.

    Raises CarftError if they differ.
    """
    distinct = list(dict.fromkeys(e.normalisation for e in environments if e.normalisation))
    if len(distinct) > 1:
        raise CarftError(
            f"environments normalise images differently: {distinct[0]} and {distinct[1]} (mean, "
            "standard deviation). CLIP needs the same for all; make their transforms equal"
        )
    return distinct[0] if distinct else None
