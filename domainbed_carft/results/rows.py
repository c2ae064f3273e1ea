"""The rows that ``--by`` makes of an algorithm: their names, values and order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft.errors import raise_for
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import ARGUMENTS, DEFAULT, HPARAM, get_recorded_setting
from domainbed_carft.results.groups import Group
from domainbed_carft.results.labels import sort_rows
from domainbed_carft.results.recorded_defaults import is_unset

VARIANT = "variant"

# The beginning of a default that not all runs of a row have
_RECORDED_DEFAULT = f"{DEFAULT} "

# The values of the names of ``by``, as settings have them.
_Words = tuple[str, ...]


def label_rows(plain: Group, by: Sequence[str], folders: Sequence[Path]) -> Group:
    """Give each algorithm a row for each of its values of the names ``by``.

    Each name is a hyperparameter, an argument, or VARIANT. A row is called ``CARFT (lr 0.001)``,
    and an algorithm with a single value keeps its name. Raises CarftError for a name of which no
    algorithm has several values.

    Args:
        plain: runs and jobs whose rows are the algorithms.
        by: the names.
        folders: the collected folders, in which each variant has a folder of its own.
    """
    planned = [(job, get_recorded_setting(job.args)) for job in plain.planned]
    ran = [(run.job, run.setting) for run in plain.runs]
    _require_varying(by, [*planned, *ran], folders)

    run_words = [_get_words(job, setting, by, folders) for job, setting in ran]
    planned_words = _get_planned_words(planned, ran, run_words, by, folders)
    words_by_algorithm: dict[str, dict[_Words, None]] = {}
    for (job, _), words in zip([*planned, *ran], [*planned_words, *run_words], strict=True):
        words_by_algorithm.setdefault(job.key.algorithm, {})[words] = None

    defaults = _find_defaults(by, plain.runs)
    names: dict[tuple[str, _Words], str] = {}
    row_values = {}
    for algorithm in sort_rows(words_by_algorithm, plain.order):
        rows = _name_rows(algorithm, words_by_algorithm[algorithm], by, defaults)
        for words, name, values in rows:
            names[algorithm, words] = name
            row_values[name] = values

    return replace(
        plain,
        runs=[
            replace(run, job=replace(run.job, row_name=names[run.algorithm, words]))
            for run, words in zip(plain.runs, run_words, strict=True)
        ],
        planned=[
            replace(job, row_name=names[job.key.algorithm, words])
            for job, words in zip(plain.planned, planned_words, strict=True)
        ],
        order=(*names.values(), *plain.order),
        row_values=row_values,
    )


def _get_planned_words(
    planned: Sequence[tuple[Job, Mapping[str, str]]],
    ran: Sequence[tuple[Job, Mapping[str, str]]],
    run_words: Sequence[_Words],
    by: Sequence[str],
    folders: Sequence[Path],
) -> list[_Words]:
    """Return the planned jobs' values of each name, as known from the runs.

    A default that was not set is the one that the job has recorded. If the job has not run, it is
    the first one that runs of its algorithm recorded.
    """
    words_by_folder = {job.folder: words for (job, _), words in zip(ran, run_words, strict=True)}
    defaults: dict[tuple[str, str], str] = {}
    for (job, _), words in zip(ran, run_words, strict=True):
        for name, word in zip(by, words, strict=True):
            if name != VARIANT and is_unset(word):
                defaults.setdefault((job.key.algorithm, name), word)

    words_of_planned = []
    for job, setting in planned:
        words = tuple(
            defaults.get((job.key.algorithm, name), word) if word == DEFAULT else word
            for name, word in zip(by, _get_words(job, setting, by, folders), strict=True)
        )
        words_of_planned.append(words_by_folder.get(job.folder, words))
    return words_of_planned


def _name_rows(
    algorithm: str,
    words_of_rows: Iterable[_Words],
    by: Sequence[str],
    defaults: Mapping[tuple[str, str], Any],
) -> Iterator[tuple[_Words, str, dict[str, Any]]]:
    """Yield the words, name and values of each row of an algorithm, in the tables' order.

    ``defaults`` is the result of `_find_defaults`.
    """
    values_of_words = {
        words: [
            _plain_value(name, word, defaults.get((algorithm, name)))
            for name, word in zip(by, words, strict=True)
        ]
        for words in words_of_rows
    }
    varying = [len({words[number] for words in values_of_words}) > 1 for number in range(len(by))]
    for words, values in sorted(values_of_words.items(), key=lambda item: _rank(by, item[1])):
        texts = [
            _describe_value(name, word, value)
            for name, word, value, varies in zip(by, words, values, varying, strict=True)
            if varies
        ]
        name = f"{algorithm} ({', '.join(texts)})" if texts else algorithm
        yield words, name, dict(zip(by, values, strict=True))


def _get_words(
    job: Job, setting: Mapping[str, str], by: Sequence[str], folders: Sequence[Path]
) -> _Words:
    """Return the job's value of each name."""
    words = []
    for name in by:
        if name == VARIANT:
            words.append(_variant(job, folders))
        elif name in job.role.values:
            words.append("")  # chosen by the selection method
        else:
            words.append(setting.get(get_part(name), DEFAULT))
    return tuple(words)


