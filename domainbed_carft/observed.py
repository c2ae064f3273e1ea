"""What the data set of a job showed of itself: class names, and how it normalises pictures.

DomainBed hands one hparams object first to the data set, then to the algorithm. That very object
is the key under which the one leaves what the other needs, so nothing is written into it, and
nothing into the records. Forks whose data sets get no hparams go by the data set's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std a channel, of [0, 1]


@dataclass(frozen=True)
class Environment:
    """One environment: its name, its class names in label order, mean and std of its pictures.

    What it does not show is None. ``protocol`` is the preset by which its pictures are transformed.
    """

    name: str
    classes: Sequence[str] | None
    normalisation: Normalisation | None = None
    protocol: str = "domainbed"


# One job has one data set: older notes would only hold memory. The hparams object itself is kept
# beside the note, so that its id cannot be given to another one.
_by_object: dict[int, tuple[Any, list[Environment]]] = {}
_by_name: dict[str, list[Environment]] = {}


def remember(hparams: Any, dataset: str, environments: Sequence[Environment]) -> None:
    """Note what ``dataset`` showed; ``hparams`` is the object it was built with, None if none."""
    _by_object.clear()
    _by_name.clear()
    if hparams is None:
        _by_name[dataset] = list(environments)
    else:
        _by_object[id(hparams)] = (hparams, list(environments))


def recall(hparams: Mapping[str, Any], dataset: str | None = None) -> list[Environment]:
    """What the data set built with this very object showed; [] if there is none.

    Else what the ``dataset`` of that name showed, if it was built without an hparams object.
    """
    if id(hparams) in _by_object:
        return _by_object[id(hparams)][1]
    return _by_name.get(dataset or "", [])


def normalisation(transform: Any) -> Normalisation | None:
    """Mean and standard deviation of the last normalising step in ``transform``, if any shows."""
    steps = getattr(transform, "transforms", None)
    found = [
        step
        for step in ([transform] if steps is None else steps)
        if hasattr(step, "mean") and hasattr(step, "std")
    ]
    if not found:
        return None
    return tuple(map(float, found[-1].mean)), tuple(map(float, found[-1].std))
