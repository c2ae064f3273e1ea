"""Under which settings a run was made, and which runs may therefore be averaged.

What is chosen by seeds, by trial or by target is no setting. A setting is what two runs of one
algorithm on one data set have to share, or their mean would mean nothing. The environments are
what all runs on a data set have to share, or a column would mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from domainbed_carft.jobs.planned import Planned
    from domainbed_carft.jobs.records import Run

ARGUMENTS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task")
DEFAULT = "default"
UNKNOWN = "not recorded"
ENVIRONMENTS = "environments"
EDITION = "data edition"
# Of what is recorded the hparam that sets it says no more.
_RECORDED_AS = {"hparam protocol": "protocol", "hparam data_edition": EDITION}
# Older records of other algorithms than ours do not tell it.
_SAME_PROTOCOL = {UNKNOWN, "domainbed"}
# What can be left out of account by name, and how the names of parts begin.
KINDS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ARGUMENTS},
    "hparams": ("hparam ",),
    "protocol": ("protocol", "hparam protocol"),
    "data_edition": (EDITION, "hparam data_edition"),
    "versions": ("version of ",),
}


def of(
    args: Mapping[str, Any],
    hparams: Mapping[str, Any],
    edition: str | None,
    versions: Mapping[str, Any],
    protocol: str | None = None,
) -> dict[str, str]:
    """Part -> value, as words: arguments, overridden hparams, protocol, data edition, versions."""
    parts = {}
    for name in ARGUMENTS:
        value = args.get(name, UNKNOWN)
        parts[name] = DEFAULT if value is None else str(value)
    for name, value in _overrides(args.get("hparams")).items():
        parts[f"hparam {name}"] = json.dumps(_same_number(value), sort_keys=True)
    if protocol := hparams.get("protocol", protocol):
        parts["protocol"] = str(protocol)
    edition = edition or hparams.get("data_edition")
    if edition:
        parts[EDITION] = str(edition)
    return parts | {f"version of {name}": str(value) for name, value in sorted(versions.items())}


def _overrides(given: Any) -> Mapping[str, Any]:
    """The hparams set by ``--hparams``, under which a run is recorded as JSON or as an object."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return {"--hparams": given}
    return given if isinstance(given, dict) else {}


def _same_number(value: Any) -> Any:
    """1.0 as 1: as an hparam they are the same."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def value(setting: Mapping[str, str], part: str) -> str:
    """A part's value; an hparam that is not overridden is the default."""
    return setting.get(part, DEFAULT if part.startswith("hparam ") else UNKNOWN)


class Group(NamedTuple):
    """Runs that may be averaged, what sets them apart from the other groups, and remarks.

    ``planned``: jobs without a record that belong to them, and all declared ones; there may be
    nothing but these.
    """

    title: str
    runs: Sequence[Run]
    planned: Sequence[Planned]
    notes: Sequence[str]


class _Job(NamedTuple):
    """A run, or a planned job, and its setting, of which the environments are a part."""

    job: Run | Planned
    setting: Mapping[str, str]

    @property
    def of_whom(self) -> tuple[str, str]:
        return self.job.dataset, self.job.algorithm


def groups(
    runs: Sequence[Run], planned: Sequence[Planned] = (), ignored: Sequence[str] = ()
) -> list[Group]:
    """Split ``runs`` where one algorithm on one data set was run under several settings.

    Algorithms, or data sets, that each have one setting but not the same stay together, for no cell
    mixes them; a note says in what they differ. ``ignored``: keys of KINDS that do not count.
    """
    starts = tuple(start for name in ignored for start in KINDS[name])
    ran = [_Job(run, {**run.setting, ENVIRONMENTS: _environments(run)}) for run in runs]
    waiting = [_Job(job, job.setting) for job in planned]
    parts = [p for p in _conflicts(ran, waiting) if not (starts and p.startswith(starts))]
    parts = _telling(parts, [*ran, *waiting])
    members: dict[tuple[str, ...], list[_Job]] = {}
    for job in ran:
        members.setdefault(_key(job.setting, parts), []).append(job)
    places = _places(waiting, parts, members)
    result = []
    for key in sorted({*members, *places}):
        title = ", ".join(f"{part} {word}" for part, word in zip(parts, key))
        mine = members.get(key, [])
        there = [one.job for one in mine]
        notes = list(_notes(mine, starts))
        result.append(Group(title, there, places.get(key, []), notes))  # type: ignore[arg-type]
    return result


def _environments(run: Run) -> str:
    """Their names, where the records tell them; else how many there are."""
    return ", ".join(run.environments) or str(run.n_environments)


def _places(
    waiting: Iterable[_Job], parts: Sequence[str], known: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], list[Planned]]:
    """The groups that planned jobs belong to, which may be groups of their own."""
    known = list(known)
    found: dict[tuple[str, ...], list[Planned]] = {}
    for one in waiting:
        fitting = [key for key in known if _agrees(one.setting, parts, key)]
        for key in fitting or [_key(one.setting, parts)]:
            found.setdefault(key, []).append(one.job)  # type: ignore[arg-type]
    return found


