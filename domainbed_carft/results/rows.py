"""The rows of tables: names, also of those that ``--by`` makes, and the order of all labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import Run
from domainbed_carft.jobs.setting import ARGUMENTS, DEFAULT, HPARAM
from domainbed_carft.jobs.setting import setting as setting_of

VARIANT = "variant"

# DomainBed's order, ours after its; means over data sets depend on it in the last bit.
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

# The values of the names of ``by``, as words.
_Values = tuple[str, ...]


def environment_labels(
    runs: Iterable[Run], planned: Iterable[Job] = (), listed: Mapping[str, Sequence[str]] = {}
) -> dict[str, tuple[str, ...]]:
    """Data set -> labels of its environments, in the order of the tables.

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
    order = dict.fromkeys((*declared, *own_methods.known(), *sorted(distinct)))
    return [name for name in order if name in distinct]


class _JobFacts(NamedTuple):
    """A job, run or planned, with its setting and variant."""

    job: Job
    setting: Mapping[str, str]
    variant: str

    def values(self, by: Sequence[str]) -> _Values:
        """The job's value of each name, as words."""
        values = []
        for name in by:
            if name == VARIANT:
                values.append(self.variant)
            elif name in self.job.role.values:
                values.append("")  # the selection method chooses it
            else:
                values.append(self.setting.get(_part(name), DEFAULT))
        return tuple(values)


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

    runs: list[Run]
    planned: list[Job]
    names: list[str]
    parts: list[str]
    rows: Mapping[str, JointRow]


def label_rows(
    runs: Sequence[Run],
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
    values_by_algorithm: dict[str, dict[_Values, None]] = {}
    for of_job in facts:
        values = values_by_algorithm.setdefault(of_job.job.key.algorithm, {})
        values[of_job.values(by)] = None
    _require_varying(by, values_by_algorithm, facts)

    defaults = _recorded_defaults(by, runs)
    names: dict[tuple[str, _Values], str] = {}
    for algorithm in ordered_rows(values_by_algorithm, declared):
        all_values = _sorted_values(by, algorithm, values_by_algorithm[algorithm], defaults)
        for values_of_row in all_values:
            name = _name(algorithm, by, values_of_row, all_values, defaults)
            names[algorithm, values_of_row] = name

    jobs = [
        replace(of_job.job, row_name=names[of_job.job.key.algorithm, of_job.values(by)])
        for of_job in facts
    ]
    return JointRows(
        runs=[replace(run, job=job) for run, job in zip(runs, jobs[len(planned) :])],
        planned=jobs[: len(planned)],
        names=list(names.values()),
        parts=[_part(name) for name in by if name != VARIANT],
        rows={
            name: _joint_row(algorithm, by, values_of_row, defaults)
            for (algorithm, values_of_row), name in names.items()
        },
    )


def _joint_row(
    algorithm: str,
    by: Sequence[str],
    values: _Values,
    defaults: Mapping[tuple[str, str], Any],
) -> JointRow:
    plain_values = {}
    for name, value in zip(by, values, strict=True):
        default = defaults.get((algorithm, name), value)
        plain_values[name] = default if value == DEFAULT else _plain(value)
    return JointRow(algorithm, plain_values)


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


def _require_varying(
    by: Sequence[str],
    values_by_algorithm: Mapping[str, Mapping[_Values, None]],
    facts: Sequence[_JobFacts],
) -> None:
    """Raise CarftError for names of which no algorithm has several values."""
    constant = [
        name
        for number, name in enumerate(by)
        if all(
            len({values[number] for values in values_of_algorithm}) < 2
            for values_of_algorithm in values_by_algorithm.values()
        )
    ]
    if not constant:
        return

    varying = _varying_names(facts)
    expected = f"one that varies: {', '.join(varying)}" if varying else "one that varies"
    remedy = "" if varying else "no setting varies in these folders, so leave --by out"
    problems = [
        Problem(
            f"--by {name}: no algorithm has several values of it between its tables, "
            f"expected {expected}",
            remedy=remedy,
        )
        for name in constant
    ]
    raise CarftError(*problems)


def _varying_names(facts: Sequence[_JobFacts]) -> list[str]:
    """The names of which some algorithm has several values, VARIANT last."""
    parts = dict.fromkeys(part for of_job in facts for part in of_job.setting)
    candidates = [
        part.removeprefix(HPARAM) for part in parts if part in ARGUMENTS or part.startswith(HPARAM)
    ]
    varying = []
    for name in [*candidates, VARIANT]:
        values: dict[str, set[_Values]] = {}
        for of_job in facts:
            values.setdefault(of_job.job.key.algorithm, set()).add(of_job.values([name]))
        if any(len(values_of_algorithm) > 1 for values_of_algorithm in values.values()):
            varying.append(name)
    return varying


def _recorded_defaults(by: Sequence[str], runs: Iterable[Run]) -> dict[tuple[str, str], Any]:
    """(Algorithm, hparam) -> its recorded value where it was not set; of several values, none."""
    recorded: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        for name in by:
            if HPARAM + name not in run.setting and name in run.recorded:
                values = recorded.setdefault((run.algorithm, name), [])
                if run.recorded[name] not in values:
                    values.append(run.recorded[name])
    return {key: values[0] for key, values in recorded.items() if len(values) == 1}


def _name(
    algorithm: str,
    by: Sequence[str],
    values: _Values,
    all_values: Iterable[_Values],
    defaults: Mapping[tuple[str, str], Any],
) -> str:
    """The name of a row: the algorithm, and its values where it has several."""
    parts = [
        _value_text(algorithm, name, values[number], defaults)
        for number, name in enumerate(by)
        if len({other[number] for other in all_values}) > 1
    ]
    return f"{algorithm} ({', '.join(parts)})" if parts else algorithm


def _value_text(
    algorithm: str, name: str, value: str, defaults: Mapping[tuple[str, str], Any]
) -> str:
    """``lr 0.001``, ``lr 5e-06, the default``, or the variant's name."""
    if name == VARIANT:
        return value or "no variant"
    if value != DEFAULT:
        return f"{name} {_plain(value)}"

    default = defaults.get((algorithm, name))
    return f"{name} {DEFAULT}" if default is None else f"{name} {default}, the {DEFAULT}"


def _plain(value: str) -> Any:
    """A value of a setting, which for a hyperparameter is JSON."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _sorted_values(
    by: Sequence[str],
    algorithm: str,
    all_values: Iterable[_Values],
    defaults: Mapping[tuple[str, str], Any],
) -> list[_Values]:
    """The values in the order of rows: numbers by size, then words; variants as they come."""

    def rank(values: _Values) -> list[tuple[int, float, str]]:
        ranks = []
        for name, value in zip(by, values, strict=True):
            plain = _plain(value)
            if value == DEFAULT:
                plain = defaults.get((algorithm, name), value)
            is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
            number = float(plain) if is_number else 0.0
            words = "" if is_number or name == VARIANT else str(plain)
            ranks.append((0 if is_number else 1, number, words))
        return ranks

    return sorted(all_values, key=rank)
