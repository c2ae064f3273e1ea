"""What ``carft collect``, ``top``, ``report`` and ``evaluate`` read: runs in groups, and methods.

A group has the runs that may be averaged, each job once: those of the same setting. Seeds, trial
and target are no part of a setting, nor are the values of a search, which the selection method
chooses. All runs on a dataset must share its environments, or a column would have no meaning. Runs
that leave several targets out together belong to the environments on which they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from domainbed_carft import text
from domainbed_carft.arguments import TEXTS, check
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, own_methods, records
from domainbed_carft.jobs.algorithms import get_owners
from domainbed_carft.jobs.job import Candidate, Choice, Job
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import RecordedRun, RecordWarning, RunsAndWarnings
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
from domainbed_carft.results import job_roles, selection
from domainbed_carft.results import rows as row_names
from domainbed_carft.results.rows import JointRow, JointRows
from domainbed_carft.results.selection import Selected
from domainbed_carft.text import quantity

# The part of a setting that names the environments trained on, where several targets were left out
# together, and its value for runs with one target.
TRAINED_ON = "trained on"
ALL_OTHERS = "all others"
# The value of a hyperparameter that is searched.
SEARCHED = "searched"

# (dataset, row) -> the settings of its jobs
_SettingsByRow = dict[tuple[str, str], list[Mapping[str, str]]]
# The values of the parts that tell one group from another
_GroupKey = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that may be averaged, how they differ from the other groups, and remarks.

    ``title``: the setting, "" of a single group. ``planned``: jobs of the sweeps' manifests that
    belong to the group, run or not; ``runs`` may be empty. ``labels``: dataset -> environments, as
    in the manifests. ``declared``: the rows in the order in which the manifests declare them.
    ``source``: the environments trained on, if all others are left out together, else "".
    """

    title: str
    runs: Sequence[RecordedRun]
    planned: Sequence[Job]
    notes: Sequence[str]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    declared: Sequence[str] = ()
    source: str = ""
    _selections: dict[str, list[Selected]] = field(default_factory=dict, init=False, repr=False)

    def selected(self, method: str) -> list[Selected]:
        """What a selection method selects from the runs, computed once."""
        if method not in self._selections:
            self._selections[method] = selection.select(self.runs, method)
        return self._selections[method]

    @property
    def environments(self) -> dict[str, tuple[str, ...]]:
        """Dataset -> labels of its environments, in the order of the tables."""
        return row_names.environment_labels(self.runs, self.planned, self.labels)

    def ordered(self, rows: Iterable[str]) -> list[str]:
        """Names of rows, each once, in the order of the tables."""
        return row_names.ordered_rows(rows, self.declared)


