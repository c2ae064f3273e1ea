"""The runs that ``carft collect``, ``top``, ``report`` and ``evaluate`` read, in groups.

A group holds runs that can be averaged, each job once: runs with the same setting. Seeds, trial and
target are not part of a setting, nor are searched values, which the selection method chooses. All
runs on a dataset must share its environments, otherwise a column would have no meaning. Runs that
hold out several targets together are grouped by the environments on which they were trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from domainbed_carft import suggestions
from domainbed_carft.arguments import TEXTS, check
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.algorithms import UNTRAINED, Method, find_own_methods, get_owners
from domainbed_carft.jobs.job import Candidate, Choice, Job
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import RecordedRun, RecordWarning
from domainbed_carft.jobs.setting import (
    DEFAULT,
    ENVIRONMENTS,
    HPARAM,
    KINDS,
    METHOD,
    SCHEDULE,
    UNKNOWN,
)
from domainbed_carft.jobs.setting import get_setting as setting_of
from domainbed_carft.paths import AnyPath, as_paths
from domainbed_carft.results import job_roles, recorded_defaults, selection
from domainbed_carft.results import rows as row_names
from domainbed_carft.results.recorded_defaults import is_unset
from domainbed_carft.results.rows import JointRow, JointRows
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.wording import quantity

# The part of a setting that names the training environments if several targets are held out
# together, and its value for runs with one target.
TRAINED_ON = "trained on"
ALL_OTHERS = "all others"
# The value of a hyperparameter that is searched.
SEARCHED = "searched"

# Hyperparameters of prompts and images, which algorithms without training have as well
_READ_WITHOUT_TRAINING = ("clip_backbone", "class_names", "contexts", "protocol")

# A job or run and the setting of its cell
_JobSetting = tuple[Job, Mapping[str, str]]
_RunSetting = tuple[RecordedRun, Mapping[str, str]]
# (dataset, row) -> the settings of its jobs
_SettingsByRow = dict[tuple[str, str], list[Mapping[str, str]]]
# The values of the parts by which groups differ
_GroupKey = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs with equal settings, whose accuracies can be averaged.

    Attributes:
        title: the setting; empty for a single group.
        runs: runs of distinct jobs; can be empty.
        planned: jobs of the sweeps' manifests that belong to the group, run or not.
        notes: remarks on settings that differ between rows and datasets.
        labels: dataset -> names of its environments, from the manifests.
        order: names of rows and algorithms in the order of the tables, the same for all groups.
        source: the training environments if all others are held out together; otherwise empty.
    """

    title: str
    runs: Sequence[RecordedRun]
    planned: Sequence[Job]
    notes: Sequence[str]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    order: Sequence[str] = ()
    source: str = ""
    _selections: dict[str, list[SelectedRun]] = field(default_factory=dict, init=False, repr=False)

    def select(self, method: str) -> list[SelectedRun]:
        """Select runs by a method; the result is cached."""
        if method not in self._selections:
            self._selections[method] = selection.select(self.runs, method)
        return self._selections[method]

    def select_in_table_order(self, method: str) -> list[SelectedRun]:
        """Select runs by a method; sort them by dataset, row, target and trial as in the tables."""
        selected = self.select(method)
        datasets = list(self.environments)
        names = self.order_rows(entry.row for entry in selected)

        def place(entry: SelectedRun) -> tuple[int, int, int, int]:
            row = names.index(entry.row)
            return datasets.index(entry.dataset), row, entry.target, entry.trial

        return sorted(selected, key=place)

    @cached_property
    def environments(self) -> dict[str, tuple[str, ...]]:
        """Dataset -> names of its environments, in the order of the tables."""
        return row_names.environment_labels(self.runs, self.planned, self.labels)

    def order_rows(self, rows: Iterable[str]) -> list[str]:
        """Return distinct names of rows in the order of the tables."""
        return row_names.sort_rows(rows, self.order)


