"""Under which settings a run was made, and which runs may therefore be averaged.

What is chosen by seeds, by trial or by target is no setting. A setting is what two runs of one
algorithm on one data set have to share, or their mean would mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from domainbed_carft.collect.records import Planned, Run

ARGUMENTS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task")
DEFAULT = "default"
UNKNOWN = "not recorded"
# What can be left out of account by name, and how the names of parts begin.
KINDS = {
    **{name: name for name in ARGUMENTS},
    "hparams": "hparam ",
    "protocol": "protocol",
    "data_edition": "data edition",
    "versions": "version of ",
}


def of(
    args: Mapping[str, Any],
    hparams: Mapping[str, Any],
    edition: str | None,
    versions: Mapping[str, Any],
) -> dict[str, str]:
    """Part -> value, as words: arguments, overridden hparams, protocol, data edition, versions."""
    parts = {}
    for name in ARGUMENTS:
        value = args.get(name, UNKNOWN)
        parts[name] = DEFAULT if value is None else str(value)
    for name, value in _overrides(args.get("hparams")).items():
        parts[f"hparam {name}"] = json.dumps(value, sort_keys=True)
    if "protocol" in hparams:
        parts["protocol"] = str(hparams["protocol"])
    edition = edition or hparams.get("data_edition")
    if edition:
        parts["data edition"] = str(edition)
    return parts | {f"version of {name}": str(value) for name, value in sorted(versions.items())}


def _overrides(given: Any) -> Mapping[str, Any]:
    """The hparams set by ``--hparams``, under which a run is recorded as JSON or as an object."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return {"--hparams": given}
    return given if isinstance(given, dict) else {}


def value(setting: Mapping[str, str], part: str) -> str:
    """A part's value; an hparam that is not overridden is the default."""
    return setting.get(part, DEFAULT if part.startswith("hparam ") else UNKNOWN)


class Group(NamedTuple):
    """Runs that may be averaged, what sets them apart from the other groups, and remarks."""

    title: str
    runs: Sequence[Run]
    planned: Sequence[Planned]
    notes: Sequence[str]


def groups(
    runs: Sequence[Run], planned: Sequence[Planned] = (), ignored: Sequence[str] = ()
) -> list[Group]:
    """Split ``runs`` where one algorithm on one data set was run under several settings.

    Algorithms, or data sets, that each have one setting but not the same stay together, for no cell
    mixes them; a note says in what they differ. ``ignored``: keys of KINDS that do not count.
    """
    starts = tuple(KINDS[name] for name in ignored)
    parts = [p for p in _conflicts(runs) if not (starts and p.startswith(starts))]
    parts = _telling(parts, runs)
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(_key(run.setting, parts), []).append(run)
    result = []
    for key in sorted(members):
        title = ", ".join(f"{part} {word}" for part, word in zip(parts, key))
        mine = [p for p in planned if _agrees(p.setting, parts, key)]
        result.append(Group(title, members[key], mine, list(_notes(members[key], starts))))
    return result


def _key(setting: Mapping[str, str], parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(value(setting, part) for part in parts)


def _agrees(setting: Mapping[str, str], parts: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a job not yet run may belong there: some parts are known from records only."""
    known = [value(setting, part) for part in parts]
    return all(word in (wanted, UNKNOWN) for word, wanted in zip(known, key))


def _by_algorithm(runs: Iterable[Run]) -> dict[tuple[str, str], list[Mapping[str, str]]]:
    """Different settings of each (data set, algorithm)."""
    found: dict[tuple[str, str], dict[tuple[Any, ...], Mapping[str, str]]] = {}
    for run in runs:
        different = found.setdefault((run.dataset, run.algorithm), {})
        different.setdefault(tuple(run.setting.items()), run.setting)
    return {key: list(different.values()) for key, different in found.items()}


def _conflicts(runs: Sequence[Run]) -> list[str]:
    """Parts of which some algorithm has several values on some data set."""
    found: dict[str, None] = {}
    for different in _by_algorithm(runs).values():
        for part in dict.fromkeys(part for setting in different for part in setting):
            if len({value(setting, part) for setting in different}) > 1:
                found[part] = None
    return list(found)


def _telling(parts: list[str], runs: Sequence[Run]) -> list[str]:
    """Without those parts, the last first, that tell nothing apart that the others do not."""
    settings = {tuple(run.setting.items()): run.setting for run in runs}.values()
    for part in reversed(parts):
        without = [other for other in parts if other != part]
        if without and _distinct(settings, without) == _distinct(settings, parts):
            parts = without
    return parts


def _distinct(settings: Iterable[Mapping[str, str]], parts: Sequence[str]) -> int:
    return len({_key(setting, parts) for setting in settings})


def _notes(runs: Sequence[Run], ignored: tuple[str, ...]) -> Iterator[str]:
    """In what the settings of a group's algorithms and data sets differ."""
    settings = _by_algorithm(runs)
    parts = dict.fromkeys(p for different in settings.values() for s in different for p in s)
    for part in parts:
        # Each data set has an edition of its own.
        apart = part == "data edition"
        for dataset in dict.fromkeys(name for name, _ in settings) if apart else [None]:
            words: dict[str, list[str]] = {}
            for (name, algorithm), different in settings.items():
                if dataset in (None, name):
                    for word in dict.fromkeys(value(setting, part) for setting in different):
                        words.setdefault(word, []).append(f"{algorithm} on {name}")
            if len(words) > 1:
                told = "; ".join(f"{word}: {', '.join(who)}" for word, who in words.items())
                asked = " (averaged all the same, as asked)"
                mixed = asked if ignored and part.startswith(ignored) else ""
                yield f"Not all runs have the same {part}{mixed}: {told}."
