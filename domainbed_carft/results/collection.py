"""The runs that ``carft collect``, ``top``, ``report`` and ``evaluate`` read, in groups.

A group holds runs that can be averaged, each job once: runs with the same setting. Seeds, trial and
target are not part of a setting, nor are searched values, which the selection method chooses. All
runs on a dataset must share its environments, otherwise a column would have no meaning. Runs that
hold out several targets together are grouped by the environments on which they were trained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from domainbed_carft import suggestions
from domainbed_carft.arguments import TEXTS, require_kind
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
    get_recorded_setting,
)
from domainbed_carft.paths import AnyPath, as_paths
from domainbed_carft.results import job_roles, recorded_defaults, selection
from domainbed_carft.results.groups import Group
from domainbed_carft.results.labels import order_algorithms
from domainbed_carft.results.recorded_defaults import is_unset
from domainbed_carft.results.rows import get_part, label_rows
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
# The values of the parts by which groups differ
_GroupKey = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Collection:
    """Groups of runs, with the settings of the manifests and the user.

    Attributes:
        groups: runs that can be averaged.
        methods: names of the selection methods.
        warnings: problems in the files that were read.
        compare_with: names of published methods.
        first_stages: runs of the first stage of searches; the groups have the second stage.
        folders: the folders that were read.
        own_methods: the user's methods, as described by their records.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    warnings: Sequence[RecordWarning]
    compare_with: Sequence[str]
    first_stages: Sequence[RecordedRun] = ()
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

    require_kind(TEXTS, ignored=ignored, by=by)
    require_kind(TEXTS, is_optional=True, methods=methods)
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
    require_kind(TEXTS, ignored=ignored, by=by)
    require_kind(TEXTS, is_optional=True, methods=methods)
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
    shown, first_stages = job_roles.select_last_stage(runs, sweeps)
    own_methods = find_own_methods({run.algorithm: run.recorded for run in runs})
    declared_algorithms = [name for sweep in sweeps for name in sweep.algorithms]
    shown = replace(
        shown,
        runs=recorded_defaults.add_recorded_defaults(shown.runs),
        labels={name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()},
        order=order_algorithms(declared_algorithms, own_methods),
    )
    if by:
        shown = label_rows(shown, by=by, folders=folders)
    groups = _divide(shown, ignored, warnings, own_methods)
    if not groups:
        raise CarftError(
            f"no job in {', '.join(map(str, folders))} counts for tables: according to sweep.json "
            "all belong to the first stage of a finished search or to an earlier choice; launch "
            "the sweep again to rewrite sweep.json, or move the file away to show all jobs"
        )

    all_jobs = [*(run.job for run in shown.runs), *shown.planned]
    return Collection(
        groups=groups,
        methods=_choose_methods(methods, sweeps, all_jobs),
        warnings=warnings,
        compare_with=list(dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with)),
        first_stages=first_stages,
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


def _divide(
    shown: Group,
    ignored: Sequence[str],
    warnings: list[RecordWarning],
    own_methods: Mapping[str, Method],
) -> list[Group]:
    """Divide the runs, so that no row on a dataset mixes runs with several settings.

    Rows or datasets that differ but have one setting each stay together, since no cell mixes them;
    a note lists the differences. A warning is added for each repeated run of a job.
    """
    ran, planned = _get_complete_settings(shown)
    parts = _choose_parts(ran, planned, ignored)

    members: defaultdict[_GroupKey, list[_RunSetting]] = defaultdict(list)
    for run, setting in ran:
        members[_group_key(setting, parts)].append((run, setting))
    planned_by_group = _assign_planned(planned, parts, members)

    row_parts = {get_part(name) for values in shown.row_values.values() for name in values}
    groups: list[Group] = []
    for key in sorted({*members, *planned_by_group}):
        values = dict(zip(parts, key, strict=True))
        title = ", ".join(f"{part} {value}" for part, value in values.items())
        source = values.get(TRAINED_ON, ALL_OTHERS)
        group = replace(
            shown,
            title=title,
            runs=_drop_repeated([run for run, _ in members[key]], warnings),
            planned=planned_by_group.get(key, []),
            notes=[
                *(() if groups else shown.notes),
                *_describe_differences(title, members[key], row_parts, own_methods),
            ],
            source="" if source == ALL_OTHERS else source,
        )
        groups.append(group)
    return groups


def _get_complete_settings(group: Group) -> tuple[list[_RunSetting], list[_JobSetting]]:
    """Return the runs and the planned jobs with their settings, all of which have the same parts.

    Parts that a job lacks have the value of `_get_absent_value`.
    """
    run_settings = [_get_cell_setting(run.job, run.setting, group) for run in group.runs]
    job_settings = [
        _get_cell_setting(job, get_recorded_setting(job.args), group) for job in group.planned
    ]
    absent_values = {
        part: _get_absent_value(part)
        for setting in (*run_settings, *job_settings)
        for part in setting
    }
    ran = zip(group.runs, run_settings, strict=True)
    planned = zip(group.planned, job_settings, strict=True)
    return (
        [(run, absent_values | setting) for run, setting in ran],
        [(job, absent_values | setting) for job, setting in planned],
    )