@dataclass(frozen=True, eq=False)
class Collection:
    """Groups of runs, with the settings of the manifests and the user.

    Attributes:
        groups: runs that can be averaged.
        methods: names of the selection methods.
        warnings: problems in the files that were read.
        compare_with: names of published methods.
        first_stages: runs of the first stage of searches; the groups have the second stage.
        joint_rows: row made by ``by`` -> its algorithm and values.
        folders: the folders that were read.
        own_methods: the user's methods, as described by their records.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    warnings: Sequence[RecordWarning]
    compare_with: Sequence[str]
    first_stages: Sequence[RecordedRun] = ()
    joint_rows: Mapping[str, JointRow] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    own_methods: Mapping[str, Method] = field(default_factory=dict)

    @property
    def runs(self) -> list[RecordedRun]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    def select(self, method: str) -> list[SelectedRun]:
        """Select runs of each group in turn by a method."""
        return [selected for group in self.groups for selected in group.select(method)]

    @property
    def rows(self) -> list[str]:
        """The rows that have runs, in the order of the tables."""
        return self.groups[0].order_rows(run.row for run in self.runs)


# The sweeps that `collect`, `top`, `write_report` and `evaluate` take: folders, or their collection
Sweeps: TypeAlias = "AnyPath | Iterable[AnyPath] | Collection"


def as_collection(
    sweeps: Sweeps,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Collection:
    """Return the collection with these selection methods, or read folders by `gather`.

    Raises CarftError if `gather` raises it, if a requested method has no job, or if a collection
    would have to be grouped again for ``ignored`` or ``by``.
    """
    if not isinstance(sweeps, Collection):
        return gather(sweeps, methods, ignored, by)

    check(TEXTS, ignored=ignored, by=by)
    check(TEXTS, is_optional=True, methods=methods)
    for name, value in (("ignored", ignored), ("by", by)):
        if value:
            raise CarftError(
                f"{name}={list(value)!r} cannot change a collection, whose runs are in groups "
                f"already; pass {name} to gather, or the folders instead of the collection"
            )
    if not methods:
        return sweeps
    jobs = [job for group in sweeps.groups for job in group.planned]
    jobs += [run.job for run in sweeps.runs]
    return replace(sweeps, methods=_choose_methods(methods, (), jobs))


def gather(
    folders: AnyPath | Iterable[AnyPath],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Collection:
    """Read output folders of sweeps: runs with the same setting, each job once.

    Args:
        folders: one or several output folders.
        methods: names of selection methods. By default those of the sweeps' manifests, otherwise
            those that have jobs.
        ignored: parts of a setting (keys of KINDS) that can differ between averaged runs.
        by: hyperparameters, arguments or "variant" whose values become rows instead of tables.

    Returns:
        The runs in groups.

    Raises:
        CarftError: if there is no record, if a requested method has no job, if a job was run twice
            with different records, if a name of ``by`` does not vary, or if no job counts for
            tables according to the manifests.
    """
    check(TEXTS, ignored=ignored, by=by)
    check(TEXTS, is_optional=True, methods=methods)
    for name in ignored:
        if name not in KINDS:
            raise CarftError(suggestions.unknown("part of a setting", name, KINDS))

    folders = as_paths(folders)
    runs, warnings = records.read(folders)
    if not runs:
        raise CarftError(
            f"no records in {', '.join(map(str, folders))} or up to {records.DEPTH} levels below; "
            "expected folders of jobs with results.jsonl",
            details=records.describe_warnings(warnings),
        )
    sweeps = [_read_manifest(folder, warnings) for folder in folders]
    last_stage = job_roles.select_last_stage(runs, sweeps)
    divided_runs = recorded_defaults.add_recorded_defaults(last_stage.runs)
    own_methods = find_own_methods({run.algorithm: run.recorded for run in runs})
    order = row_names.order_algorithms(
        (name for sweep in sweeps for name in sweep.algorithms), own_methods
    )
    rows = JointRows(divided_runs, last_stage.planned, order)
    if by:
        rows = row_names.label_rows(rows, by=by, folders=folders)
    labels = {name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()}
    groups = _group_runs(rows, labels, ignored, warnings, own_methods)
    if not groups:
        raise CarftError(
            f"no job in {', '.join(map(str, folders))} counts for tables: according to sweep.json "
            "all belong to the first stage of a finished search or to an earlier choice; launch "
            "the sweep again to rewrite sweep.json, or move the file away to show all jobs"
        )
    groups[0] = replace(groups[0], notes=[*last_stage.notes, *groups[0].notes])

    all_jobs = [*(run.job for run in rows.runs), *rows.planned]
    return Collection(
        groups=groups,
        methods=_choose_methods(methods, sweeps, all_jobs),
        warnings=warnings,
        compare_with=list(dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with)),
        first_stages=last_stage.first_stages,
        joint_rows=rows.rows,
        folders=folders,
        own_methods=own_methods,
    )


def _read_manifest(folder: Path, warnings: list[RecordWarning]) -> Sweep:
    """Read a folder's manifest; return an empty one, with a warning, if it is broken."""
    try:
        return manifest.read(folder) or Sweep(())
    except CarftError as error:
        message = f"{error}. Until then the expected jobs are inferred from the records"
        warnings.append(RecordWarning("unreadable", str(folder), message))
        return Sweep(())


