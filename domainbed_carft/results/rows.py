"""The rows of tables: names, also of those that ``--by`` makes, and the order of all labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import raise_for
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import ARGUMENTS, DEFAULT, HPARAM
from domainbed_carft.jobs.setting import get_setting as setting_of

VARIANT = "variant"

# DomainBed's order, ours after its; means over datasets depend on it in the last bit.
_DATASETS = (
    "Debug28",
    "Debug224",
    "ColoredMNIST",
    "RotatedMNIST",
    "VLCS",
    "PACS",
    "OfficeHome",
    "TerraIncognita",
    "DomainNet",
    "SVIRO",
    "EmojiStyles",
    "EmojiUnseen",
)

# The values of the names of ``by``, as settings have them.
_Words = tuple[str, ...]


def environment_labels(
    runs: Iterable[RecordedRun],
    planned: Iterable[Job] = (),
    listed: Mapping[str, Sequence[str]] = {},
) -> dict[str, tuple[str, ...]]:
    """Dataset -> labels of its environments, in the order of the tables.

    The labels of a record, else of a manifest, else the known ones, if their number matches the
    accuracies of the record; else env0, env1, ...
    """
    recorded: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.dataset] = max(run.n_environments, counts.get(run.dataset, 0))
        if run.environments:
            recorded.setdefault(run.dataset, run.environments)

    benchmark_labels: Mapping[str, Sequence[str]] = {
        name: [environment.label for environment in benchmark.environments]
        for name, benchmark in benchmarks.BENCHMARKS.items()
    }
    for name in {job.key.dataset: None for job in planned}:
        counts.setdefault(name, len(listed.get(name, ()) or benchmark_labels.get(name, ())))

    ordered = [name for name in _DATASETS if name in counts]
    ordered += [name for name in counts if name not in _DATASETS]

    labels_of: dict[str, tuple[str, ...]] = {}
    for name in ordered:
        labels_of[name] = tuple(f"env{number}" for number in range(counts[name]))
        for source in (recorded, listed, benchmark_labels):
            names_in_source = source.get(name, ())
            if len(names_in_source) == counts[name]:
                labels_of[name] = tuple(names_in_source)
                break
    return labels_of


def ordered_rows(names: Iterable[str], declared: Iterable[str] = ()) -> list[str]:
    """``names``, each once, in the order of rows, legends and bars.

    First those that a sweep ``declared``, in its order, then ours and those of a user's files by
    the rows of their styles, then all others by name.
    """
    distinct = set(names)
    order = dict.fromkeys((*declared, *own_methods.list_algorithms(), *sorted(distinct)))
    return [name for name in order if name in distinct]


class _JobFacts(NamedTuple):
    """A job, run or planned, with its setting and variant."""

    job: Job
    setting: Mapping[str, str]
    variant: str

    def words(self, by: Sequence[str]) -> _Words:
        """The job's value of each name."""
        words = []
        for name in by:
            if name == VARIANT:
                words.append(self.variant)
            elif name in self.job.role.values:
                words.append("")  # the selection method chooses it
            else:
                words.append(self.setting.get(_part(name), DEFAULT))
        return tuple(words)


class _Value(NamedTuple):
    """An algorithm's value of one name of ``by``: its ``text`` in the row's name, and itself.

    ``is_ranked_by_word``: whether rows with words are sorted by them.
    """

    text: str
    plain: Any
    is_ranked_by_word: bool = True


@dataclass(frozen=True)
class JointRow:
    """The algorithm of a row, and its value of each name of ``by``: a default if it is known."""

    algorithm: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class JointRows:
    """Runs and planned jobs of which the rows have names, and these in their order.

    ``parts``: what the names tell, as settings call it; ``rows``: what each is of, by its name.
    """

    runs: list[RecordedRun]
    planned: list[Job]
    names: list[str]
    parts: list[str]
    rows: Mapping[str, JointRow]