def _key(setting: Mapping[str, str], parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(value(setting, part) for part in parts)


def _agrees(setting: Mapping[str, str], parts: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a job not yet run may belong there: some parts are known from records only."""
    known = [value(setting, part) for part in parts]
    return all(UNKNOWN in (word, wanted) or word == wanted for word, wanted in zip(known, key))


def _by_algorithm(jobs: Iterable[_Job]) -> dict[tuple[str, str], list[Mapping[str, str]]]:
    """Different settings of each (data set, algorithm)."""
    found: dict[tuple[str, str], dict[tuple[Any, ...], Mapping[str, str]]] = {}
    for one in jobs:
        different = found.setdefault(one.of_whom, {})
        different.setdefault(tuple(one.setting.items()), one.setting)
    return {key: list(different.values()) for key, different in found.items()}


def _conflicts(ran: Sequence[_Job], waiting: Sequence[_Job]) -> list[str]:
    """Parts of which some algorithm, or of environments some data set, has several values."""
    found: dict[str, None] = {}
    environments: dict[str, set[str]] = {}
    settings = _by_algorithm(ran)
    for (dataset, _), different in settings.items():
        for part in dict.fromkeys(part for setting in different for part in setting):
            values = {value(setting, part) for setting in different}
            if part == "protocol" and values <= _SAME_PROTOCOL:
                continue
            if part == EDITION:
                # Older records have the verdict alone, which any data of that verdict meets.
                values = {v for v in values if not any(v == w for w in values - {v})}
            if part == ENVIRONMENTS:
                values |= environments.setdefault(dataset, set())
                environments[dataset] = values
            if len(values) > 1:
                found[part] = None
    for of_whom, different in _by_algorithm(waiting).items():
        for part in dict.fromkeys(part for setting in different for part in setting):
            there = {value(setting, part) for setting in settings.get(of_whom, [])}
            wanted = {value(setting, part) for setting in different} - {UNKNOWN}
            if there and UNKNOWN not in there and wanted - there:
                found[part] = None
    return list(found)


def _telling(parts: list[str], jobs: Sequence[_Job]) -> list[str]:
    """Without those parts, the last first, that tell nothing apart that the others do not."""
    settings = {tuple(one.setting.items()): one.setting for one in jobs}.values()
    for part in reversed(parts):
        without = [other for other in parts if other != part]
        if without and _distinct(settings, without) == _distinct(settings, parts):
            parts = without
    return parts


def _distinct(settings: Iterable[Mapping[str, str]], parts: Sequence[str]) -> int:
    return len({_key(setting, parts) for setting in settings})


def _notes(jobs: Sequence[_Job], ignored: tuple[str, ...]) -> Iterator[str]:
    """In what the settings of a group's algorithms and data sets differ."""
    for part, settings in _differing(jobs):
        # Each data set has an edition of its own.
        apart = part == EDITION
        for dataset in dict.fromkeys(name for name, _ in settings) if apart else [None]:
            whose = {
                f"{algorithm} on {name}": words
                for (name, algorithm), words in settings.items()
                if dataset in (None, name)
            }
            words = _told(whose)
            if words:
                asked = " (averaged all the same, as asked)"
                mixed = asked if ignored and part.startswith(ignored) else ""
                yield f"Not all runs have the same {part}{mixed}: {words}."


def mixed(runs: Iterable[Run]) -> dict[str, str]:
    """Algorithm -> in what its data sets differ; not so the edition, of which each has its own.

    Algorithms whose mean over data sets mixes nothing are not in it.
    """
    of_algorithm: dict[str, list[_Job]] = {}
    for run in runs:
        of_algorithm.setdefault(run.algorithm, []).append(_Job(run, run.setting))
    found: dict[str, list[str]] = {}
    for algorithm, jobs in of_algorithm.items():
        for part, settings in _differing(jobs):
            whose = {dataset: words for (dataset, _), words in settings.items()}
            sets = {frozenset(words) for words in whose.values()}
            older = part == "protocol" and frozenset().union(*sets) <= _SAME_PROTOCOL
            if len(sets) > 1 and part != EDITION and not older:
                found.setdefault(algorithm, []).append(f"{part} ({_told(whose)})")
    return {algorithm: ", ".join(parts) for algorithm, parts in found.items()}


def _told(whose: Mapping[str, Iterable[str]]) -> str:
    """Each value with those who have it, "" if there is but one."""
    found: dict[str, list[str]] = {}
    for who, words in whose.items():
        for word in words:
            found.setdefault(word, []).append(who)
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items())
    return told if len(found) > 1 else ""


def _differing(
    jobs: Sequence[_Job],
) -> Iterator[tuple[str, dict[tuple[str, str], list[str]]]]:
    """Parts that have several values, with those of each (data set, algorithm), each said once."""
    settings = _by_algorithm(jobs)
    parts = dict.fromkeys(p for different in settings.values() for s in different for p in s)
    for part in parts:
        # The environments of each data set name the columns.
        if part == ENVIRONMENTS or _RECORDED_AS.get(part) in parts:
            continue
        values = {
            of_whom: list(dict.fromkeys(value(setting, part) for setting in different))
            for of_whom, different in settings.items()
        }
        several = len({word for words in values.values() for word in words}) > 1
        if several and not _recorded_alike(jobs, part):
            yield part, values


def _recorded_alike(jobs: Iterable[_Job], part: str) -> bool:
    """Whether it is an hparam of which all runs recorded one value, set by hand or not."""
    name = part.removeprefix("hparam ")
    if name == part:
        return False
    recorded = [json.loads(text) for text in {one.job.hparams for one in jobs}]  # type: ignore[union-attr]
    known = [json.dumps(_same_number(one[name])) for one in recorded if name in one]
    return len(known) == len(recorded) and len(set(known)) == 1
