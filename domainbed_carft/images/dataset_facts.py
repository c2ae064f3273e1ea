"""Facts that an algorithm needs about its dataset: class names, normalisation, data edition."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from domainbed_carft.data.verification import DataReport
from domainbed_carft.errors import CarftError
from domainbed_carft.images.preprocessing import Normalisation

DATASET_PREFIX = "dataset:"  # of the hparam class_names, if it names a dataset


class EnvironmentFacts(NamedTuple):
    """An environment of a dataset, with None for unknown facts."""

    name: str
    classes: Sequence[str] | None  # names in label order
    normalisation: Normalisation | None = None


class DatasetFacts(NamedTuple):
    """All environments of a dataset, and the report on its data."""

    environments: Sequence[EnvironmentFacts] = ()
    report: DataReport | None = None  # None if the data was not verified
    protocol: str = "domainbed"  # the preset of image transforms
    test_envs: Sequence[int] | None = None  # numbers of the test environments; None if unknown

    @property
    def edition(self) -> str:
        """The status and edition of the data for the records, "" if the data was not verified."""
        return self.report.data_edition if self.report else ""

    @property
    def normalisation(self) -> Normalisation | None:
        """The common normalisation of the environments, None if unknown.

        Raises CarftError if they differ.
        """
        distinct = list(
            dict.fromkeys(e.normalisation for e in self.environments if e.normalisation)
        )
        if len(distinct) > 1:
            raise CarftError(
                f"environments normalise images differently: {distinct[0]} and {distinct[1]} "
                "(mean, standard deviation). CLIP needs the same for all; make their transforms "
                "equal"
            )
        return distinct[0] if distinct else None


NO_FACTS = DatasetFacts()


def takes_dataset_facts(algorithm_class: type[Any]) -> bool:
    """Return True if the constructor takes `dataset_facts`, beyond upstream's arguments."""
    for base in algorithm_class.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        if "dataset_facts" in parameters:
            return True
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False


def parse_dataset_name(class_names: Any) -> str | None:
    """Return NAME if the hparam ``class_names`` is "dataset:NAME", otherwise None."""
    if isinstance(class_names, str) and class_names.startswith(DATASET_PREFIX):
        return class_names.removeprefix(DATASET_PREFIX)
    return None