def label_rows(
    runs: Sequence[RecordedRun],
    planned: Sequence[Job],
    *,
    by: Sequence[str],
    folders: Sequence[Path | str],
    declared: Iterable[str],
) -> JointRows:
    """The runs and jobs, with a row for each value that an algorithm has of the names ``by``.

    A name is that of a hyperparameter or argument, or VARIANT. A row is called ``CARFT (lr 0.001)``
    and an algorithm with one value keeps its name. ``folders``: that were collected, in which
    variants have folders of their own. ``declared``: algorithms in the order of the tables.
    Without ``by`` the rows are the algorithms. Raises CarftError for a name of which no algorithm
    has several values.
    """
    if not by:
        return JointRows(list(runs), list(planned), names=list(declared), parts=[], rows={})

    facts = [
        *(_JobFacts(job, setting_of(job.args), _variant(job, folders)) for job in planned),
        *(_JobFacts(run.job, run.setting, _variant(run.job, folders)) for run in runs),
    ]
    _require_varying(by, facts)
    words_by_algorithm: dict[str, dict[_Words, None]] = {}
    for of_job in facts:
        words_by_algorithm.setdefault(of_job.job.key.algorithm, {})[of_job.words(by)] = None

    defaults = _recorded_defaults(by, runs)
    names: dict[tuple[str, _Words], str] = {}
    rows = {}
    for algorithm in ordered_rows(words_by_algorithm, declared):
        of_algorithm = _values_in_order(algorithm, by, words_by_algorithm[algorithm], defaults)
        varying = [len({words[number] for words in of_algorithm}) > 1 for number in range(len(by))]
        for words, values in of_algorithm.items():
            texts = [value.text for value, varies in zip(values, varying, strict=True) if varies]
            name = f"{algorithm} ({', '.join(texts)})" if texts else algorithm
            names[algorithm, words] = name
            plain = [value.plain for value in values]
            rows[name] = JointRow(algorithm, dict(zip(by, plain, strict=True)))

    jobs = [
        replace(of_job.job, row_name=names[of_job.job.key.algorithm, of_job.words(by)])
        for of_job in facts
    ]
    return JointRows(
        runs=[replace(run, job=job) for run, job in zip(runs, jobs[len(planned) :])],
        planned=jobs[: len(planned)],
        names=list(names.values()),
        parts=[_part(name) for name in by if name != VARIANT],
        rows=rows,
    )


def _variant(job: Job, folders: Iterable[Path | str]) -> str:
    """The folder that the job's folder lies in, below one of ``folders``; "" for that itself."""
    if job.role.values:
        return job.role.cell  # its folder is that of a member of a search

    parent = job.folder.parent
    for folder in map(Path, folders):
        if parent.is_relative_to(folder):
            variant = os.path.relpath(parent, folder)
            return "" if variant == "." else variant
    return job.variant


def _part(name: str) -> str:
    """What a setting calls it."""
    return name if name in ARGUMENTS else HPARAM + name


def _require_varying(by: Sequence[str], facts: Sequence[_JobFacts]) -> None:
    """Raise CarftError for names of which no algorithm has several values."""
    parts = dict.fromkeys(part for of_job in facts for part in of_job.setting)
    candidates = [
        part.removeprefix(HPARAM) for part in parts if part in ARGUMENTS or part.startswith(HPARAM)
    ]
    varying = []
    for name in [*candidates, VARIANT]:
        words: dict[str, set[_Words]] = {}
        for of_job in facts:
            words.setdefault(of_job.job.key.algorithm, set()).add(of_job.words([name]))
        if any(len(words_of_algorithm) > 1 for words_of_algorithm in words.values()):
            varying.append(name)

    expected = "one that varies; no setting varies in these folders, so leave --by out"
    if varying:
        expected = f"one that varies: {', '.join(varying)}"
    raise_for(
        f"--by {name}: no algorithm has several values of it between its tables, "
        f"expected {expected}"
        for name in by
        if name not in varying
    )


def _recorded_defaults(
    by: Sequence[str], runs: Iterable[RecordedRun]
) -> dict[tuple[str, str], Any]:
    """(Algorithm, hparam) -> its recorded value where it was not set; of several values, none."""
    recorded: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        for name in by:
            if HPARAM + name not in run.setting and name in run.recorded:
                values = recorded.setdefault((run.algorithm, name), [])
                if run.recorded[name] not in values:
                    values.append(run.recorded[name])
    return {key: values[0] for key, values in recorded.items() if len(values) == 1}


def _values_in_order(
    algorithm: str,
    by: Sequence[str],
    all_words: Iterable[_Words],
    defaults: Mapping[tuple[str, str], Any],
) -> dict[_Words, list[_Value]]:
    """The values of an algorithm's rows, in the order of these."""
    values_of_words = {
        words: [
            _value(name, word, defaults.get((algorithm, name)))
            for name, word in zip(by, words, strict=True)
        ]
        for words in all_words
    }
    return dict(sorted(values_of_words.items(), key=lambda item: _ranks(item[1])))


def _value(name: str, word: str, default: Any) -> _Value:
    """An algorithm's value of a name; ``default``: if it was not set, None where unknown."""
    if name == VARIANT:
        return _Value(word or "no variant", _plain(word), is_ranked_by_word=False)
    if word != DEFAULT:
        return _Value(f"{name} {_plain(word)}", _plain(word))
    if default is None:
        return _Value(f"{name} {DEFAULT}", DEFAULT)
    return _Value(f"{name} {default}, the {DEFAULT}", default)


def _plain(word: str) -> Any:
    """A value of a setting, which for a hyperparameter is JSON."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _ranks(values: Iterable[_Value]) -> list[tuple[int, float, str]]:
    """What rows are sorted by: numbers by size, then words; variants as they come."""
    ranks = []
    for value in values:
        is_number = isinstance(value.plain, (int, float)) and not isinstance(value.plain, bool)
        if is_number:
            ranks.append((0, float(value.plain), ""))
        else:
            ranks.append((1, 0.0, str(value.plain) if value.is_ranked_by_word else ""))
    return ranks