@dataclass(frozen=True, eq=False)
class Collection:
    """Runs in groups that may be averaged, and what the manifests and the user asked for.

    ``methods``: names of selection methods; ``compare_with``: names of published methods.
    ``first_stages``: runs of searches in two stages, of which the groups have the second.
    ``joint_rows``: what rows that ``by`` makes are of, by name. ``folders``: those that were read.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    warnings: Sequence[RecordWarning]
    compare_with: Sequence[str]
    first_stages: Sequence[RecordedRun] = ()
    joint_rows: Mapping[str, JointRow] = field(default_factory=dict)
    folders: Sequence[Path] = ()

    @property
    def runs(self) -> list[RecordedRun]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    def selected(self, method: str) -> list[Selected]:
        """What a selection method selects from each group in turn; `Group.selected` has a part."""
        return [selected for group in self.groups for selected in group.selected(method)]

    @property
    def rows(self) -> list[str]:
        """The rows that have runs, in the order of the tables."""
        declared = dict.fromkeys(name for group in self.groups for name in group.declared)
        return row_names.ordered_rows((run.row for run in self.runs), declared)


# What `collect`, `top`, `write_report` and `evaluate` take: folders, or what was read of them.
Sweeps: TypeAlias = "AnyPath | Iterable[AnyPath] | Collection"


def gathered(sweeps: Sweeps, **reading: Any) -> Collection:
    """The collection itself, or what `gather` reads of folders; ``reading``: its options."""
    return sweeps if isinstance(sweeps, Collection) else gather(sweeps, **reading)


def gather(
    folders: AnyPath | Iterable[AnyPath],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Collection:
    """Read one or several output ``folders`` of sweeps: runs of the same setting, each job once.

    ``methods``: names of selection methods, None for those that the sweeps' manifests name, else
    those that have jobs. ``ignored``: parts of a setting, keys of KINDS, that may differ between
    runs that are averaged. ``by``: hyperparameters, arguments or "variant", by which runs have rows
    of their own instead of tables.

    Raises CarftError if there is no record, no job for a requested method, if a job was run twice
    with different records, if a name of ``by`` does not vary, or if by the manifests no job counts
    for tables.
    """
    check(TEXTS, ignored=ignored, by=by)
    check(TEXTS, is_optional=True, methods=methods)
    for name in ignored:
        if name not in KINDS:
            raise CarftError(text.unknown("part of a setting", name, KINDS))

    folders = as_paths(folders)
    runs, warnings = _read_runs(folders)
    sweeps = [_read_manifest(folder, warnings) for folder in folders]
    runs = job_roles.assign_to_runs(runs, sweeps)
    last_stage = job_roles.last_stage(runs, sweeps)
    declared = dict.fromkeys(name for sweep in sweeps for name in sweep.algorithms)
    rows = row_names.label_rows(
        last_stage.runs, last_stage.planned, by=by, folders=folders, declared=declared
    )
    labels = {name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()}
    groups = _groups(rows, labels, ignored, warnings)
    if not groups:
        raise CarftError(
            f"no job in {', '.join(map(str, folders))} counts for tables: by sweep.json all belong "
            "to the first stage of a search that is over, or to an earlier choice; launch the "
            "sweep again, which rewrites the file, or move it away to show all jobs"
        )
    groups[0] = replace(groups[0], notes=[*last_stage.notes, *groups[0].notes])

    all_jobs = [*(run.job for run in rows.runs), *rows.planned]
    numbers_left_out = {_number_left_out(job) for job in all_jobs}
    compare_with = dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with)
    return Collection(
        groups=groups,
        methods=_methods_to_show(methods, sweeps, numbers_left_out),
        warnings=warnings,
        compare_with=list(compare_with),
        first_stages=last_stage.first_stages,
        joint_rows=rows.rows,
        folders=folders,
    )


def _read_runs(folders: Sequence[Path]) -> RunsAndWarnings:
    """The runs in the folders; raises CarftError, with the warnings, if there are none."""
    runs_and_warnings = records.read(folders)
    if not runs_and_warnings.runs:
        listing = "".join(
            f"\n{line}" for line in records.describe_warnings(runs_and_warnings.warnings)
        )
        raise CarftError(
            f"no records in {', '.join(map(str, folders))} or up to {records.DEPTH} levels below; "
            f"expected folders of jobs with results.jsonl{listing}"
        )
    return runs_and_warnings


def _number_left_out(job: Job) -> int:
    """How many environments a job leaves out; those left out together count as one target."""
    return 1 if job.role.leaves_out_together else len(job.args["test_envs"])


def _read_manifest(folder: Path, warnings: list[RecordWarning]) -> Sweep:
    """The manifest of ``folder``; an empty one if there is none, or, with a warning, if broken."""
    try:
        return manifest.read(folder) or Sweep(())
    except CarftError as error:
        message = f"{error}. Until then the expected jobs are inferred from the records"
        warnings.append(RecordWarning("unreadable", str(folder), message))
        return Sweep(())


def _methods_to_show(
    requested: Sequence[str] | None, sweeps: Sequence[Sweep], numbers_left_out: set[int]
) -> Sequence[str]:
    """The ``requested`` methods, or else those that the sweeps name and that have jobs.

    ``numbers_left_out``: how many environments the jobs leave out. Raises CarftError for a
    requested method without jobs.
    """
    leaves_out = {number > 0 for number in numbers_left_out}
    methods_with_jobs = [
        name for name, method in selection.METHODS.items() if method.leaves_out in leaves_out
    ]
    for name in requested or ():
        if name not in methods_with_jobs:
            raise CarftError(
                f"--select {name}: no jobs for this method; expected one of "
                f"{', '.join(methods_with_jobs)}"
            )
    if requested:
        return requested

    named = {name for sweep in sweeps for name in sweep.selection} | {selection.IN_DOMAIN}
    if not all(sweep.selection for sweep in sweeps):
        named |= {*selection.METHODS} - {selection.LEAVE_ONE_OUT}
    if 2 in numbers_left_out:  # these jobs serve nothing else
        named.add(selection.LEAVE_ONE_OUT)
    return [name for name in methods_with_jobs if name in named]


def _groups(
    rows: JointRows,
    labels: Mapping[str, Sequence[str]],
    ignored: Sequence[str],
    warnings: list[RecordWarning],
) -> list[Group]:
    """The runs, split where one row on one dataset was run under several settings.

    Rows or datasets that differ in their one setting stay together, since no cell mixes them; a
    note names the differences. ``labels``: dataset -> environments, as manifests have them;
    ``ignored``: keys of KINDS that do not count. Each job counts once: a warning is added for each
    run that is passed over.
    """
    environments = row_names.environment_labels(rows.runs, rows.planned, labels)
    runs = [(run, _cell_setting(run.job, run.setting, environments)) for run in rows.runs]
    planned = [
        (job, _cell_setting(job, setting_of(job.args), environments)) for job in rows.planned
    ]
    parts = _parts_that_split([(run.job, setting) for run, setting in runs], planned, ignored)

    members: dict[_GroupKey, list[RecordedRun]] = {}
    for run, setting in runs:
        members.setdefault(_group_key(setting, parts), []).append(run)
    planned_by_group = _planned_by_group(planned, parts, members)

    groups = []
    for key in sorted({*members, *planned_by_group}):
        values = dict(zip(parts, key, strict=True))
        title = ", ".join(f"{part} {value}" for part, value in values.items())
        source = values.get(TRAINED_ON, ALL_OTHERS)
        group_runs = members.get(key, [])
        distinct_runs, duplicates = _distinct(group_runs)
        warnings += duplicates
        differences = _differences(group_runs, environments, rows.parts)
        group = Group(
            title=title,
            runs=distinct_runs,
            planned=planned_by_group.get(key, []),
            notes=[f"{title}: {note}" if title else note for note in differences],
            labels=labels,
            declared=tuple(rows.names),
            source="" if source == ALL_OTHERS else source,
        )
        groups.append(group)
    return groups


def _parts_that_split(
    ran: Sequence[tuple[Job, Mapping[str, str]]],
    planned: Sequence[tuple[Job, Mapping[str, str]]],
    ignored: Sequence[str],
) -> list[str]:
    """The parts of a setting by which groups differ; ``ran``, ``planned``: jobs, their settings."""
    ignored_prefixes = tuple(KINDS[name] for name in ignored)
    conflicts = _conflicts(_by_row(ran), _by_row(planned))
    parts = [part for part in conflicts if not part.startswith(ignored_prefixes)]
    has_sources = any(TRAINED_ON in setting for _, setting in (*ran, *planned))
    return [*parts, TRAINED_ON] if has_sources and TRAINED_ON not in parts else parts


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
    members: Mapping[_GroupKey, Sequence[RecordedRun]],
) -> dict[_GroupKey, list[Job]]:
    """The planned jobs that belong to each group; a job may belong to several, or to a new one.

    Say that trial 0 ran with one version of PyTorch and trial 1 with another, which no plan tells:
    then there are two groups. A planned job of trial 0 that ran belongs to the first group. One
    that did not run may belong to either, so that both miss it. One with a hyperparameter that no
    run has makes a group of its own, without runs.
    """
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
    return candidate.dataset, candidate.row, candidate.trial, candidate.choice


def _distinct(runs: Sequence[RecordedRun]) -> tuple[list[RecordedRun], list[RecordWarning]]:
    """``runs`` of one group with each job once, and a warning for each run passed over.

    Of several, the finished one counts; of several with the same records, the first. Raises
    CarftError, naming all of them, for jobs whose runs have different records.
    """
    runs_by_job: dict[Candidate, list[RecordedRun]] = {}
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

        message = f"same job as in {first.folder}, which is used"
        for run in repeated:
            if run is not first:
                warnings.append(RecordWarning("passed over", run.folder, message))

    if problems:
        raise CarftError(
            f"{quantity(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "with different records; keep the folder, or the records in it, of one:\n"
            + "\n".join(problems)
        )
    return distinct_runs, warnings


def _content(run: RecordedRun) -> tuple[bytes, bytes]:
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
        settings.setdefault((job.key.dataset, job.row), []).append(setting)
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

    Some algorithm has several values of such a part on one dataset; of environments, the dataset
    has. Of planned jobs those values count that are known without a record.
    """
    for part in _parts({**planned, **ran}):
        values_of: dict[tuple[str, ...], set[str]] = {}
        for dataset, row in {**ran, **planned}:
            run_settings = ran.get((dataset, row), ())
            values = {_part_value(setting, part) for setting in run_settings}
            if UNKNOWN not in values:
                job_settings = planned.get((dataset, row), ())
                values |= {_part_value(setting, part) for setting in job_settings} - {UNKNOWN}

            owner = (dataset,) if part == ENVIRONMENTS else (dataset, row)
            values_of.setdefault(owner, set()).update(values)
        if any(len(values) > 1 for values in values_of.values()):
            yield part


