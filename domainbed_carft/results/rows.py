"""The rows of tables: names, including those made by ``--by``, and the order of all labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import raise_for
from domainbed_carft.jobs.algorithms import SHIPPED, Method
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import ARGUMENTS, DEFAULT, HPARAM
from domainbed_carft.jobs.setting import get_setting as setting_of

VARIANT = "variant"

# DomainBed's order, followed by our datasets. The last bit of a mean depends on it.
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
    """Map each dataset to the labels of its environments, in the order of the tables.

    Labels are taken from the records, then the manifests (``listed``), then the known benchmarks,
    if there are as many as recorded accuracies; otherwise they are env0, env1, ...
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

    labels_by_dataset: dict[str, tuple[str, ...]] = {}
    for name in ordered:
        labels_by_dataset[name] = tuple(f"env{number}" for number in range(counts[name]))
        for source in (recorded, listed, benchmark_labels):
            names_in_source = source.get(name, ())
            if len(names_in_source) == counts[name]:
                labels_by_dataset[name] = tuple(names_in_source)
                break
    return labels_by_dataset


def order_algorithms(
    declared: Iterable[str], own_methods: Mapping[str, Method] = {}
) -> tuple[str, ...]:
    """Return the order of algorithms in tables, legends and bars.

    First come the algorithms that sweeps ``declared``, then the methods of this package and
    the user's ``own_methods`` in the order of their styles.
    """
    rows = {
        name: method.style.row
        for name, method in {**own_methods, **SHIPPED}.items()
        if method.style
    }
    return tuple(dict.fromkeys((*declared, *sorted(rows, key=rows.__getitem__))))


