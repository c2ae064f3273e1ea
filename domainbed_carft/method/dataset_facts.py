"""Facts that the algorithm needs of its data set: class names, normalisation, preset, verdict.

They are found by the hparams object, which DomainBed passes to the data set and to the algorithm,
so nothing is written into it. Forks' data sets without hparams are found by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.data.verify import Report
from domainbed_carft.errors import CarftError

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std a channel, of [0, 1]


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


# The hparams object, the data set's name, and what it showed: one job has one data set.
_last: tuple[Any, str, DatasetFacts] = (None, "", DatasetFacts())


def remember(
    hparams: Any, dataset: str, environments: Sequence[Environment], report: Report | None = None,
    protocol: str = "domainbed", test_envs: Sequence[int] | None = None,
) -> DatasetFacts:  # fmt: skip
    """Keep the facts of ``dataset``; ``hparams`` is the object it was built with, if any."""
    global _last
    _last = hparams, dataset, DatasetFacts(environments, report, protocol, test_envs)
    return _last[2]


def recall(hparams: Mapping[str, Any], dataset: str | None = None) -> DatasetFacts:
    """The facts of the data set built with this hparams object; empty if there is none.

    One that was built without any is found by its name, or if ``dataset`` is None, by none.
    """
    built_with, name, seen = _last
    fits = built_with is hparams or (built_with is None and dataset in (None, name))
    return seen if fits else DatasetFacts()


def set_normalisation(hparams: Mapping[str, Any], normalisation: Normalisation) -> bool:
    """Note how pictures of the data set built with ``hparams`` come; False if it has shown none."""
    global _last
    seen = recall(hparams)
    if seen.environments:
        environments = [one._replace(normalisation=normalisation) for one in seen.environments]
        _last = (*_last[:2], seen._replace(environments=environments))
    return bool(seen.environments)


def normalisation(transform: Any) -> Normalisation | None:
    """Mean and standard deviation of the last normalising step in ``transform``, if any shows."""
    steps = getattr(transform, "transforms", [transform])
    found = [(one.mean, one.std) for one in steps if hasattr(one, "mean") and hasattr(one, "std")]
    if not found:
        return None
    mean, std = found[-1]
    return tuple(map(float, mean)), tuple(map(float, std))


def agreed_normalisation(environments: Sequence[Environment]) -> Normalisation | None:
    """That of all ``environments``, None if none has any; CarftError if they differ."""
    shown = list(dict.fromkeys(e.normalisation for e in environments if e.normalisation))
    if len(shown) > 1:
        raise CarftError(
            f"environments normalise pictures differently: {shown[0]} and {shown[1]} (mean, "
            "standard deviation). CLIP needs the same for all; make their transforms equal"
        )
    return shown[0] if shown else None