def _variant(job: Job, folders: Sequence[Path]) -> str:
    """Return the path of the job's variant below one of ``folders``; empty without one."""
    if job.role.values:
        return job.role.cell  # the parent folder belongs to a member of a search

    parent = job.folder.parent
    for folder in folders:
        if parent.is_relative_to(folder):
            variant = os.path.relpath(parent, folder)
            return "" if variant == "." else variant
    return job.variant


def get_part(name: str) -> str:
    """Return the name of the part in settings."""
    return name if name in ARGUMENTS else HPARAM + name


def _require_varying(
    by: Sequence[str], jobs: Sequence[tuple[Job, Mapping[str, str]]], folders: Sequence[Path]
) -> None:
    """Raise CarftError for names of which no algorithm has several values."""
    parts = dict.fromkeys(part for _, setting in jobs for part in setting)
    candidates = [
        part.removeprefix(HPARAM) for part in parts if part in ARGUMENTS or part.startswith(HPARAM)
    ]
    varying = []
    for name in [*candidates, VARIANT]:
        words: dict[str, set[_Words]] = {}
        for job, setting in jobs:
            word = _get_words(job, setting, [name], folders)
            words.setdefault(job.key.algorithm, set()).add(word)
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


def _find_defaults(by: Sequence[str], runs: Iterable[RecordedRun]) -> dict[tuple[str, str], Any]:
    """Map (algorithm, hparam) to the only value that runs recorded without setting it."""
    recorded: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        for name in by:
            if HPARAM + name not in run.setting and name in run.recorded:
                values = recorded.setdefault((run.algorithm, name), [])
                if run.recorded[name] not in values:
                    values.append(run.recorded[name])
    return {key: values[0] for key, values in recorded.items() if len(values) == 1}


def _plain_value(name: str, word: str, default: Any) -> Any:
    """Return an algorithm's value of a name, ``default`` if it is known and was not set."""
    if word == DEFAULT and name != VARIANT:
        return DEFAULT if default is None else default

    try:
        return json.loads(word.removeprefix(_RECORDED_DEFAULT))  # of a hyperparameter
    except ValueError:
        return word


def _describe_value(name: str, word: str, value: Any) -> str:
    """Describe a value in the name of a row."""
    if name == VARIANT:
        return word or "no variant"
    if word.startswith(_RECORDED_DEFAULT):
        return f"{name} {value}, a {DEFAULT}"
    if word != DEFAULT or value == DEFAULT:
        return f"{name} {value}"
    return f"{name} {value}, the {DEFAULT}"


def _rank(by: Sequence[str], values: Sequence[Any]) -> list[tuple[int, float, str]]:
    """Return the sorting key of a row: numbers by size, then words; variants keep their order."""
    ranks = []
    for name, value in zip(by, values, strict=True):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            ranks.append((0, float(value), ""))
        else:
            ranks.append((1, 0.0, "" if name == VARIANT else str(value)))
    return ranks
