"""Which runs may be averaged, each job once: those of the same setting.

Seeds, trial and target are no part of a setting, nor are the values of a search, which the
selection method chooses. All runs on a data set must share its environments, or a column would
have no meaning. Runs that leave several targets out together belong to the environments on which
they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Candidate, Choice, Job
from domainbed_carft.jobs.records import RecordWarning, Run
from domainbed_carft.jobs.setting import (
    DEFAULT,
    ENVIRONMENTS,
    HPARAM,
    KINDS,
    METHOD,
    SCHEDULE,
    UNKNOWN,
)
from domainbed_carft.jobs.setting import setting as setting_of
from domainbed_carft.results import order
from domainbed_carft.text import quantity

# The part of a setting that names the environments trained on, where several targets were left out
# together, and its value for runs with one target.
TRAINED_ON = "trained on"
ALL_OTHERS = "all others"
# The value of a hyperparameter that is searched.
SEARCHED = "searched"

# (data set, algorithm) -> the settings of its jobs
_SettingsByRow = dict[tuple[str, str], list[Mapping[str, str]]]
# The values of the parts that tell one group from another
_GroupKey = tuple[str, ...]


class Group(NamedTuple):
    """Runs that may be averaged, how they differ from the other groups, and remarks.

    ``planned``: jobs of the sweeps' manifests that belong to the group, run or not; ``runs`` may be
    empty. ``labels``: data set -> environments, as in the manifests. ``declared``: the algorithms
    in the order in which the manifests declare them. ``source``: the environments trained on, if
    all others are left out together, else ""; ``setting_without_source``: the rest of the title.
    """

    title: str
    runs: Sequence[Run]
    planned: Sequence[Job]
    notes: Sequence[str]
    labels: Mapping[str, Sequence[str]] = {}
    declared: Sequence[str] = ()
    source: str = ""
    setting_without_source: str = ""


def groups(
    runs: Sequence[Run],
    planned: Sequence[Job] = (),
    ignored: Sequence[str] = (),
    labels: Mapping[str, Sequence[str]] = {},
    row_parts: Sequence[str] = (),
) -> list[Group]:
    """Split ``runs`` where one algorithm on one data set was run under several settings.

    Algorithms or data sets that differ in their one setting stay together, since no cell mixes
    them; a note names the differences. ``ignored``: keys of KINDS that do not count. ``labels``:
    data set -> environments, as manifests have them. ``row_parts``: parts that the rows' names
    tell, which notes leave out.
    """
    ignored_prefixes = tuple(KINDS[name] for name in ignored)
    environments = order.environment_labels(runs, planned, labels)
    run_settings = [_cell_setting(run.job, run.setting, environments) for run in runs]
    planned_settings = [
        (job, _cell_setting(job, setting_of(job.args), environments)) for job in planned
    ]

    ran = _by_row((run.job, setting) for run, setting in zip(runs, run_settings))
    conflicts = _conflicts(ran, _by_row(planned_settings))
    parts = [part for part in conflicts if not part.startswith(ignored_prefixes)]
    all_settings = [*run_settings, *(setting for _, setting in planned_settings)]
    if TRAINED_ON not in parts and any(TRAINED_ON in setting for setting in all_settings):
        parts.append(TRAINED_ON)

    members: dict[_GroupKey, list[Run]] = {}
    for run, setting in zip(runs, run_settings):
        members.setdefault(_group_key(setting, parts), []).append(run)
    waiting = _planned_by_group(planned_settings, parts, members)

    result = []
    for key in sorted({*members, *waiting}):
        values = dict(zip(parts, key))
        source = values.get(TRAINED_ON, ALL_OTHERS)
        without_source = {part: value for part, value in values.items() if part != TRAINED_ON}
        title = _title(values)
        group_runs = members.get(key, [])
        differences = _differences(group_runs, environments, row_parts)
        group = Group(
            title=title,
            runs=group_runs,
            planned=waiting.get(key, []),
            notes=[f"{title}: {note}" if title else note for note in differences],
            source="" if source == ALL_OTHERS else source,
            setting_without_source=_title(without_source),
        )
        result.append(group)
    return result


def _title(values: Mapping[str, str]) -> str:
    """The values of a group's parts as words."""
    return ", ".join(f"{part} {value}" for part, value in values.items())


