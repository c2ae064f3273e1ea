"""``carft diff``: in what two runs, two sweeps, or a run and a declared sweep differ.

Compared are settings, versions, data editions and prompts; neither accuracies nor where files are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from domainbed_carft.jobs.records import RecordWarning
from domainbed_carft.jobs.setting import DEFAULT, HPARAM
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.sweep import known_settings
from domainbed_carft.sweep.known_settings import KnownSettings, Side

_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """One part whose values differ, such as ``hparam lr`` or ``version of PyTorch``.

    ``rows``: the (data set, algorithm) pairs of which this holds; none if it holds of all.
    ``first`` and ``second``: the distinct values on each side, as recorded.
    """

    part: str
    rows: tuple[tuple[str, str], ...]
    first: tuple[Any, ...]
    second: tuple[Any, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "part": self.part,
            "rows": [list(row) for row in self.rows],
            "first": list(self.first),
            "second": list(self.second),
        }


@dataclass(frozen=True)
class Comparison:
    """What `diff` returns.

    ``first`` and ``second``: the two sides by name, with their kinds, "run", "sweep" or "declared
    sweep". ``nearest_job``: of a run and a sweep, the sweep's job that was compared, else "".
    ``only_in_first`` and ``only_in_second``: parts that just one side knows; they do not count as
    differences. ``warnings``: about unusable files.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    nearest_job: str
    differences: Sequence[Difference]
    only_in_first: Sequence[str]
    only_in_second: Sequence[str]
    warnings: Sequence[RecordWarning]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs that both sides know."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """What ``carft diff --json`` prints."""
        return {
            "first": {"name": self.first[0], "kind": self.first[1]},
            "second": {"name": self.second[0], "kind": self.second[1]},
            "nearest_job": self.nearest_job,
            "differences": [difference.as_dict() for difference in self.differences],
            "only_in_first": list(self.only_in_first),
            "only_in_second": list(self.only_in_second),
            "faults": [warning._asdict() for warning in self.warnings],
        }


def diff(first: AnyPath, second: AnyPath) -> Comparison:
    """In what two runs, two sweeps, or a run and a declared sweep differ, as ``carft diff``.

    Each is a job's folder, a sweep's output folder, a file that declares a sweep, or the name of an
    included sweep. Two runs are compared part by part; a run with the job of a sweep that differs
    least; and two sweeps by the values of each data set and algorithm that both have. What one side
    does not know, such as the versions of a sweep that has not run, is not compared.

    Raises CarftError if one of them is none of these, or a declaration has mistakes.
    """
    sides = [known_settings.read(str(as_path(name))) for name in (first, second)]
    kinds = [side.kind for side in sides]
    nearest_job = ""
    if kinds.count(known_settings.RUN) == 1:
        sides, nearest_job = _with_nearest_job(sides)

    jobs, other_jobs = (side.jobs for side in sides)
    if known_settings.RUN in kinds:
        differences = _differences(jobs, other_jobs, rows=())
    else:
        differences = _differences_of_rows(jobs, other_jobs)
    return Comparison(
        first=(sides[0].name, kinds[0]),
        second=(sides[1].name, kinds[1]),
        nearest_job=nearest_job,
        differences=differences,
        only_in_first=_parts_of_one_side(jobs, other_jobs),
        only_in_second=_parts_of_one_side(other_jobs, jobs),
        warnings=[warning for side in sides for warning in side.warnings],
    )


def _with_nearest_job(sides: Sequence[Side]) -> tuple[list[Side], str]:
    """The sides, of which the sweep keeps the one job that differs least from the run."""
    run = next(side for side in sides if side.kind == known_settings.RUN).jobs[0]
    reduced_sides = []
    label = ""
    for side in sides:
        if side.kind == known_settings.RUN:
            reduced_sides.append(side)
            continue

        nearest = min(side.jobs, key=lambda job: _distance(run, job))
        label = nearest.label
        reduced_sides.append(Side(side.name, side.kind, [nearest], side.warnings))
    return reduced_sides, label


def _distance(run: KnownSettings, job: KnownSettings) -> tuple[bool, int]:
    """Whether data set or algorithm differ, then the number of parts that do."""
    return run.row != job.row, len(_differences([run], [job], rows=()))


def _differences_of_rows(
    first: Sequence[KnownSettings], second: Sequence[KnownSettings]
) -> list[Difference]:
    """The differences of each data set and algorithm; equal ones are joined into one."""
    differences = []
    for part in ("dataset", "algorithm"):
        difference = _difference(part, first, second, rows=())
        if difference:
            differences.append(difference)

    first_by_row = _by_row(first)
    second_by_row = _by_row(second)
    common_rows = [row for row in first_by_row if row in second_by_row]
    joined: dict[tuple[str, str], Difference] = {}
    for row in common_rows:
        for difference in _differences(first_by_row[row], second_by_row[row], rows=(row,)):
            key = (difference.part, comparable_text([difference.first, difference.second]))
            earlier_rows = joined[key].rows if key in joined else ()
            joined[key] = replace(difference, rows=(*earlier_rows, row))

    for difference in joined.values():
        holds_of_all = len(difference.rows) == len(common_rows)
        differences.append(replace(difference, rows=()) if holds_of_all else difference)
    return differences


def _by_row(jobs: Iterable[KnownSettings]) -> dict[tuple[str, str], list[KnownSettings]]:
    """(data set, algorithm) -> its jobs."""
    jobs_by_row: dict[tuple[str, str], list[KnownSettings]] = {}
    for job in jobs:
        jobs_by_row.setdefault(job.row, []).append(job)
    return jobs_by_row


def _differences(
    first: Sequence[KnownSettings],
    second: Sequence[KnownSettings],
    rows: tuple[tuple[str, str], ...],
) -> list[Difference]:
    """The parts of which the two have different values, in the order of the settings."""
    parts = dict.fromkeys(part for job in (*first, *second) for part in job.settings)
    differences = (_difference(part, first, second, rows) for part in parts)
    return [difference for difference in differences if difference]


def _difference(
    part: str,
    first: Sequence[KnownSettings],
    second: Sequence[KnownSettings],
    rows: tuple[tuple[str, str], ...],
) -> Difference | None:
    """The part's difference; None if there is none, or if one side does not know the part."""
    values = _values(part, first, second)
    other_values = _values(part, second, first)
    is_known = bool(values and other_values)
    if not is_known or values.keys() == other_values.keys():
        return None
    return Difference(part, rows, tuple(values.values()), tuple(other_values.values()))


