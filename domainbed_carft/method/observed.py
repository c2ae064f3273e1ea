"""What the data set of a job showed of itself: class names, and how it normalises pictures.

DomainBed hands one hparams object first to the data set, then to the algorithm. That very object
is the key under which the one leaves what the other needs, so nothing is written into it, and
nothing into the records. Forks whose data sets get no hparams go by the data set's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std a channel, of [0, 1]


@dataclass(frozen=True)
class Environment:
    """One environment: its name, its class names in label order, mean and std of its pictures.

    What it does not show is None. ``protocol`` is the preset by which its pictures are transformed,
    ``counts`` the pictures of each class in label order.
    """

    name: str
    classes: Sequence[str] | None
    normalisation: Normalisation | None = None
    protocol: str = "domainbed"
    counts: Sequence[int] | None = None


@dataclass(frozen=True)
class Seen:
    """All environments of a data set, and what they make of it.

    ``edition``: the verdict of ``carft data verify`` on its counts, with the edition they are of or
    their digest, "" where nothing was counted; ``problems`` say why the data is broken,
    ``differences`` how it is not the known edition.
    """

    environments: Sequence[Environment] = ()
    edition: str = ""
    problems: Sequence[str] = ()
    differences: Sequence[str] = ()


# One job has one data set: older notes would only hold memory. The hparams object itself is kept
# beside the note, so that its id cannot be given to another one.
_by_object: dict[int, tuple[Any, Seen]] = {}
_by_name: dict[str, Seen] = {}


def remember(
    hparams: Any, dataset: str, environments: Sequence[Environment], root: str | None = None
) -> Seen:
    """Note what ``dataset`` showed; ``hparams`` is the object it was built with, None if none.

    With the folder ``root`` of all environments it is verified as ``carft data verify`` does,
    without decoding; else judged by its counts alone.
    """
    _keep(hparams, dataset, Seen(environments))  # which is known even if judging fails
    seen = _judged(dataset, environments, root)
    _keep(hparams, dataset, seen)
    return seen


def _keep(hparams: Any, dataset: str, seen: Seen) -> None:
    _by_object.clear()
    _by_name.clear()
    if hparams is None:
        _by_name[dataset] = seen
    else:
        _by_object[id(hparams)] = (hparams, seen)


def recall(hparams: Mapping[str, Any], dataset: str | None = None) -> Seen:
    """What the data set built with this very object showed; nothing if there is none.

    Else what the data set of that name showed, of any name where it is not known, if it was built
    without an hparams object.
    """
    if id(hparams) in _by_object:
        return _by_object[id(hparams)][1]
    if dataset is None:
        return next(iter(_by_name.values()), Seen())
    return _by_name.get(dataset, Seen())


def _judged(dataset: str, environments: Sequence[Environment], root: str | None) -> Seen:
    if not environments or any(e.counts is None or e.classes is None for e in environments):
        return Seen(environments)
    from domainbed_carft.data import data_check, verify

    if root is not None:
        report = data_check.taken(dataset, root)
    else:
        counts = {e.name: dict(zip(e.classes or (), e.counts or ())) for e in environments}
        report = verify.judge(dataset, counts)
    return Seen(environments, report.data_edition, report.problems, report.differences)


def is_edition(recorded: str, found: str) -> bool:
    """Whether data whose edition is ``found`` is what ``recorded`` says.

    Older records have no digest after the verdict: any data of that verdict is what they say.
    """
    return found == recorded or found.startswith((f"{recorded}: ", f"{recorded}, "))


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


def counts(folder: Any) -> list[int] | None:
    """Pictures of each class of an ImageFolder in label order; None for anything else."""
    targets, classes = getattr(folder, "targets", None), getattr(folder, "classes", None)
    if targets is None or classes is None:
        return None
    found = Counter(targets)
    return [found[label] for label in range(len(classes))]