def sort_rows(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Sort distinct names by their places in ``order``, then all others by name."""
    distinct = set(names)
    return [name for name in dict.fromkeys((*order, *sorted(distinct))) if name in distinct]


class _JobFacts(NamedTuple):
    """A run or planned job with its setting and variant."""

    job: Job
    setting: Mapping[str, str]
    variant: str

    def words(self, by: Sequence[str]) -> _Words:
        """Return the job's value of each name."""
        words = []
        for name in by:
            if name == VARIANT:
                words.append(self.variant)
            elif name in self.job.role.values:
                words.append("")  # chosen by the selection method
            else:
                words.append(self.setting.get(_part(name), DEFAULT))
        return tuple(words)


class _Value(NamedTuple):
    """An algorithm's value of one name of ``by``.

    Attributes:
        text: the value in the name of a row.
        plain: the value itself.
        is_ranked_by_word: True if rows with text values are sorted alphabetically.
    """

    text: str
    plain: Any
    is_ranked_by_word: bool = True


@dataclass(frozen=True)
class JointRow:
    """The algorithm of a row, and its value of each name of ``by`` (the default if it is known)."""

    algorithm: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class JointRows:
    """Runs and planned jobs with the names of their rows.

    Attributes:
        runs: the runs.
        planned: the planned jobs.
        order: the names of rows and algorithms in the order of the tables.
        parts: the parts of a setting that the names show.
        rows: name -> its algorithm and values.
    """

    runs: list[RecordedRun]
    planned: list[Job]
    order: Sequence[str]
    parts: list[str]
    rows: Mapping[str, JointRow]


def label_rows(
    runs: Sequence[RecordedRun],
    planned: Sequence[Job],
    *,
    by: Sequence[str],
    folders: Sequence[Path | str],
    order: Sequence[str],
) -> JointRows:
    """Give each algorithm a row for each of its values of the names ``by``.

    Each name is a hyperparameter, an argument, or VARIANT. A row is called ``CARFT (lr 0.001)``,
    and an algorithm with a single value keeps its name. Without ``by`` the rows are the algorithms.
    Raises CarftError for a name of which no algorithm has several values.

    Args:
        runs: the collected runs.
        planned: jobs of the manifests.
        by: the names.
        folders: the collected folders, in which each variant has a folder of its own.
        order: algorithms in the order of the tables.
    """
    if not by:
        return JointRows(list(runs), list(planned), order=order, parts=[], rows={})

    facts = [
        *(_JobFacts(job, setting_of(job.args), _variant(job, folders)) for job in planned),
        *(_JobFacts(run.job, run.setting, _variant(run.job, folders)) for run in runs),
    ]
    _require_varying(by, facts)
    words_by_algorithm: dict[str, dict[_Words, None]] = {}
    for entry in facts:
        words_by_algorithm.setdefault(entry.job.key.algorithm, {})[entry.words(by)] = None

    defaults = _recorded_defaults(by, runs)
    names: dict[tuple[str, _Words], str] = {}
    rows = {}
    for algorithm in sort_rows(words_by_algorithm, order):
        row_values = _sort_values(algorithm, by, words_by_algorithm[algorithm], defaults)
        varying = [len({words[number] for words in row_values}) > 1 for number in range(len(by))]
        for words, values in row_values.items():
            texts = [value.text for value, varies in zip(values, varying, strict=True) if varies]
            name = f"{algorithm} ({', '.join(texts)})" if texts else algorithm
            names[algorithm, words] = name
            plain = [value.plain for value in values]
            rows[name] = JointRow(algorithm, dict(zip(by, plain, strict=True)))

    jobs = [
        replace(entry.job, row_name=names[entry.job.key.algorithm, entry.words(by)])
        for entry in facts
    ]
    return JointRows(
        runs=[replace(run, job=job) for run, job in zip(runs, jobs[len(planned) :])],
        planned=jobs[: len(planned)],
        order=(*names.values(), *order),
        parts=[_part(name) for name in by if name != VARIANT],
        rows=rows,
    )


def _variant(job: Job, folders: Iterable[Path | str]) -> str:
    """Return the path of the job's variant below one of ``folders``; empty without one."""
    if job.role.values:
        return job.role.cell  # the parent folder belongs to a member of a search

    parent = job.folder.parent
    for folder in map(Path, folders):
        if parent.is_relative_to(folder):
            variant = os.path.relpath(parent, folder)
            return "" if variant == "." else variant
    return job.variant


def _part(name: str) -> str:
    """Return the name of the part in settings."""
    return name if name in ARGUMENTS else HPARAM + name


def _require_varying(by: Sequence[str], facts: Sequence[_JobFacts]) -> None:
    """Raise CarftError for names of which no algorithm has several values."""
    parts = dict.fromkeys(part for entry in facts for part in entry.setting)
    candidates = [
        part.removeprefix(HPARAM) for part in parts if part in ARGUMENTS or part.startswith(HPARAM)
    ]
    varying = []
    for name in [*candidates, VARIANT]:
        words: dict[str, set[_Words]] = {}
        for entry in facts:
            words.setdefault(entry.job.key.algorithm, set()).add(entry.words([name]))
        if any(len(words_of_algorithm) > 1 for words_of_algorithm in words.values()):
            varying.append(name)

    expected = "one that varies; no setting varies in these folders, so omit --by"
    if varying:
        expected = f"one that varies: {', '.join(varying)}"
    raise_for(
        f"--by {name}: no algorithm has several values of it in separate tables, "
        f"expected {expected}"
        for name in by
        if name not in varying
    )


def _recorded_defaults(
    by: Sequence[str], runs: Iterable[RecordedRun]
) -> dict[tuple[str, str], Any]:
    """Map (algorithm, hparam) to the only value that runs recorded without setting it."""
    recorded: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        for name in by:
            if HPARAM + name not in run.setting and name in run.recorded:
                values = recorded.setdefault((run.algorithm, name), [])
                if run.recorded[name] not in values:
                    values.append(run.recorded[name])
    return {key: values[0] for key, values in recorded.items() if len(values) == 1}


def _sort_values(
    algorithm: str,
    by: Sequence[str],
    all_words: Iterable[_Words],
    defaults: Mapping[tuple[str, str], Any],
) -> dict[_Words, list[_Value]]:
    """Return the values of an algorithm's rows in the order of the rows."""
    values_of_words = {
        words: [
            _value(name, word, defaults.get((algorithm, name)))
            for name, word in zip(by, words, strict=True)
        ]
        for words in all_words
    }
    return dict(sorted(values_of_words.items(), key=lambda item: _rank(item[1])))


def _value(name: str, word: str, default: Any) -> _Value:
    """Describe an algorithm's value of a name, with the recorded ``default`` if it was not set."""
    if name == VARIANT:
        return _Value(word or "no variant", _plain(word), is_ranked_by_word=False)
    if word != DEFAULT:
        return _Value(f"{name} {_plain(word)}", _plain(word))
    if default is None:
        return _Value(f"{name} {DEFAULT}", DEFAULT)
    return _Value(f"{name} {default}, the {DEFAULT}", default)


def _plain(word: str) -> Any:
    """Parse a value of a setting, which is JSON for a hyperparameter."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _rank(values: Iterable[_Value]) -> list[tuple[int, float, str]]:
    """Return the sorting key of a row: numbers by size, then words; variants keep their order."""
    ranks = []
    for value in values:
        if isinstance(value.plain, (int, float)) and not isinstance(value.plain, bool):
            ranks.append((0, float(value.plain), ""))
        else:
            ranks.append((1, 0.0, str(value.plain) if value.is_ranked_by_word else ""))
    return ranks
