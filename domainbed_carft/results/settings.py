"""Which runs may be averaged, each job once: a setting is what their mean supposes to be the same.

What is chosen by seeds, by trial or by target is no setting. Where one algorithm was run on one
data set under several settings, the runs are split into groups; the environments are what all runs
on a data set have to share, or a column would mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.job import Job, Key
from domainbed_carft.jobs.records import Run
from domainbed_carft.jobs.setting import ARGUMENTS, DEFAULT, EDITION, HPARAM, UNKNOWN, VERSION
from domainbed_carft.jobs.setting import setting as setting_of
from domainbed_carft.text import counted, limited

ENVIRONMENTS = "environments"
_SHOWN = 5
_Places = Mapping[tuple[str, str], Sequence[Run]]
# What can be left out of account by name, and how the names of parts begin.
KINDS: dict[str, str] = {
    **{name: name for name in ARGUMENTS},
    "hparams": HPARAM,
    "protocol": "protocol",
    "data_edition": EDITION,
    "versions": VERSION,
}


class Group(NamedTuple):
    """Runs that may be averaged, what sets them apart from the other groups, and remarks.

    ``planned``: jobs of the sweeps' manifests that belong to them, run or not; there may be nothing
    but these. ``labels``: data set -> environments, as the manifests have them.
    """

    title: str
    runs: Sequence[Run]
    planned: Sequence[Job]
    notes: Sequence[str]
    labels: Mapping[str, Sequence[str]] = {}


def groups(
    runs: Sequence[Run], planned: Sequence[Job] = (), ignored: Sequence[str] = ()
) -> list[Group]:
    """Split ``runs`` where one algorithm on one data set was run under several settings.

    Algorithms, or data sets, that each have one setting but not the same stay together, for no cell
    mixes them; a note says in what they differ. ``ignored``: keys of KINDS that do not count.
    """
    starts = tuple(KINDS[name] for name in ignored)
    expected = [(job, setting_of(job.args)) for job in planned]
    found = dict.fromkeys(_conflicts(_by_place(runs), expected))
    parts = [part for part in found if not (starts and part.startswith(starts))]
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(_value(run, part) for part in parts), []).append(run)
    waiting: dict[tuple[str, ...], list[Job]] = {}
    where: dict[int, list[tuple[str, ...]]] = {}  # the keys are by id: a Job holds a mapping
    for job, setting in expected:
        key = tuple(_word(setting, part) for part in parts)
        for fitting in [other for other in members if _agree(key, other)] or [key]:
            waiting.setdefault(fitting, []).append(job)
            where.setdefault(id(job), []).append(fitting)
    ran = {key: {run.job.key for run in mine} for key, mine in members.items()}
    result = []
    for key in sorted({*members, *waiting}):
        title = ", ".join(f"{part} {word}" for part, word in zip(parts, key))
        mine = members.get(key, [])
        siblings = {run.job.key._replace(test_envs=frozenset()) for run in mine}
        # A job that was run in another group is missed here only among runs of its trial.
        there = [
            job
            for job in waiting.get(key, ())
            if job.key in ran.get(key, ())
            or not any(job.key in ran.get(other, ()) for other in where[id(job)])
            or job.key._replace(test_envs=frozenset()) in siblings
        ]
        notes = [*_differences(mine, starts), *_drift(mine), *_diverged(mine)]
        result.append(Group(title, mine, there, notes))
    return result


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[Fault]]:
    """``runs`` of one group with each job once, and a fault for each that was passed over.

    Of several the finished one counts; of several with the same records, the first. Raises
    CarftError, naming all of them, for jobs of which two runs came to different records.
    """
    found: dict[Key, list[Run]] = {}
    for run in runs:
        found.setdefault(run.job.key, []).append(run)
    faults = []
    problems = []
    for same in found.values():
        first, *others = [run for run in same if run.done] or same
        content = first.steps.tobytes(), first.accuracies.tobytes()  # nan is not equal to nan
        if any((run.steps.tobytes(), run.accuracies.tobytes()) != content for run in others):
            folders = ", ".join(dict.fromkeys(run.folder for run in same))
            differ = _hparams_differ(dict.fromkeys(run.hparams for run in same))
            problems.append(f"- {first.job}: {folders}{differ and f', which differ in {differ}'}")
        what = f"the same job as in {first.folder}, which counts"
        faults += [Fault("passed over", run.folder, what) for run in same if run is not first]
        same[:] = [first]
    if problems:
        raise CarftError(
            f"{counted(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "with different records; expected one run a job. Move one folder away, collect them "
            "apart, or remove the records that do not count:\n" + "\n".join(problems)
        )
    return [run for run in runs if found[run.job.key] == [run]], faults


def _value(run: Run, part: str) -> str:
    if part == ENVIRONMENTS:  # their names, where the records have them; else how many there are
        return ", ".join(run.environments) or str(run.n_environments)
    return _word(run.setting, part)


def _word(setting: Mapping[str, str], part: str) -> str:
    """A part's value; an hparam that is not overridden is the default."""
    return setting.get(part, DEFAULT if part.startswith(HPARAM) else UNKNOWN)


