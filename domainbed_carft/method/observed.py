"""What the data set of a job showed of itself: words, normalisation, preset, verdict.

DomainBed hands one hparams object first to the data set, then to the algorithm. That very object
is the key under which the one leaves what the other needs, so nothing is written into it, and
nothing into the records. Forks whose data sets get no hparams go by the data set's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.data.verify import Report
from domainbed_carft.errors import CarftError

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std a channel, of [0, 1]


@dataclass(frozen=True)
class Environment:
    """One environment: its name, its class names in label order, mean and std of its pictures.

    What it does not show is None.
    """

    name: str
    classes: Sequence[str] | None
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class Seen:
    """All environments of a data set, and the verdict on it, None where nothing was counted.

    ``protocol`` is the preset by which its pictures are transformed, the host's own if unseen.
    """

    environments: Sequence[Environment] = ()
    report: Report | None = None
    protocol: str = "domainbed"

    @property
    def edition(self) -> str:
        """What records say of the data: verdict and edition; "" where nothing was counted."""
        return self.report.data_edition if self.report else ""


# The hparams object, the data set's name, and what it showed: one job has one data set.
_last: tuple[Any, str, Seen] | None = None


def remember(
    hparams: Any, dataset: str, environments: Sequence[Environment], report: Report | None = None,
    protocol: str = "domainbed",
) -> Seen:  # fmt: skip
    """Note what ``dataset`` showed; ``hparams`` is the object it was built with, None if none."""
    global _last
    seen = Seen(environments, report, protocol)
    _last = hparams, dataset, seen
    return seen


def recall(hparams: Mapping[str, Any], dataset: str | None = None) -> Seen:
    """What the data set built with this very object showed; nothing if there is none.

    Else what the data set of that name showed, of any name where it is not known, if it was built
    without an hparams object.
    """
    if _last is None:
        return Seen()
    built_with, name, seen = _last
    fits = built_with is hparams or (built_with is None and dataset in (None, name))
    return seen if fits else Seen()


def normalisation(transform: Any) -> Normalisation | None:
    """Mean and standard deviation of the last normalising step in ``transform``, if any shows."""
    steps = getattr(transform, "transforms", [transform])
    found = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if not found:
        return None
    return tuple(map(float, found[-1].mean)), tuple(map(float, found[-1].std))


def agreed_normalisation(environments: Sequence[Environment]) -> Normalisation | None:
    """The one mean and standard deviation that all ``environments`` show; None if none shows any.

    Raises CarftError where they differ: one correction cannot serve both.
    """
    shown = list(dict.fromkeys(e.normalisation for e in environments if e.normalisation))
    if len(shown) > 1:
        raise CarftError(
            f"environments normalise pictures differently: {shown[0]} and {shown[1]} (mean, "
            "standard deviation); CLIP needs one way for all. Make their transforms equal"
        )
    return shown[0] if shown else None


def followed_protocol(wanted: str, followed: str) -> str:
    """The preset that the pictures follow, to be recorded.

    It is ``host`` where a fork transforms in a way of its own, which nobody has to ask for. Raises
    CarftError where ``clip`` is wanted and not followed.
    """
    if followed == wanted or (wanted == "domainbed" and followed == "host"):
        return followed
    raise CarftError(
        f"protocol is {wanted!r}, but this data set has transforms of its own ({followed}); only "
        "EmojiStyles and DomainBed's MultipleEnvironmentImageFolder with test_envs and hparams "
        "follow another protocol. Leave protocol at 'domainbed'"
    )
