"""Facts that the algorithm needs of its data set: class names, normalisation, protocol, verdict.

They are found by the hparams object, which DomainBed passes to the data set and to the algorithm,
so nothing is written into it. Forks' data sets without hparams are found by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.data.verify import Report
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.preprocessing import Normalisation


class Environment(NamedTuple):
    """One environment: name, class names in label order, normalisation; None what is unknown."""

    name: str
    classes: Sequence[str] | None
    normalisation: Normalisation | None = None


class DatasetFacts(NamedTuple):
    """All environments of a data set, and the verdict on it, None where nothing was counted.

    ``protocol``: the preset by which its pictures are transformed; ``test_envs``: the numbers of
    the environments left out, None if the host does not tell.
    """

    environments: Sequence[Environment] = ()
    report: Report | None = None
    protocol: str = "domainbed"
    test_envs: Sequence[int] | None = None

    @property
    def edition(self) -> str:
        """The verdict and edition for the records; "" where nothing was counted."""
        return self.report.data_edition if self.report else ""


class _Remembered(NamedTuple):
    """The facts of a data set, and what it was built with."""

    hparams: Any
    dataset: str
    facts: DatasetFacts


# One job has one data set.
_last = _Remembered(None, "", DatasetFacts())


def remember(
    hparams: Any,
    dataset: str,
    environments: Sequence[Environment],
    report: Report | None = None,
    protocol: str = "domainbed",
    test_envs: Sequence[int] | None = None,
) -> DatasetFacts:
    """Keep and return the facts of ``dataset``; ``hparams``: what it was built with, if any."""
    global _last
    facts = DatasetFacts(environments, report, protocol, test_envs)
    _last = _Remembered(hparams, dataset, facts)
    return facts


def recall(hparams: Mapping[str, Any], dataset: str | None = None) -> DatasetFacts:
    """The facts of the data set built with this hparams object; empty if there is none.

    A data set that was built without hparams is found by its name, or if ``dataset`` is None,
    without a name.
    """
    is_built_with = _last.hparams is hparams
    is_named = _last.hparams is None and dataset in (None, _last.dataset)
    return _last.facts if is_built_with or is_named else DatasetFacts()


def set_normalisation(hparams: Mapping[str, Any], normalisation: Normalisation) -> bool:
    """Change the normalisation of the data set that was built with ``hparams``.

    Returns False, and changes nothing, if it has shown no environments.
    """
    global _last
    facts = recall(hparams)
    if not facts.environments:
        return False

    environments = [
        environment._replace(normalisation=normalisation) for environment in facts.environments
    ]
    _last = _last._replace(facts=facts._replace(environments=environments))
    return True


def agreed_normalisation(environments: Sequence[Environment]) -> Normalisation | None:
    """The normalisation of ``environments``, None if none has any; CarftError if they differ."""
    distinct = list(dict.fromkeys(e.normalisation for e in environments if e.normalisation))
    if len(distinct) > 1:
        raise CarftError(
            f"environments normalise pictures differently: {distinct[0]} and {distinct[1]} (mean, "
            "standard deviation). CLIP needs the same for all; make their transforms equal"
        )
    return distinct[0] if distinct else None