def _get_absent_value(part: str) -> str:
    """Return the value of a part in settings that lack it.

    It is the default of a hyperparameter, even if the run recorded none: an algorithm without the
    hyperparameter, such as a checkout's ERM, shares the table of CARFT's default.
    """
    if part == TRAINED_ON:
        return ALL_OTHERS
    return DEFAULT if part.startswith(HPARAM) else UNKNOWN


def _get_cell_setting(job: Job, setting: Mapping[str, str], group: Group) -> dict[str, str]:
    """Return the setting of a job's cell, without searched values.

    It contains the training environments if several targets are held out together.
    """
    role = job.role
    cell_setting = {**setting, **{HPARAM + name: SEARCHED for name in role.values}}
    if role.holds_out_together:
        labels = group.environments[job.key.dataset]
        sources = [label for env, label in enumerate(labels) if env not in job.key.test_envs]
        cell_setting[TRAINED_ON] = ", ".join(sources)
    return cell_setting


def _choose_parts(
    ran: Sequence[_RunSetting], planned: Sequence[_JobSetting], ignored: Sequence[str]
) -> list[str]:
    """Return the parts of a setting by which the jobs are split into groups.

    They are the parts of which a row on one dataset has several values. For the environments it is
    enough that the dataset has several. Values of planned jobs count if they are known without a
    record.
    """
    ignored_prefixes = tuple(KINDS[name] for name in ignored)
    chosen = []
    for part in _list_parts([*ran, *planned]):
        values_by_owner: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
        for run, setting in ran:
            values_by_owner[_get_owner(part, run.job)].add(setting[part])
        for job, setting in planned:
            planned_value = setting[part]
            values = values_by_owner[_get_owner(part, job)]
            if planned_value != UNKNOWN and not any(
                _may_have_value(part, planned_value, value) for value in values
            ):
                values.add(planned_value)

        has_conflict = any(len(values) > 1 for values in values_by_owner.values())
        if part == TRAINED_ON or (has_conflict and not part.startswith(ignored_prefixes)):
            chosen.append(part)
    return chosen


def _list_parts(settings: Sequence[tuple[object, Mapping[str, str]]]) -> Iterable[str]:
    """Return the parts of complete settings, which are the same for all."""
    return settings[0][1] if settings else ()


def _get_owner(part: str, job: Job) -> tuple[str, ...]:
    """Return the dataset and row that must have one value of a part in each group."""
    return (job.key.dataset,) if part == ENVIRONMENTS else (job.key.dataset, job.row)


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


def _group_key(setting: Mapping[str, str], parts: Sequence[str]) -> _GroupKey:
    return tuple(setting[part] for part in parts)


def _affects_only_training(part: str) -> bool:
    """Return True for the steps, and for hyperparameters that prompts and images do not need."""
    if part.startswith(HPARAM):
        return part.removeprefix(HPARAM) not in _READ_WITHOUT_TRAINING
    return part in ("steps", "checkpoint_freq")


def _describe_differences(
    title: str,
    members: Sequence[_RunSetting],
    row_parts: AbstractSet[str],
    own_methods: Mapping[str, Method],
) -> Iterator[str]:
    """Describe the settings that differ between a group's rows and datasets, a sentence each.

    ``title`` is that of the group. ``row_parts`` are parts that the names of the rows already show.
    """
    titles = benchmarks.dataset_titles(run.dataset for run, _ in members)
    hidden_parts = {ENVIRONMENTS, SCHEDULE, TRAINED_ON, *row_parts}
    for part in _list_parts(members):
        absent_value = _get_absent_value(part)
        if part in hidden_parts or all(setting[part] == absent_value for _, setting in members):
            continue

        owners = (
            get_owners(part.removeprefix(HPARAM), own_methods) if part.startswith(HPARAM) else ()
        )
        rows_by_value: dict[str, dict[str, None]] = {}
        for run, setting in members:
            if run.algorithm in UNTRAINED and _affects_only_training(part):
                continue
            is_applicable = not part.startswith(METHOD) and (not owners or run.algorithm in owners)
            value = setting[part]
            if value == absent_value and not is_applicable:
                continue
            if part.startswith(HPARAM) and value == DEFAULT:
                value = DEFAULT if part.removeprefix(HPARAM) in run.recorded else UNKNOWN
            rows = rows_by_value.setdefault(value, {})
            rows[f"{run.row} on {titles[run.dataset]}" if len(titles) > 1 else run.row] = None

        if len(rows_by_value) > 1:
            listing = "; ".join(
                f"{value} for {', '.join(rows)}" for value, rows in rows_by_value.items()
            )
            note = f"Runs differ in {part}: {listing}."
            yield f"{title}: {note}" if title else note
