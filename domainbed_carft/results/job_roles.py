"""The role of each job in its manifest: member of a search, stage of one, or single source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job
from domainbed_carft.jobs.manifest import Row, Search, Sweep, format_trials, get_row
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results.groups import Group
from domainbed_carft.wording import quantity


def select_last_stage(
    runs: Sequence[RecordedRun], sweeps: Sequence[Sweep]
) -> tuple[Group, list[RecordedRun]]:
    """Give the runs their roles in the manifests, and select those that the tables show.

    They belong to the second stage of a search as soon as its jobs are known.

    Returns:
        The runs and planned jobs of the last stage, with notes on the searches, and the runs from
        which a search has chosen, which the tables do not show.
    """
    listed_roles = {job.folder: job.role for sweep in sweeps for job in sweep.jobs}
    assigned = []
    for run in runs:
        role = listed_roles.get(run.job.folder, run.job.role)
        if role != run.job.role:
            run = replace(run, job=replace(run.job, role=role))
        assigned.append(run)

    hidden: set[Path] = set()
    undecided: list[Job] = []
    notes: list[str] = []
    for sweep in sweeps:
        notes += _notes_on_values(sweep)
        if sweep.search:
            hidden_jobs = [job for job in sweep.jobs if _is_hidden(job, sweep.search)]
            hidden.update(job.folder for job in hidden_jobs)
            undecided += _plan_undecided(sweep.jobs, sweep.search)
            notes.append(_note_on_stages(sweep.search, sweep.jobs))

    listed = [job for sweep in sweeps for job in sweep.jobs if job.folder not in hidden]
    shown = Group(
        runs=[run for run in assigned if run.job.folder not in hidden],
        planned=[*listed, *undecided],
        notes=notes,
    )
    hidden_runs = [run for run in assigned if run.job.folder in hidden]
    return shown, [run for run in hidden_runs if run.job.role.stage == CHOOSE]


def _is_hidden(job: Job, search: Search) -> bool:
    """Return True for jobs of an earlier choice, and of a first stage once there is a second."""
    if job.role.stage == CHOOSE:
        return bool(search.chosen)
    return job.role.stage == REPEAT and not search.is_chosen(job)


def _plan_undecided(jobs: Iterable[Job], search: Search) -> Iterator[Job]:
    """Yield jobs of the second stage for rows and targets of which only the first was launched.

    Next to rows with a choice, their cells are gaps. The values of the jobs are not known yet.
    """
    if not search.chosen:
        return

    first_stage: dict[tuple[Row, frozenset[int]], Job] = {}
    repeated = set()
    for job in jobs:
        cells = (get_row(job), job.key.test_envs)
        if job.role.stage == CHOOSE:
            first_stage.setdefault(cells, job)
        elif job.role.stage == REPEAT:
            repeated.add(cells)

    for cells, job in first_stage.items():
        for trial in search.repeat_on if cells not in repeated else ():
            args = {**job.args, "trial_seed": trial}
            yield replace(job, args=args, role=replace(job.role, stage=REPEAT))


def _note_on_stages(search: Search, jobs: Iterable[Job]) -> str:
    """Describe the number of jobs that chose the values, and the number trained with them."""
    n_first = sum(job.role.stage == CHOOSE for job in jobs)
    trials = format_trials(search.choose_on)
    if not search.chosen:
        return (
            f"The search has not chosen yet, so the tables show its first stage, on {trials}. "
            "Run carft sweep status to see what is missing."
        )

    scope = "each target" if search.choose_by == "target" else "all targets of a dataset"
    repeat_trials = format_trials(search.repeat_on)
    note = (
        f"Budget of the search: {quantity(n_first, 'job')} on {trials} to choose by "
        f"{search.rule} validation, one choice for {scope}; {quantity(search.repeats, 'job')} on "
        f"{repeat_trials} to train the choices. The tables contain only the latter."
    )
    if search.is_choosing:
        note += (
            " The last launch has not chosen yet, so the tables show earlier choices, and rows "
            "without one are incomplete. Run carft sweep status to see what is missing."
        )
    return note


def _notes_on_values(sweep: Sweep) -> Iterator[str]:
    """Describe the searched values, a sentence for each list of values."""
    members_by_row: dict[Row, dict[int, Mapping[str, Any]]] = {}
    for job in sweep.jobs:
        role = job.role
        if role.values and role.stage != REPEAT:
            members_by_row.setdefault(get_row(job), {})[role.member] = role.values

    titles = benchmarks.dataset_titles(dataset for _, dataset, _ in members_by_row)
    rows_by_values: dict[str, list[str]] = {}
    for (cell, dataset, algorithm), members in members_by_row.items():
        ordered = [members[number] for number in sorted(members)]
        label = " ".join(filter(None, [cell, algorithm]))
        rows = rows_by_values.setdefault(_describe_values(ordered), [])
        rows.append(f"{label} on {titles[dataset]}")

    for values, rows in rows_by_values.items():
        yield f"Searched: {values}: {', '.join(rows)}."


def _describe_values(members: Sequence[Mapping[str, Any]]) -> str:
    """Describe the members of a search, as ``lr from 0.0001, 0.001 (2 members)``."""
    parts = []
    for name in members[0]:
        values = dict.fromkeys(str(member.get(name)) for member in members)
        parts.append(f"{name} from {', '.join(values)}")
    return f"{' and '.join(parts)} ({quantity(len(members), 'member')})"
