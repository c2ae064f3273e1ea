"""The input of ``carft collect``, ``top`` and ``report``, and the document of ``collect``."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import overrides
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import RecordWarning, Run
from domainbed_carft.results import (
    document,
    order,
    paired,
    published,
    selection,
    settings,
    suites,
    tables,
)
from domainbed_carft.results.document import Document
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table

# Values that a run fills in and records; passed on, they would refuse any other data set.
_RECORDED_FACTS = (
    "prompts_digest",
    "clip_digest",
    "clip_revision",
    "preprocessing",
    "data_edition",
)


class Collection(NamedTuple):
    """Runs in groups that may be averaged, and what the manifests and the user asked for.

    ``methods``: names of selection methods; ``compare_with``: names of published methods.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    warnings: Sequence[RecordWarning]
    compare_with: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]


def gather(
    folders: Sequence[Path | str], methods: Sequence[str] | None = None, ignored: Sequence[str] = ()
) -> Collection:
    """Read ``folders``, group runs of the same setting, count each job once.

    ``methods``: None for those that the sweeps' manifests name, else those that have jobs. Raises
    CarftError if there is no record, no job for a requested method, or if a job was run twice with
    different records.
    """
    runs, warnings = records.read(folders)
    if not runs:
        listing = "".join(f"\n{line}" for line in records.describe_warnings(warnings))
        raise CarftError(
            f"no records in {', '.join(map(str, folders))} or up to {records.DEPTH} levels below; "
            f"expected folders of jobs with results.jsonl{listing}"
        )

    sweeps = [_read_manifest(folder, warnings) for folder in folders]
    planned = [job for sweep in sweeps for job in sweep.jobs]
    labels = {name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()}
    declared = dict.fromkeys(name for sweep in sweeps for name in sweep.declared_algorithms)
    groups = []
    for group in settings.groups(runs, planned, ignored):
        distinct_runs, duplicates = settings.distinct(group.runs)
        group = group._replace(runs=distinct_runs, labels=labels, declared=tuple(declared))
        groups.append(group)
        warnings += duplicates

    numbers_left_out = {len(run.test_envs) for run in runs}
    numbers_left_out |= {len(job.args["test_envs"]) for job in planned}
    compare_with = dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with)
    return Collection(
        groups=groups,
        methods=_methods_to_show(methods, sweeps, numbers_left_out),
        warnings=warnings,
        compare_with=list(compare_with),
    )


def _read_manifest(folder: Path | str, warnings: list[RecordWarning]) -> Sweep:
    """The manifest of ``folder``; an empty one if there is none, or, with a warning, if broken."""
    try:
        return manifest.read(Path(folder)) or Sweep(())
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


def build(
    collection: Collection, pair: Sequence[str] | None = None, compare: bool = False
) -> Document:
    """The document of ``carft collect``: tables, and suites where there are any.

    ``pair``: two algorithms to compare over the trials that both have; ``compare``: whether to add
    published figures. Raises CarftError if the algorithms of ``pair`` share no trial.
    """
    tables_of_groups = [tables.build(group, collection.methods) for group in collection.groups]
    all_tables = [table for group_tables in tables_of_groups for table in group_tables]
    scores = [row for group in collection.groups for row in suites.scores(group)]

    entries = [document.table_entry(table) for table in all_tables]
    remarks = [note for group in collection.groups for note in group.notes]
    caption = [*document.CAPTION]
    grids = [document.table_grid(table) for table in all_tables]
    sections: dict[str, Any] = {"tables": entries, "notes": remarks}
    csv_rows = document.cell_records(entries)

    if scores:
        grids += [suites.grid(rows) for rows in suites.tabled(scores)]
        caption.append(suites.CAPTION)
        sections["suites"] = [row.entry() for row in scores]

    if compare:
        csv_rows = []
        for group, group_tables in zip(collection.groups, tables_of_groups, strict=True):
            comparisons, deviations = published.compare(group, group_tables)
            grids.append(published.grid(comparisons, deviations))
            csv_rows += comparisons
            remarks += deviations
        grids.append(published.overview(collection.compare_with))
        grids += suites.grids_with_published(scores)
        caption += published.CAPTION
        figures = published.figures(collection.compare_with)
        sections["published"] = {"comparisons": csv_rows, "figures": figures}

    if pair:
        first, second = pair
        csv_rows = paired.compare(collection.groups, collection.methods, first, second)
        sections["paired"] = csv_rows
        grids.append(paired.grid(csv_rows, first, second))
        caption.append(paired.CAPTION)

    sections["summary"] = _summary(collection, all_tables)
    return Document([*caption, *remarks], grids, sections, csv_rows)


def _summary(collection: Collection, all_tables: Sequence[Table]) -> dict[str, Any]:
    """How many records, jobs and cells there are, and the warnings, for JSON."""
    runs = collection.runs
    return {
        "records": sum(len(run.steps) for run in runs),
        "jobs": len(runs),
        "incomplete_cells": sum(table.incomplete for table in all_tables),
        "cells": sum(cell.is_expected for table in all_tables for cell in table.cells),
        "faults": [warning._asdict() for warning in collection.warnings],
    }


def best(collection: Collection) -> Iterator[dict[str, Any]]:
    """For ``carft top``: hparams of each (data set, algorithm, target, trial), method and group."""
    for group, method in itertools.product(collection.groups, collection.methods):
        labels = order.environment_labels(group.runs, listed=group.labels)
        leaves_out = selection.METHODS[method].leaves_out

        for selected in _in_row_order(selection.select(group.runs, method), group.declared):
            # Jobs that leave nothing out select the same for each column.
            if leaves_out or selected.target == 0:
                environment = labels[selected.dataset][selected.target] if leaves_out else None
                yield {
                    "setting": group.title,
                    "selection": method,
                    **_best_entry(selected, environment),
                }


def _in_row_order(selections: Iterable[Selected], declared: Sequence[str]) -> list[Selected]:
    """By data set, then in the tables' order of algorithms, then by target and trial."""
    selections = list(selections)
    algorithms = order.ordered_algorithms((selected.algorithm for selected in selections), declared)

    def row_and_trial(selected: Selected) -> tuple[str, int, int, int]:
        row = algorithms.index(selected.algorithm)
        return selected.dataset, row, selected.target, selected.trial

    return sorted(selections, key=row_and_trial)


def _best_entry(selected: Selected, environment: str | None) -> dict[str, Any]:
    """The hparams that were selected; ``environment``: the one left out, None if none was."""
    leaves_out = environment is not None
    outcome = selected.outcome
    run = outcome.runs[0]

    filled_in = {*_RECORDED_FACTS} - overrides(run.job.args).keys()
    to_repeat = {name: value for name, value in run.recorded.items() if name not in filled_in}
    return {
        "dataset": selected.dataset,
        "algorithm": selected.algorithm,
        "test_env": selected.target if leaves_out else None,
        "environment": environment,
        "trial_seed": selected.trial,
        "hparams_seed": outcome.choice,
        "step": int(outcome.step),
        "validation_accuracy": outcome.validation,
        "accuracy": outcome.accuracy if leaves_out else None,
        "hparams": dict(run.recorded),
        "argument": f"--hparams {shlex.quote(json.dumps(to_repeat, sort_keys=True))}",
        "folders": [run.folder for run in outcome.runs],
    }
