"""What ``carft collect``, ``top`` and ``report`` read, and the document that ``collect`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.jobs.records import Fault
from domainbed_carft.results import document, paired, published, selection, settings, tables
from domainbed_carft.results.document import Document
from domainbed_carft.results.settings import Group


class Collection(NamedTuple):
    """Runs in groups that may be averaged, by which methods, and what was wrong.

    ``compare_with``: published methods, as the manifests name them.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    faults: Sequence[Fault]
    records: int
    jobs: int
    compare_with: Sequence[str]


def gather(
    folders: Sequence[Path | str],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    also: str | None = None,
) -> Collection:
    """Read ``folders``, keep apart what does not belong together, count each job once.

    ``methods``: None for those that the sweeps' manifests name, else those that there are jobs for,
    and the one called ``also``. Raises CarftError if there is no record, no job for a method that
    is asked for, or if a job was run twice with different records.
    """
    runs, faults, count = records.read(folders)
    if not runs:
        wrong = "".join(f"\n{line}" for line in records.told(faults))
        raise CarftError(
            f"no record below {', '.join(map(str, folders))}, down to {records.DEPTH} levels; "
            f"expected folders of jobs, with results.jsonl{wrong}"
        )
    sweeps: list[Sweep] = []
    for folder in folders:
        try:
            sweeps.append(manifest.read(Path(folder)) or Sweep(()))
        except CarftError as error:
            sweeps.append(Sweep(()))
            what = f"{error}; until then the records tell what was to be run"
            faults.append(Fault("unreadable", str(folder), what))
    planned = [job for sweep in sweeps for job in sweep.jobs]
    labels = {name: facts.labels for sweep in sweeps for name, facts in sweep.datasets.items()}
    groups = []
    for group in settings.groups(runs, planned, ignored):
        kept, passed_over = settings.distinct(group.runs)
        groups.append(group._replace(runs=kept, labels=labels))
        faults += passed_over
    left_out = {len(run.test_envs) for run in runs}
    left_out |= {len(job.args["test_envs"]) for job in planned}
    there = [
        name
        for name, method in selection.METHODS.items()
        if (any(left_out) if method.leaves_out else 0 in left_out)
    ]
    for name in (*(methods or ()), *filter(None, [also])):
        if name not in there:
            raise CarftError(
                f"--select {name}: there are no jobs for it; expected one of {', '.join(there)}"
            )
    return Collection(
        groups, methods or _methods(there, sweeps, also, left_out), faults, count,
        sum(len(group.runs) for group in groups),
        list(dict.fromkeys(name for sweep in sweeps for name in sweep.compare_with)),
    )  # fmt: skip


def _methods(
    there: Sequence[str], sweeps: Sequence[Sweep], also: str | None, left_out: set[int]
) -> list[str]:
    """Of the methods that have jobs those that are named, or all where a folder names none."""
    named = {name for sweep in sweeps for name in sweep.selection} | {also, selection.IN_DOMAIN}
    if not all(sweep.selection for sweep in sweeps):
        named |= {*selection.METHODS} - {selection.LEAVE_ONE_OUT}
    if 2 in left_out:  # these jobs serve nothing else
        named.add(selection.LEAVE_ONE_OUT)
    return [name for name in there if name in named]


def build(
    collection: Collection, pair: Sequence[str] | None = None, compare: bool = False
) -> Document:
    """Everything that was asked for; ``pair``: two algorithms.

    ``compare``: with the published figures, of which those of the methods that the manifests name
    are shown, or all.
    """
    built = [tables.build(group, collection.methods) for group in collection.groups]
    flat = [table for group in built for table in group]
    grids = [document.grid(table) for table in flat]
    remarks = [note for group in collection.groups for note in group.notes]
    caption = [*document.CAPTION]
    entries = [document.table_entry(table) for table in flat]
    rows = document.cell_records(entries)
    sections: dict[str, Any] = {"tables": entries, "notes": list(remarks)}
    if compare:
        rows = []
        for group, own in zip(collection.groups, built, strict=True):
            beside, about = published.compare(group, own)
            grids.append(published.grid(beside, about))
            rows += [one._asdict() for one in beside]
            remarks += about
        grids.append(published.overview(collection.compare_with))
        caption += published.CAPTION
        figures = [figure._asdict() for figure in published.figures(collection.compare_with)]
        sections["published"] = {"comparisons": rows, "figures": figures}
    if pair:
        found = paired.compare(collection.groups, collection.methods, *pair)
        grids.append(paired.grid(found, *pair))
        caption.append(paired.CAPTION)
        sections["paired"] = rows = [one._asdict() for one in found]
    sections["summary"] = {
        "records": collection.records,
        "jobs": collection.jobs,
        "incomplete_cells": sum(table.incomplete for table in flat),
        "cells": sum(table.size for table in flat),
        "faults": [fault._asdict() for fault in collection.faults],
    }
    return Document("Results", [*caption, *remarks], grids, sections, rows, remarks)