def _differences(
    runs: Sequence[RecordedRun], environments: Mapping[str, Sequence[str]], row_parts: Sequence[str]
) -> Iterator[str]:
    """How the settings of a group's algorithms and datasets differ, a sentence for each part.

    ``row_parts``: parts that the names of the rows tell.
    """
    settings_by_row = _by_row(
        (run.job, _cell_setting(run.job, run.setting, environments)) for run in runs
    )
    titles = benchmarks.dataset_titles(dataset for dataset, _ in settings_by_row)
    algorithm_of_row = {run.row: run.algorithm for run in runs}
    known = own_methods.list_algorithms()
    for part in _parts(settings_by_row):
        owners = get_owners(part.removeprefix(HPARAM), known) if part.startswith(HPARAM) else ()
        rows_by_value: dict[str, dict[str, None]] = {}
        for (dataset, row), settings in settings_by_row.items():
            for setting in settings:
                is_of_others = owners and algorithm_of_row[row] not in owners
                if part not in setting and (is_of_others or part.startswith(METHOD)):
                    continue
                rows = rows_by_value.setdefault(_part_value(setting, part), {})
                rows[f"{row} on {titles[dataset]}"] = None

        if len(rows_by_value) > 1 and part not in (ENVIRONMENTS, SCHEDULE, TRAINED_ON, *row_parts):
            listing = "; ".join(
                f"{value}: {', '.join(rows)}" for value, rows in rows_by_value.items()
            )
            yield f"Not all runs have the same {part}: {listing}."