def _choose_methods(
    requested: Sequence[str] | None, sweeps: Sequence[Sweep], jobs: Iterable[Job]
) -> Sequence[str]:
    """Return the ``requested`` methods, otherwise those of the manifests that have ``jobs``.

    Raises CarftError if a requested method has no jobs.
    """
    held_out_counts = {selection.count_held_out(job) for job in jobs}
    holds_out = {number > 0 for number in held_out_counts}
    methods_with_jobs = [
        name for name, method in selection.METHODS.items() if method.holds_out in holds_out
    ]
    for name in requested or ():
        if name not in methods_with_jobs:
            raise CarftError(
                f"--select {name}: no jobs for this method; expected one of "
                f"{', '.join(methods_with_jobs)}"
            )
    if requested:
        return requested

    declared = {name for sweep in sweeps for name in sweep.selection} | {selection.IN_DOMAIN}
    if not all(sweep.selection for sweep in sweeps):
        declared |= {name for name, method in selection.METHODS.items() if method.is_default}
    if 2 in held_out_counts:  # such jobs are used only by leave-one-domain-out
        declared.add(selection.LEAVE_ONE_OUT)
    return [name for name in methods_with_jobs if name in declared]


def _group_runs(
    rows: JointRows,
    labels: Mapping[str, Sequence[str]],
    ignored: Sequence[str],
    warnings: list[RecordWarning],
    own_methods: Mapping[str, Method],
) -> list[Group]:
    """Group the runs, so that no row on a dataset mixes runs with several settings.

    Rows or datasets that differ but have one setting each stay together, since no cell mixes them;
    a note lists the differences. A warning is added for each repeated run of a job.
    """
    environments = row_names.environment_labels(rows.runs, rows.planned, labels)
    runs = [(run, _cell_setting(run.job, run.setting, environments)) for run in rows.runs]
    planned = [
        (job, _cell_setting(job, setting_of(job.args), environments)) for job in rows.planned
    ]
    parts = _choose_parts([(run.job, setting) for run, setting in runs], planned, ignored)

    members: defaultdict[_GroupKey, list[_RunSetting]] = defaultdict(list)
    for run, setting in runs:
        members[_group_key(setting, parts)].append((run, setting))
    planned_by_group = _assign_planned(planned, parts, members)

    groups = []
    for key in sorted({*members, *planned_by_group}):
        values = dict(zip(parts, key, strict=True))
        title = ", ".join(f"{part} {value}" for part, value in values.items())
        source = values.get(TRAINED_ON, ALL_OTHERS)
        group = Group(
            title=title,
            runs=_drop_repeated([run for run, _ in members[key]], warnings),
            planned=planned_by_group.get(key, []),
            notes=list(_describe_differences(title, members[key], rows.parts, own_methods)),
            labels=labels,
            order=rows.order,
            source="" if source == ALL_OTHERS else source,
        )
        groups.append(group)
    return groups