def _cell_setting(
    job: Job, setting: Mapping[str, str], environments: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """The setting of the cell that a job belongs to: without the values of a search.

    With the environments trained on, if the job leaves several targets out together.
    """
    role = job.role
    if not role.values and not role.leaves_out_together:
        return setting

    cell_setting = {**setting, **{HPARAM + name: SEARCHED for name in role.values}}
    if role.leaves_out_together:
        labels = environments[job.key.dataset]
        sources = [label for env, label in enumerate(labels) if env not in job.key.test_envs]
        cell_setting[TRAINED_ON] = ", ".join(sources)
    return cell_setting


def _planned_by_group(
    planned: Iterable[tuple[Job, Mapping[str, str]]],
    parts: Sequence[str],
    members: Mapping[_GroupKey, Sequence[Run]],
) -> dict[_GroupKey, list[Job]]:
    """The planned jobs that belong to each group; a job may belong to several, or to a new one."""
    ran = {key: {run.job.candidate for run in runs} for key, runs in members.items()}
    trials = {key: {_without_test_envs(job) for job in jobs} for key, jobs in ran.items()}

    planned_by_group: dict[_GroupKey, list[Job]] = {}
    for job, setting in planned:
        key = _group_key(setting, parts)
        candidates = [group for group in members if _may_belong(key, group)] or [key]
        has_run = any(job.candidate in ran.get(group, ()) for group in candidates)
        for group in candidates:
            # What ran under another setting is missed here only among runs of its trial.
            if not has_run or _without_test_envs(job.candidate) in trials[group]:
                planned_by_group.setdefault(group, []).append(job)
    return planned_by_group


def _without_test_envs(candidate: Candidate) -> tuple[str, str, int, Choice]:
    return candidate.dataset, candidate.algorithm, candidate.trial, candidate.choice


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[RecordWarning]]:
    """``runs`` of one group with each job once, and a warning for each run passed over.

    Of several, the finished one counts; of several with the same records, the first. Raises
    CarftError, naming all of them, for jobs whose runs have different records.
    """
    runs_by_job: dict[Candidate, list[Run]] = {}
    for run in runs:
        runs_by_job.setdefault(run.job.candidate, []).append(run)

    distinct_runs = []
    warnings = []
    problems = []
    for repeated in runs_by_job.values():
        finished = [run for run in repeated if run.done]
        first, *duplicates = finished or repeated
        distinct_runs.append(first)

        if any(_content(run) != _content(first) for run in duplicates):
            folders = ", ".join(dict.fromkeys(run.folder for run in repeated))
            problems.append(f"- {first.job}: {folders}")

        text = f"same job as in {first.folder}, which is used"
        for run in repeated:
            if run is not first:
                warnings.append(RecordWarning("passed over", run.folder, text))

    if problems:
        raise CarftError(
            f"{quantity(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "with different records; move one folder away:\n" + "\n".join(problems)
        )
    return distinct_runs, warnings


def _content(run: Run) -> tuple[bytes, bytes]:
    """The steps and accuracies as bytes, since nan is not equal to nan."""
    return run.steps.tobytes(), run.accuracies.tobytes()


def _part_value(setting: Mapping[str, str], part: str) -> str:
    """A part's value; an hparam that is not overridden is the default."""
    if part == TRAINED_ON:
        return setting.get(part, ALL_OTHERS)
    return setting.get(part, DEFAULT if part.startswith(HPARAM) else UNKNOWN)


def _group_key(setting: Mapping[str, str], parts: Sequence[str]) -> _GroupKey:
    return tuple(_part_value(setting, part) for part in parts)


def _may_belong(job: _GroupKey, group: _GroupKey) -> bool:
    """Whether a job may belong to a group: some parts are known from records only."""
    return all(UNKNOWN in values or values[0] == values[1] for values in zip(job, group))


def _by_row(jobs: Iterable[tuple[Job, Mapping[str, str]]]) -> _SettingsByRow:
    settings: _SettingsByRow = {}
    for job, setting in jobs:
        settings.setdefault((job.key.dataset, job.key.algorithm), []).append(setting)
    return settings


def _parts(settings_by_row: _SettingsByRow) -> list[str]:
    """The parts that any of the settings has, in the order in which they first occur."""
    return list(
        dict.fromkeys(
            part
            for settings in settings_by_row.values()
            for setting in settings
            for part in setting
        )
    )


def _conflicts(ran: _SettingsByRow, planned: _SettingsByRow) -> Iterator[str]:
    """The parts by which runs have to be split.

    Some algorithm has several values of such a part on one data set; of environments, the data set
    has. Of planned jobs those values count that are known without a record.
    """
    for part in _parts({**planned, **ran}):
        values_of: dict[tuple[str, ...], set[str]] = {}
        for dataset, algorithm in {**ran, **planned}:
            run_settings = ran.get((dataset, algorithm), ())
            values = {_part_value(setting, part) for setting in run_settings}
            if UNKNOWN not in values:
                job_settings = planned.get((dataset, algorithm), ())
                values |= {_part_value(setting, part) for setting in job_settings} - {UNKNOWN}

            owner = (dataset,) if part == ENVIRONMENTS else (dataset, algorithm)
            values_of.setdefault(owner, set()).update(values)
        if any(len(values) > 1 for values in values_of.values()):
            yield part


def _differences(
    runs: Sequence[Run], environments: Mapping[str, Sequence[str]], row_parts: Sequence[str]
) -> Iterator[str]:
    """How the settings of a group's algorithms and data sets differ, a sentence for each part.

    ``row_parts``: parts that the names of the rows tell.
    """
    settings_by_row = _by_row(
        (run.job, _cell_setting(run.job, run.setting, environments)) for run in runs
    )
    titles = benchmarks.dataset_titles(dataset for dataset, _ in settings_by_row)
    for part in _parts(settings_by_row):
        rows_by_value: dict[str, dict[str, None]] = {}
        for (dataset, algorithm), settings in settings_by_row.items():
            for setting in settings:
                if part.startswith(METHOD) and part not in setting:  # of another algorithm
                    continue
                rows = rows_by_value.setdefault(_part_value(setting, part), {})
                rows[f"{algorithm} on {titles[dataset]}"] = None

        if len(rows_by_value) > 1 and part not in (ENVIRONMENTS, SCHEDULE, TRAINED_ON, *row_parts):
            listing = "; ".join(
                f"{value}: {', '.join(rows)}" for value, rows in rows_by_value.items()
            )
            yield f"Not all runs have the same {part}: {listing}."