def _values(
    part: str, jobs: Sequence[KnownSettings], other_jobs: Sequence[KnownSettings]
) -> dict[str, Any]:
    """The distinct values that ``jobs`` have, by their text and in its order.

    A hyperparameter whose default is not known has the value DEFAULT, where ``other_jobs`` set it.
    """
    name = part.removeprefix(HPARAM)
    is_set = part.startswith(HPARAM) and any(
        name in job.hparams_set for job in (*jobs, *other_jobs)
    )

    values = {}
    for job in jobs:
        value = job.settings.get(part, _MISSING)
        if value is _MISSING and is_set and not job.has_all_hparams:
            value = DEFAULT
        if value is not _MISSING:
            values[comparable_text(value)] = value
    return dict(sorted(values.items(), key=lambda item: _sort_key(item[1])))


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by their size; then all others by their text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not is_number, value if is_number else 0, comparable_text(value)


def comparable_text(value: Any) -> str:
    """The value as JSON, in which 1.0 is 1: equal for equal values."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(comparable_text, value))}]"
    is_integral = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_integral else value, sort_keys=True)


def _parts_of_one_side(
    jobs: Sequence[KnownSettings], other_jobs: Sequence[KnownSettings]
) -> list[str]:
    """The parts that some of ``jobs`` know and none of ``other_jobs``."""
    parts = dict.fromkeys(part for job in jobs for part in job.settings)
    known_to_others = {part for job in other_jobs for part in job.settings}
    return [
        part
        for part in parts
        if part not in known_to_others and not _difference(part, jobs, other_jobs, rows=())
    ]