def _agree(key: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a job may belong there: some parts are known from records only."""
    return all(UNKNOWN in pair or pair[0] == pair[1] for pair in zip(key, other))


def _by_place(runs: Iterable[Run]) -> _Places:
    """(data set, algorithm) -> a run for each of its different settings."""
    found: dict[tuple[str, str], dict[tuple[Any, ...], Run]] = {}
    for run in runs:
        different = found.setdefault((run.dataset, run.algorithm), {})
        different.setdefault((_value(run, ENVIRONMENTS), *run.setting.items()), run)
    return {place: list(different.values()) for place, different in found.items()}


def _parts(places: _Places) -> list[str]:
    """All but the environments."""
    return list(dict.fromkeys(p for runs in places.values() for run in runs for p in run.setting))


def _words(places: _Places, part: str) -> dict[tuple[str, str], list[str]]:
    """The different values of a part."""
    return {
        place: list(dict.fromkeys(_value(run, part) for run in runs))
        for place, runs in places.items()
    }


def _conflicts(places: _Places, expected: Sequence[tuple[Job, Mapping[str, str]]]) -> Iterator[str]:
    """Parts of which some algorithm, or of environments some data set, has several values.

    Of jobs that are expected those values count that are known without a record.
    """
    for part in [ENVIRONMENTS, *_parts(places)]:
        together: dict[Any, set[str]] = {}
        for place, words in _words(places, part).items():
            together.setdefault(place[0] if part == ENVIRONMENTS else place, set()).update(words)
        if any(len(words) > 1 for words in together.values()):
            yield part
    different = {(*job.key[:2], *setting.items()): (job, setting) for job, setting in expected}
    for job, setting in different.values():
        own = places.get((job.args["dataset"], job.args["algorithm"]), [])
        for part in {**setting, **dict.fromkeys(p for run in own for p in run.setting)}:
            ran = {_value(run, part) for run in own}
            word = _word(setting, part)
            if ran and UNKNOWN not in (word, *ran) and word not in ran:
                yield part


def _differences(runs: Sequence[Run], ignored: tuple[str, ...]) -> Iterator[str]:
    """In what the settings of a group's algorithms and data sets differ."""
    places = _by_place(runs)
    for part in _parts(places):
        values = _words(places, part)
        # Each data set has an edition of its own.
        for dataset in dict.fromkeys(name for name, _ in values) if part == EDITION else [None]:
            whose = {
                f"{algorithm} on {name}": words
                for (name, algorithm), words in values.items()
                if dataset in (None, name)
            }
            if len({word for words in whose.values() for word in words}) > 1:
                asked = " (averaged all the same, as asked)"
                averaged = asked if ignored and part.startswith(ignored) else ""
                yield f"Not all runs have the same {part}{averaged}: {_whose(whose)}."


def _whose(values: Mapping[str, Iterable[str]]) -> str:
    """Each value with those who have it."""
    found: dict[str, list[str]] = {}
    for who, words in values.items():
        for word in words:
            found.setdefault(word, []).append(who)
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items())


def _drift(runs: Iterable[Run]) -> list[str]:
    """Hyperparameters that changed while a sweep ran, as after an update of a default.

    hparams_seed 0 is the defaults, in every trial; the others are drawn for each trial anew.
    """
    found: dict[tuple[Any, ...], dict[str, None]] = {}
    for run in runs:
        of_trial = f" of trial {run.trial}" if run.choice else ""
        key = (run.algorithm, run.dataset, run.choice, of_trial)
        found.setdefault(key, {})[run.hparams] = None
    return limited(
        [
            f"{algorithm} on {dataset}, hparams_seed {choice}{of_trial}: the hyperparameters "
            f"differ between runs, in {_hparams_differ(texts)}."
            for (algorithm, dataset, choice, of_trial), texts in found.items()
            if len(texts) > 1
        ],
        _SHOWN,
    )


def _hparams_differ(texts: Iterable[str]) -> str:
    """In which hyperparameters the JSON objects differ, and how; "" if they do not."""
    hparams = [json.loads(text) for text in texts]
    found = []
    for name in sorted({name for one in hparams for name in one}):
        values = dict.fromkeys(json.dumps(one.get(name), sort_keys=True) for one in hparams)
        if len(values) > 1:
            found.append(f"{name} ({', '.join(values)})")
    return "; ".join(found[:_SHOWN]) + (", and more" if len(found) > _SHOWN else "")


def _diverged(runs: Iterable[Run]) -> Iterator[str]:
    found = [f"{r.job} at step {r.diverged_at:g}" for r in runs if r.diverged_at is not None]
    if found:
        listed = "; ".join([*found[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])])
        yield (
            f"{counted(len(found), 'run')} diverged; accuracies from the first loss that was not "
            f"finite count as missing: {listed}."
        )