def _choose_parts(
    ran: Sequence[_JobSetting],
    planned: Sequence[_JobSetting],
    ignored: Sequence[str],
) -> list[str]:
    """Return the parts of a setting by which the jobs are split into groups."""
    ignored_prefixes = tuple(KINDS[name] for name in ignored)
    conflicts = _find_conflicts(_group_by_row(ran), _group_by_row(planned))
    parts = [part for part in conflicts if not part.startswith(ignored_prefixes)]
    if TRAINED_ON not in parts and any(TRAINED_ON in setting for _, setting in (*ran, *planned)):
        parts.append(TRAINED_ON)
    return parts


def _cell_setting(
    job: Job, setting: Mapping[str, str], environments: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """Return the setting of a job's cell, without searched values.

    It contains the training environments if several targets are held out together.
    """
    role = job.role
    if not role.values and not role.holds_out_together:
        return setting

    cell_setting = {**setting, **{HPARAM + name: SEARCHED for name in role.values}}
    if role.holds_out_together:
        labels = environments[job.key.dataset]
        sources = [label for env, label in enumerate(labels) if env not in job.key.test_envs]
        cell_setting[TRAINED_ON] = ", ".join(sources)
    return cell_setting


def _assign_planned(
    planned: Iterable[_JobSetting],
    parts: Sequence[str],
    members: Mapping[_GroupKey, Sequence[_RunSetting]],
) -> dict[_GroupKey, list[Job]]:
    """Assign the planned jobs to groups; a job can belong to several groups, or to a new one.

    Some parts of a setting are known only from records. If trial 0 ran with one version of PyTorch
    and trial 1 with another, there are two groups. A planned job of trial 0 that ran belongs to the
    first group. One that did not run could belong to either, so both report it as missing. One with
    a hyperparameter that no run has makes a group without runs.
    """
    ran = {key: {run.job.candidate for run, _ in runs} for key, runs in members.items()}
    trials = {key: {_trial_key(job) for job in jobs} for key, jobs in ran.items()}

    planned_by_group: dict[_GroupKey, list[Job]] = {}
    for job, setting in planned:
        key = _group_key(setting, parts)
        candidates = [group for group in ran if all(map(_may_have_value, parts, key, group))]
        has_run = any(job.candidate in ran[group] for group in candidates)
        for group in candidates or [key]:
            # A job that ran under another setting is missing only next to runs of its trial.
            if not has_run or _trial_key(job.candidate) in trials[group]:
                planned_by_group.setdefault(group, []).append(job)
    return planned_by_group


def _may_have_value(part: str, planned_value: str, value: str) -> bool:
    """Return True if a planned job can have the ``value`` of a part once it has run."""
    if part.startswith(HPARAM) and planned_value == DEFAULT:
        return is_unset(value)
    is_unknown = UNKNOWN in (planned_value, value) and not part.startswith(HPARAM)
    return is_unknown or planned_value == value


def _trial_key(candidate: Candidate) -> tuple[str, str, int, Choice]:
    return candidate.dataset, candidate.row, candidate.trial, candidate.choice


def _drop_repeated(runs: Sequence[RecordedRun], warnings: list[RecordWarning]) -> list[RecordedRun]:
    """Return one run for each job of a group, and add a warning for each other run.

    A finished run is preferred, then the first of several with equal records. Raises CarftError
    with the folders of all jobs whose runs have different records.
    """
    runs_by_job: dict[Candidate, list[RecordedRun]] = {}
    for run in runs:
        runs_by_job.setdefault(run.job.candidate, []).append(run)

    distinct_runs = []
    problems = []
    for repeated in runs_by_job.values():
        finished = [run for run in repeated if run.done]
        first, *duplicates = finished or repeated
        distinct_runs.append(first)

        if any(_content(run) != _content(first) for run in duplicates):
            folders = ", ".join(dict.fromkeys(run.folder for run in repeated))
            problems.append(f"- {first.job}: {folders}")

        message = f"same job as in {first.folder}, which is used"
        for run in repeated:
            if run is not first:
                warnings.append(RecordWarning("passed over", run.folder, message))

    if problems:
        raise CarftError(
            f"{quantity(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "with different records; for each job keep only one of these folders:",
            details=problems,
        )
    return distinct_runs


def _content(run: RecordedRun) -> tuple[bytes, bytes]:
    """Return steps and accuracies as bytes, since nan is not equal to nan."""
    return run.steps.tobytes(), run.accuracies.tobytes()


def _part_value(setting: Mapping[str, str], part: str) -> str:
    """Return the value of a part; an hparam that is not overridden has its default."""
    if part == TRAINED_ON:
        return setting.get(part, ALL_OTHERS)
    return setting.get(part, DEFAULT if part.startswith(HPARAM) else UNKNOWN)


def _group_key(setting: Mapping[str, str], parts: Sequence[str]) -> _GroupKey:
    return tuple(_part_value(setting, part) for part in parts)


def _group_by_row(jobs: Iterable[_JobSetting]) -> _SettingsByRow:
    settings: _SettingsByRow = {}
    for job, setting in jobs:
        settings.setdefault((job.key.dataset, job.row), []).append(setting)
    return settings


def _list_parts(settings_by_row: _SettingsByRow) -> list[str]:
    """Return the parts of all settings in the order in which they first occur."""
    return list(
        dict.fromkeys(
            part
            for settings in settings_by_row.values()
            for setting in settings
            for part in setting
        )
    )


def _find_conflicts(ran: _SettingsByRow, planned: _SettingsByRow) -> Iterator[str]:
    """Yield the parts of which a row on one dataset has several values.

    For the environments it is enough that the dataset has several. Values of planned jobs count if
    they are known without a record.
    """
    for part in _list_parts({**planned, **ran}):
        values_by_owner: dict[tuple[str, ...], set[str]] = {}
        for dataset, row in {**ran, **planned}:
            run_settings = ran.get((dataset, row), ())
            values = {_part_value(setting, part) for setting in run_settings}
            job_settings = planned.get((dataset, row), ())
            planned_values = {_part_value(setting, part) for setting in job_settings}
            values |= {
                planned_value
                for planned_value in planned_values - {UNKNOWN}
                if not any(_may_have_value(part, planned_value, value) for value in values)
            }

            owner = (dataset,) if part == ENVIRONMENTS else (dataset, row)
            values_by_owner.setdefault(owner, set()).update(values)
        if any(len(values) > 1 for values in values_by_owner.values()):
            yield part


def _affects_only_training(part: str) -> bool:
    """Return True for the steps, and for hyperparameters that prompts and images do not need."""
    if part.startswith(HPARAM):
        return part.removeprefix(HPARAM) not in _READ_WITHOUT_TRAINING
    return part in ("steps", "checkpoint_freq")


def _describe_differences(
    title: str,
    members: Sequence[_RunSetting],
    row_parts: Sequence[str],
    own_methods: Mapping[str, Method],
) -> Iterator[str]:
    """Describe the settings that differ between a group's rows and datasets, a sentence each.

    ``title`` is that of the group. ``row_parts`` are parts that the names of the rows already show.
    """
    titles = benchmarks.dataset_titles(run.dataset for run, _ in members)
    parts = _list_parts(_group_by_row((run.job, setting) for run, setting in members))
    for part in parts:
        owners = (
            get_owners(part.removeprefix(HPARAM), own_methods) if part.startswith(HPARAM) else ()
        )
        rows_by_value: dict[str, dict[str, None]] = {}
        for run, setting in members:
            if run.algorithm in UNTRAINED and _affects_only_training(part):
                continue
            is_applicable = not part.startswith(METHOD) and (not owners or run.algorithm in owners)
            if part not in setting and not is_applicable:
                continue
            value = _part_value(setting, part)
            if part.startswith(HPARAM) and value == DEFAULT:
                value = DEFAULT if part.removeprefix(HPARAM) in run.recorded else UNKNOWN
            rows = rows_by_value.setdefault(value, {})
            rows[f"{run.row} on {titles[run.dataset]}" if len(titles) > 1 else run.row] = None

        if len(rows_by_value) > 1 and part not in (ENVIRONMENTS, SCHEDULE, TRAINED_ON, *row_parts):
            listing = "; ".join(
                f"{value} for {', '.join(rows)}" for value, rows in rows_by_value.items()
            )
            note = f"Runs differ in {part}: {listing}."
            yield f"{title}: {note}" if title else note
