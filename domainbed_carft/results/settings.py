"""Which runs may be averaged, each job once: those of the same setting.

Seeds, trial and target are no part of a setting. All runs on a data set must share its
environments, or a column would have no meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Job, Key
from domainbed_carft.jobs.records import Fault, Run
from domainbed_carft.jobs.setting import DEFAULT, ENVIRONMENTS, HPARAM, KINDS, UNKNOWN
from domainbed_carft.jobs.setting import setting as setting_of
from domainbed_carft.text import counted

# (data set, algorithm) -> the settings of its jobs
_Places = dict[tuple[str, str], list[Mapping[str, str]]]


class Group(NamedTuple):
    """Runs that may be averaged, how they differ from the other groups, and remarks.

    ``planned``: jobs of the sweeps' manifests that belong to the group, run or not; ``runs`` may be
    empty. ``labels``: data set -> environments, as in the manifests. ``declared``: the algorithms
    in the order in which the manifests declare them.
    """

    title: str
    runs: Sequence[Run]
    planned: Sequence[Job]
    notes: Sequence[str]
    labels: Mapping[str, Sequence[str]] = {}
    declared: Sequence[str] = ()


def groups(
    runs: Sequence[Run], planned: Sequence[Job] = (), ignored: Sequence[str] = ()
) -> list[Group]:
    """Split ``runs`` where one algorithm on one data set was run under several settings.

    Algorithms or data sets that differ in their one setting stay together, since no cell mixes
    them; a note names the differences. ``ignored``: keys of KINDS that do not count.
    """
    starts = tuple(KINDS[name] for name in ignored)
    expected = [(job, setting_of(job.args)) for job in planned]
    found = _conflicts(_by_place((run.job, run.setting) for run in runs), _by_place(expected))
    parts = [part for part in found if not (starts and part.startswith(starts))]
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(_word(run.setting, part) for part in parts), []).append(run)
    ran = {key: {run.job.key for run in mine} for key, mine in members.items()}
    trials = {key: {(*job[:2], *job[3:]) for job in jobs} for key, jobs in ran.items()}
    waiting: dict[tuple[str, ...], list[Job]] = {}
    for job, setting in expected:
        key = tuple(_word(setting, part) for part in parts)
        fitting = [other for other in members if _agree(key, other)] or [key]
        elsewhere = any(job.key in ran.get(other, ()) for other in fitting)
        for other in fitting:
            # What ran under another setting is missed here only among runs of its trial.
            if not elsewhere or (*job.key[:2], *job.key[3:]) in trials[other]:
                waiting.setdefault(other, []).append(job)
    result = []
    for key in sorted({*members, *waiting}):
        title, mine = ", ".join(map(" ".join, zip(parts, key))), members.get(key, [])
        notes = [": ".join(filter(None, [title, note])) for note in _differences(mine)]
        result.append(Group(title, mine, waiting.get(key, []), notes))
    return result


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[Fault]]:
    """``runs`` of one group with each job once, and a fault for each run passed over.

    Of several, the finished one counts; of several with the same records, the first. Raises
    CarftError, naming all of them, for jobs whose runs have different records.
    """
    found: dict[Key, list[Run]] = {}
    for run in runs:
        found.setdefault(run.job.key, []).append(run)
    counting, faults, problems = [], [], []
    for same in found.values():
        first, *others = [run for run in same if run.done] or same
        counting.append(first)
        content = first.steps.tobytes(), first.accuracies.tobytes()  # nan is not equal to nan
        if any((run.steps.tobytes(), run.accuracies.tobytes()) != content for run in others):
            folders = ", ".join(dict.fromkeys(run.folder for run in same))
            problems.append(f"- {first.job}: {folders}")
        what = f"same job as in {first.folder}, which is used"
        faults += [Fault("passed over", run.folder, what) for run in same if run is not first]
    if problems:
        raise CarftError(
            f"{counted(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "with different records; move one folder away:\n" + "\n".join(problems)
        )
    return counting, faults


def _word(setting: Mapping[str, str], part: str) -> str:
    """A part's value; an hparam that is not overridden is the default."""
    return setting.get(part, DEFAULT if part.startswith(HPARAM) else UNKNOWN)


def _agree(key: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a job may belong there: some parts are known from records only."""
    return all(UNKNOWN in pair or pair[0] == pair[1] for pair in zip(key, other))


def _by_place(found: Iterable[tuple[Job, Mapping[str, str]]]) -> _Places:
    places: _Places = {}
    for job, setting in found:
        places.setdefault(job.key[:2], []).append(setting)
    return places


def _parts(places: _Places) -> list[str]:
    return list(dict.fromkeys(part for own in places.values() for one in own for part in one))


def _conflicts(ran: _Places, listed: _Places) -> Iterator[str]:
    """Parts of which some algorithm on a data set, or of environments a data set, has several
    values; of listed jobs those values count that are known without a record.
    """
    for part in _parts({**listed, **ran}):
        together: dict[tuple[str, ...], set[str]] = {}
        for place in {**ran, **listed}:
            words = {_word(setting, part) for setting in ran.get(place, ())}
            if UNKNOWN not in words:
                words |= {_word(setting, part) for setting in listed.get(place, ())} - {UNKNOWN}
            together.setdefault(place[: 1 if part == ENVIRONMENTS else 2], set()).update(words)
        if any(len(words) > 1 for words in together.values()):
            yield part


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    """How the settings of a group's algorithms and data sets differ."""
    places = _by_place((run.job, run.setting) for run in runs)
    titles = benchmarks.dataset_titles(dataset for dataset, _ in places)
    for part in _parts(places):
        whose: dict[str, dict[str, None]] = {}
        for (dataset, algorithm), own in places.items():
            for setting in own:
                place = f"{algorithm} on {titles[dataset]}"
                whose.setdefault(_word(setting, part), {})[place] = None
        if len(whose) > 1 and part != ENVIRONMENTS:  # each data set has its own
            told = "; ".join(f"{word}: {', '.join(names)}" for word, names in whose.items())
            yield f"Not all runs have the same {part}: {told}."
