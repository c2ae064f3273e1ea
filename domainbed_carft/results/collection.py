"""What ``carft collect``, ``top`` and ``report`` read: runs in groups, and methods to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbed_carft import text
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import RecordWarning, Run, RunsAndWarnings
from domainbed_carft.jobs.setting import KINDS
from domainbed_carft.paths import AnyPath, as_paths
from domainbed_carft.results import joint_rows, roles, selection, settings
from domainbed_carft.results.joint_rows import JointRow, JointRows
from domainbed_carft.results.settings import Group


class Collection(NamedTuple):
    """Runs in groups that may be averaged, and what the manifests and the user asked for.

    ``methods``: names of selection methods; ``compare_with``: names of published methods.
    ``first_stages``: runs of searches in two stages, of which the groups have the second.
    ``joint_rows``: what rows that ``by`` makes are of, by name.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    warnings: Sequence[RecordWarning]
    compare_with: Sequence[str]
    first_stages: Sequence[Run] = ()
    joint_rows: Mapping[str, JointRow] = {}

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]


def gather(
    folders: AnyPath | Iterable[AnyPath],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    *,
    single_source: bool = False,
    by: Sequence[str] = (),
) -> Collection:
    """Read one or several ``folders``, group runs of the same setting, count each job once.

    ``methods``: None for those that the sweeps' manifests name, else those that have jobs.
    ``single_source``: take jobs that leave out all environments but one for jobs with a single
    source, whatever manifests say. ``by``: what gives runs rows of their own, as for
    `joint_rows.label_rows`. Raises CarftError if there is no record, no job for a requested method,
    if a job was run twice with different records, if a name of ``by`` does not vary, if by the
    manifests no job counts for tables, or if jobs without a manifest may be either of a single
    source or for leave-one-domain-out.
    """
    for name in ignored:
        if name not in KINDS:
            raise CarftError(text.unknown("part of a setting", name, KINDS))

    folders = as_paths(folders)
    runs, warnings = _read_runs(folders)
    sweeps = [_read_manifest(folder, warnings) for folder in folders]
    sweeps = roles.assign_to_planned(sweeps, single_source)
    runs = roles.assign_to_runs(runs, sweeps, single_source)
    if selection.LEAVE_ONE_OUT not in (methods or ()):
        roles.require_known_roles(runs, sweeps)

    last_stage = roles.last_stage(runs, sweeps)
    declared = dict.fromkeys(name for sweep in sweeps for name in sweep.declared_algorithms)
    rows = joint_rows.label_rows(
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
    groups[0] = groups[0]._replace(notes=[*last_stage.notes, *groups[0].notes])

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
    )


def _read_runs(folders: Sequence[Path]) -> RunsAndWarnings:
    """The runs in the folders; raises CarftError, with the warnings, if there are none."""
    found = records.read(folders)
    if not found.runs:
        listing = "".join(f"\n{line}" for line in records.describe_warnings(found.warnings))
        raise CarftError(
            f"no records in {', '.join(map(str, folders))} or up to {records.DEPTH} levels below; "
            f"expected folders of jobs with results.jsonl{listing}"
        )
    return found


def _groups(
    rows: JointRows,
    labels: Mapping[str, Sequence[str]],
    ignored: Sequence[str],
    warnings: list[RecordWarning],
) -> list[Group]:
    """The groups of the runs, each job once; adds a warning for each run that is passed over.

    ``labels``: data set -> environments, as manifests have them.
    """
    groups = []
    for group in settings.groups(rows.runs, rows.planned, ignored, labels, rows.parts):
        distinct_runs, duplicates = settings.distinct(group.runs)
        declared = tuple(rows.names)
        groups.append(group._replace(runs=distinct_runs, labels=labels, declared=declared))
        warnings += duplicates
    return groups


def _number_left_out(job: Job) -> int:
    """How many environments a job leaves out; those left out together count as one target."""
    return 1 if job.role.leaves_out_together else len(job.args["test_envs"])


def _read_manifest(folder: Path, warnings: list[RecordWarning]) -> Sweep:
    """The manifest of ``folder``; an empty one if there is none, or, with a warning, if broken."""
    try:
        return manifest.read(folder) or Sweep(())
    except CarftError as error:
        text = f"{error}. Until then the expected jobs are inferred from the records"
        warnings.append(RecordWarning("unreadable", str(folder), text))
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
