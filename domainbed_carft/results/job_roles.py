"""What each job is for, by the manifests: a member of a search, one of its stages, one source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Job
from domainbed_carft.jobs.manifest import Search, Sweep, format_trials
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.text import quantity

# Variant, dataset and algorithm
_Row = tuple[str, str, str]


@dataclass(frozen=True)
class LastStage:
    """What tables show of sweeps with stages: runs, planned jobs, and notes on the searches.

    ``first_stages``: the runs among which a search has chosen, and which the tables do not show.
    """

    runs: list[RecordedRun]
    first_stages: list[RecordedRun]
    planned: list[Job]
    notes: list[str]


def assign_to_runs(runs: Iterable[RecordedRun], sweeps: Sequence[Sweep]) -> list[RecordedRun]:
    """The runs, each with the role of its job in the manifest that lists it."""
    listed_roles = {job.folder: job.role for sweep in sweeps for job in sweep.jobs}

    assigned = []
    for run in runs:
        role = listed_roles.get(run.job.folder, run.job.role)
        if role != run.job.role:
            run = replace(run, job=replace(run.job, role=role))
        assigned.append(run)
    return assigned


def last_stage(runs: Sequence[RecordedRun], sweeps: Sequence[Sweep]) -> LastStage:
    """What tables show: of a search with stages the second one, once its jobs are known."""
    hidden: set[Path] = set()
    notes: list[str] = []
    for sweep in sweeps:
        notes += _notes_on_values(sweep)
        if sweep.search:
            hidden_jobs = [job for job in sweep.jobs if _is_hidden(job, sweep.search)]
            hidden.update(job.folder for job in hidden_jobs)
            notes.append(_note_on_stages(sweep.search, sweep.jobs))

    return LastStage(
        runs=[run for run in runs if run.job.folder not in hidden],
        first_stages=[
            run for run in runs if run.job.folder in hidden and run.job.role.stage == CHOOSE
        ],
        planned=[job for sweep in sweeps for job in sweep.jobs if job.folder not in hidden],
        notes=notes,
    )


def _is_hidden(job: Job, search: Search) -> bool:
    """Whether a job is of the first stage, while there is a second, or of an earlier choice."""
    if job.role.stage == CHOOSE:
        return bool(search.chosen)
    return job.role.stage == REPEAT and not search.is_chosen(job)


def _note_on_stages(search: Search, jobs: Iterable[Job]) -> str:
    """How much was trained to choose the values, and how much with the chosen ones."""
    n_first = sum(job.role.stage == CHOOSE for job in jobs)
    trials = format_trials(search.choose_on)
    if not search.chosen:
        return (
            f"The search has not chosen yet; the tables show its first stage, on {trials}. "
            "carft sweep status says what is missing."
        )

    scope = "each target" if search.choose_by == "target" else "all targets of a dataset"
    repeat_trials = format_trials(search.repeat_on)
    return (
        f"Budget of the search: {quantity(n_first, 'job')} on {trials} chose by {search.method} "
        f"validation, one choice for {scope}; {quantity(search.repeats, 'job')} on "
        f"{repeat_trials} train what was chosen, and only these are in the tables."
    )


def _notes_on_values(sweep: Sweep) -> Iterator[str]:
    """The searched values, a sentence for each list of them."""
    members_by_row: dict[_Row, dict[int, Mapping[str, Any]]] = {}
    for job in sweep.jobs:
        role = job.role
        if role.values and role.stage != REPEAT:
            row = (role.cell, job.key.dataset, job.key.algorithm)
            members_by_row.setdefault(row, {})[role.member] = role.values

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
    """``lr from 0.0001, 0.001 (2 members)``."""
    parts = []
    for name in members[0]:
        values = dict.fromkeys(str(member.get(name)) for member in members)
        parts.append(f"{name} from {', '.join(values)}")
    return f"{' and '.join(parts)} ({quantity(len(members), 'member')})"
