"""Facts that the algorithm needs of its dataset: class names, normalisation, protocol, verdict.

They are found by the hparam ``class_names``, which the dataset and the algorithm both get: never
for whichever dataset was built last. Copies of the hparams find them, too.
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
    """One environment: name, class names in label order, normalisation; None what is unknown."""

    name: str
    classes: Sequence[str] | None
    normalisation: Normalisation | None = None


class DatasetFacts(NamedTuple):
    """All environments of a dataset, and the verdict on it, None where nothing was counted.

    ``protocol``: the preset by which its images are transformed; ``test_envs``: the numbers of
    the environments left out, None if the host does not tell.
    """

    environments: Sequence[EnvironmentFacts] = ()
    report: DataReport | None = None
    protocol: str = "domainbed"
    test_envs: Sequence[int] | None = None

    @property
    def edition(self) -> str:
        """The verdict and edition for the records; "" where nothing was counted."""
        return self.report.data_edition if self.report else ""


# The facts of each dataset that this process has built, by what `_key` makes of its class names.
_facts_by_class_names: dict[str, DatasetFacts] = {}


def remember(
    hparams: Any,
    dataset: str,
    environments: Sequence[EnvironmentFacts],
    report: DataReport | None = None,
    protocol: str = "domainbed",
    test_envs: Sequence[int] | None = None,
) -> DatasetFacts:
    """Keep and return the facts of ``dataset``; ``hparams``: what it was built with, if any.

    They count for algorithms whose hparam ``class_names`` is "dataset:" and the dataset's name. If
    the dataset was built with other class names (a list, a file), they count for those.
    """
    facts = DatasetFacts(environments, report, protocol, test_envs)
    _facts_by_class_names[f"{DATASET_PREFIX}{dataset}"] = facts
    class_names = _get_class_names(hparams)
    if class_names is not None and parse_dataset_name(class_names) is None:
        _facts_by_class_names[_key(class_names)] = facts
    return facts


def recall(hparams: Any) -> DatasetFacts:
    """The facts of the dataset that the hparam ``class_names`` names; empty if there are none."""
    class_names = _get_class_names(hparams)
    if class_names is None:
        return DatasetFacts()
    return _facts_by_class_names.get(_key(class_names), DatasetFacts())


def forget() -> None:
    """Forget the facts of all datasets, for a process that goes on to another job."""
    _facts_by_class_names.clear()


def set_normalisation(hparams: Any, normalisation: Normalisation) -> bool:
    """Change the normalisation of the dataset whose facts `recall` returns.

    Returns False, and changes nothing, if it has shown no environments.
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
    """NAME where the hparam ``class_names`` is "dataset:NAME", else None."""
    is_name = isinstance(class_names, str) and class_names.startswith(DATASET_PREFIX)
    return class_names.removeprefix(DATASET_PREFIX) if is_name else None


def _get_class_names(hparams: Any) -> Any:
    """The hparam ``class_names``; None where a host's object does not have it."""
    try:
        return hparams["class_names"]
    except (KeyError, TypeError, AttributeError):
        return None


def _key(class_names: Any) -> str:
    """Class names as a text, the same for a list, a tuple and what went through JSON."""
    return class_names if isinstance(class_names, str) else json.dumps(list(class_names))


def common_normalisation(environments: Sequence[EnvironmentFacts]) -> Normalisation | None:
    """The normalisation of ``environments``, None if none has any; CarftError if they differ."""
    distinct = list(dict.fromkeys(e.normalisation for e in environments if e.normalisation))
    if len(distinct) > 1:
        raise CarftError(
            f"environments normalise images differently: {distinct[0]} and {distinct[1]} (mean, "
            "standard deviation). CLIP needs the same for all; make their transforms equal"
        )
    return distinct[0] if distinct else None
