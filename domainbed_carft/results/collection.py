"""What ``carft collect``, ``top`` and ``report`` read, and the document that ``collect`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import faults as found_wrong
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.manifest import Sweep
from domainbed_carft.results import document, paired, published, selection, settings, tables
from domainbed_carft.results.document import Document
from domainbed_carft.results.settings import Group


class Collection(NamedTuple):
    """Runs in groups that may be averaged, by which methods, and what was wrong.

    ``optional``: of the methods those that nobody has asked for or run jobs for; what their cells
    lack is said, and is no gap. ``compare_with``: published methods, as the manifests name them.
    """

    groups: Sequence[Group]
    methods: Sequence[str]
    faults: Sequence[Fault]
    records: int
    jobs: int
    optional: Sequence[str] = ()
    compare_with: Sequence[str] = ()


class Page(NamedTuple):
    """The document, and how many of how many cells are incomplete; see Collection.optional.

    ``remarks``: what is to be known of the one table for CSV, which has no room for it.
    """

    document: Document
    incomplete: int
    cells: int
    remarks: Sequence[str] = ()


def gather(
    folders: Sequence[Path | str],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    also: str | None = None,
) -> Collection:
    """Read ``folders``, keep apart what does not belong together, count each job once.

    ``methods``: None for those that the sweeps' manifests name, else those that there are jobs for,
    and the one called ``also``.
    Raises CarftError if there is no record, no job for one of ``methods``, or if a job was run
    twice with different records.
    """
    found = records.read(folders)
    if not found.runs:
        wrong = "".join(f"\n{line}" for line in found_wrong.lines(found.faults))
        raise CarftError(
            f"no record below {', '.join(map(str, folders))}, down to {records.DEPTH} levels; "
            f"expected folders of jobs, with results.jsonl{wrong}"
        )
    faults = list(found.faults)
    sweeps: list[Sweep | None] = []
    for folder in folders:
        try:
            sweeps.append(manifest.read(Path(folder)))
        except CarftError as error:
            sweeps.append(None)
            what = f"{error}; until then the records tell what was to be run"
            faults.append(Fault("unreadable", str(folder), what))
    planned = [job for sweep in sweeps if sweep for job in sweep.jobs]
    labels = {name: facts.labels for s in sweeps if s for name, facts in s.datasets.items()}
    groups = []
    for group in settings.groups(found.runs, planned, ignored):
        kept, passed_over = settings.distinct(group.runs)
        groups.append(group._replace(runs=kept, labels=labels))
        faults += passed_over
    counts = {len(run.test_envs) for run in found.runs}
    counts |= {len(job.args["test_envs"]) for job in planned}
    optional: list[str] = []
    if methods:
        there = [name for name in selection.METHODS if _has_jobs(name, counts)]
        for name in methods:
            selection.require_jobs(name, there)
    else:
        methods, optional = _methods(sweeps, counts, also)
    return Collection(
        groups, methods, faults, found.records, sum(len(group.runs) for group in groups), optional,
        list(dict.fromkeys(name for sweep in sweeps if sweep for name in sweep.compare_with)),
    )  # fmt: skip


def _has_jobs(method: str, counts: set[int]) -> bool:
    """Whether there are jobs for it; ``counts``: of test environments."""
    return any(counts - {0}) if selection.METHODS[method].leaves_out else 0 in counts


def _methods(
    sweeps: Sequence[Sweep | None], counts: set[int], also: str | None
) -> tuple[list[str], list[str]]:
    """The methods, and those of them that are optional.

    Unless the manifests name methods leave-one-domain-out is always one, so that nobody misses it;
    it is optional where there are no jobs for it.
    """
    named = {name for sweep in sweeps if sweep for name in sweep.selection}
    asked = {also, *named, *([selection.LEAVE_ONE_OUT] if 2 in counts else [])}
    all_name_some = all(sweep and sweep.selection for sweep in sweeps)
    methods = [
        name
        for name, method in selection.METHODS.items()
        if _has_jobs(name, counts)
        and not (all_name_some and method.leaves_out and name not in asked)
    ]
    optional = {selection.LEAVE_ONE_OUT} - asked
    return methods, [name for name in methods if name in optional]


def build(collection: Collection, pair: Sequence[str] | None = None, compare: bool = False) -> Page:
    """Everything that was asked for; ``pair``: two algorithms.

    ``compare``: with the published figures, of which those of the methods that the manifests name
    are shown, or all.
    """
    built = [tables.build(group, collection.methods) for group in collection.groups]
    flat = [table for group in built for table in group]
    grids = [document.grid(table) for table in flat]
    remarks = notes(collection)
    caption = [*document.CAPTION, *remarks]
    entries = [document.table_entry(table) for table in flat]
    rows = document.cell_records(entries)
    columns: Sequence[str] = ()
    sections: dict[str, Any] = {"tables": entries, "notes": list(remarks)}
    if compare:
        rows, columns = [], published.Comparison._fields
        for group, own in zip(collection.groups, built, strict=True):
            beside, about = published.compare(group, own)
            grids.append(published.grid(beside, about))
            rows += [one._asdict() for one in beside]
            remarks += [_of_group(group, remark) for remark in about]
        grids.append(published.overview(collection.compare_with))
        caption += published.CAPTION
        figures = [figure._asdict() for figure in published.figures(collection.compare_with)]
        sections["published"] = {"comparisons": rows, "figures": figures}
    if pair:
        found = paired.compare(collection.groups, collection.methods, *pair)
        grids.append(paired.grid(found, *pair))
        caption.append(paired.CAPTION)
        sections["paired"] = rows = paired.entries(found, *pair)
    faults = [fault._asdict() for fault in collection.faults]
    counts = {"records": collection.records, "jobs": collection.jobs}
    sections["summary"] = {**counts, "faults": faults}
    counting = [table for table in flat if table.method not in collection.optional]
    return Page(
        Document("Results", caption, grids, sections, rows, columns),
        sum(table.incomplete for table in counting),
        sum(table.size for table in counting),
        remarks,
    )


def notes(collection: Collection) -> list[str]:
    """Remarks on what the runs of each group do not share."""
    return [_of_group(group, note) for group in collection.groups for note in group.notes]


def _of_group(group: Group, note: str) -> str:
    return f"{group.title}: {note}" if group.title else note
