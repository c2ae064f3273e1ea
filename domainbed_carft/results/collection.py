"""The input of ``carft collect``, ``top`` and ``report``, and the document of ``collect``."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import overrides
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import Fault
from domainbed_carft.results import document, paired, published, selection, settings, suites, tables
from domainbed_carft.results.document import Document
from domainbed_carft.results.settings import Group

# Values that a run fills in and records; passed on, they would refuse any other data set.
_FILLED_IN = ("prompts_digest", "clip_digest", "clip_revision", "preprocessing", "data_edition")


class Collection(NamedTuple):
    """Runs in groups that may be averaged, and what the manifests and the user asked for."""

    groups: Sequence[Group]
    methods: Sequence[str]
    faults: Sequence[Fault]
    compare_with: Sequence[str]


def gather(
    folders: Sequence[Path | str], methods: Sequence[str] | None = None, ignored: Sequence[str] = ()
) -> Collection:
    """Read ``folders``, group runs of the same setting, count each job once.

    ``methods``: None for those that the sweeps' manifests name, else those that have jobs. Raises
    CarftError if there is no record, no job for a requested method, or if a job was run twice with
    different records.
    """
    runs, faults = records.read(folders)
    if not runs:
        wrong = "".join(f"\n{line}" for line in records.told(faults))
        raise CarftError(
            f"no records in {', '.join(map(str, folders))} or up to {records.DEPTH} levels below; "
            f"expected folders of jobs with results.jsonl{wrong}"
        )
    sweeps = []
    for folder in folders:
        try:
            sweeps.append(manifest.read(Path(folder)) or Sweep(()))
        except CarftError as error:
            sweeps.append(Sweep(()))
            what = f"{error}. Until then the expected jobs are inferred from the records"
            faults.append(Fault("unreadable", str(folder), what))
    planned = [job for sweep in sweeps for job in sweep.jobs]
    listed = {name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()}
    declared = tuple(dict.fromkeys(name for one in sweeps for name in one.declared_algorithms))
    groups = []
    for group in settings.groups(runs, planned, ignored):
        kept, passed_over = settings.distinct(group.runs)
        groups.append(group._replace(runs=kept, labels=listed, declared=declared))
        faults += passed_over
    left_out = {len(run.test_envs) for run in runs}
    left_out |= {len(job.args["test_envs"]) for job in planned}
    known = selection.METHODS.items()
    there = [name for name, method in known if method.leaves_out in map(bool, left_out)]
    for name in methods or ():
        if name not in there:
            raise CarftError(
                f"--select {name}: no jobs for this method; expected one of {', '.join(there)}"
            )
    named = {name for sweep in sweeps for name in sweep.selection} | {selection.IN_DOMAIN}
    if not all(sweep.selection for sweep in sweeps):
        named |= {*selection.METHODS} - {selection.LEAVE_ONE_OUT}
    if 2 in left_out:  # these jobs serve nothing else
        named.add(selection.LEAVE_ONE_OUT)
    compare_with = list(dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with))
    return Collection(
        groups, methods or [name for name in there if name in named], faults, compare_with
    )


def build(
    collection: Collection, pair: Sequence[str] | None = None, compare: bool = False
) -> Document:
    """All that was requested; ``pair``: two algorithms; ``compare``: with published figures."""
    built = [tables.build(group, collection.methods) for group in collection.groups]
    flat = [table for group in built for table in group]
    grids = [*map(document.grid, flat)]
    remarks = [note for group in collection.groups for note in group.notes]
    caption = [*document.CAPTION]
    sections: dict[str, Any] = {"tables": [*map(document.table_entry, flat)], "notes": remarks}
    rows = document.cell_records(sections["tables"])
    if scores := [row for group in collection.groups for row in suites.scores(group)]:
        grids += map(suites.grid, suites.tabled(scores))
        caption.append(suites.CAPTION)
        sections["suites"] = [row.entry() for row in scores]
    if compare:
        rows = []
        for group, own in zip(collection.groups, built, strict=True):
            beside, about = published.compare(group, own)
            grids.append(published.grid(beside, about))
            rows += beside
            remarks += about
        grids += [published.overview(collection.compare_with), *suites.beside(scores)]
        caption += published.CAPTION
        figures = published.figures(collection.compare_with)
        sections["published"] = {"comparisons": rows, "figures": figures}
    if pair:
        sections["paired"] = rows = paired.compare(collection.groups, collection.methods, *pair)
        grids.append(paired.grid(rows, *pair))
        caption.append(paired.CAPTION)
    runs = [run for group in collection.groups for run in group.runs]
    sections["summary"] = {
        "records": sum(len(run.steps) for run in runs),
        "jobs": len(runs),
        "incomplete_cells": sum(table.incomplete for table in flat),
        "cells": sum(cell.counts for table in flat for row in table.rows for cell in row.cells),
        "faults": [fault._asdict() for fault in collection.faults],
    }
    return Document([*caption, *remarks], grids, sections, rows)


def best(collection: Collection) -> Iterator[dict[str, Any]]:
    """For ``carft top``: hparams of each (data set, algorithm, target, trial), method and group."""
    for group, method in itertools.product(collection.groups, collection.methods):
        names = tables.labels(group.runs, listed=group.labels)
        left_out = selection.METHODS[method].leaves_out
        found = selection.select(group.runs, method)
        order = tables.algorithms((one.algorithm for one in found), group.declared)
        # By data set, then in the tables' order, then by target and trial.
        found.sort(key=lambda s: (s.dataset, order.index(s.algorithm), s.target, s.trial))
        for one in found:
            if not left_out and one.target:
                continue  # jobs that leave nothing out select the same for each column
            chosen, run = one.outcome, one.outcome.runs[0]
            drop = {*_FILLED_IN} - overrides(run.job.args).keys()
            kept = {name: value for name, value in run.recorded.items() if name not in drop}
            yield {
                "setting": group.title,
                "selection": method,
                "dataset": one.dataset,
                "algorithm": one.algorithm,
                "test_env": one.target if left_out else None,
                "environment": names[one.dataset][one.target] if left_out else None,
                "trial_seed": one.trial,
                "hparams_seed": chosen.choice,
                "step": int(chosen.step),
                "validation_accuracy": chosen.validation,
                "accuracy": chosen.accuracy if left_out else None,
                "hparams": dict(run.recorded),
                "argument": f"--hparams {shlex.quote(json.dumps(kept, sort_keys=True))}",
                "folders": [run.folder for run in chosen.runs],
            }
