"""The document that ``carft collect`` writes: tables, comparisons, and what was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed_carft.results import document, paired, published, selection, tables
from domainbed_carft.results.document import Document, Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table

if TYPE_CHECKING:
    from domainbed_carft.results.collection import Collection


class Page(NamedTuple):
    """The document, and how many of how many cells lack something; see Collection.optional.

    ``remarks``: what is to be known of the one table for CSV, which has no room for it.
    """

    document: Document
    incomplete: int
    cells: int
    remarks: Sequence[str] = ()


def build(
    collection: Collection,
    pair: Sequence[str] | None = None,
    compare: bool = False,
    methods: Sequence[str] = (),
) -> Page:
    """Everything that was asked for; ``pair``: two algorithms.

    ``compare``: with the published figures, of which those of ``methods`` are shown, or all.
    """
    built = [tables.build(group, collection.methods) for group in collection.groups]
    flat = [table for group in built for table in group]
    grids = [document.grid(table) for table in flat]
    caption = caption_of(collection)
    sections: dict[str, Any] = {"tables": [document.table_entry(table) for table in flat]}
    records = document.cell_records(flat)
    remarks = notes(collection)
    caption += remarks
    sections["notes"] = remarks
    columns: Sequence[str] = ()
    if compare:
        beside, more, records, about = _published(collection, built, methods)
        columns = published.COLUMNS
        remarks = [*remarks, *about]
        grids += [*beside, published.overview(methods)]
        caption += published.CAPTION
        sections["published"] = more
    if pair:
        a, b = pair
        found = paired.compare(collection.groups, collection.methods, a, b)
        grids.append(paired.grid(found, a, b))
        caption.append(paired.CAPTION)
        sections["paired"] = records = paired.entries(found, a, b)
    sections["summary"] = _summary(collection)
    counting = [table for table in flat if table.method not in collection.optional]
    incomplete = sum(table.incomplete for table in counting)
    cells = sum(table.size for table in counting)
    page = Document("Results", caption, grids, sections, records, columns)
    return Page(page, incomplete, cells, remarks)


def _summary(collection: Collection) -> dict[str, Any]:
    return {
        "records": collection.records,
        "jobs": collection.jobs,
        "faults": [fault._asdict() for fault in collection.faults],
    }


def caption_of(collection: Collection) -> list[str]:
    """What the numbers of the tables are."""
    caption = list(document.CAPTION)
    if collection.methods == [selection.IN_DOMAIN]:
        caption[0] = (
            "Accuracy in % on each environment's out-split at the last step; no environment was "
            f"left out. Cells: mean {document.PLUS_MINUS} standard error (n, the number of trials)."
        )
    return caption


def notes(collection: Collection) -> list[str]:
    """Remarks on what the runs of each group do not share."""
    return [_told(group, note) for group in collection.groups for note in group.notes]


def _told(group: Group, note: str) -> str:
    return f"{group.title}: {note}" if group.title else note


def _published(
    collection: Collection, built: Sequence[Sequence[Table]], methods: Sequence[str]
) -> tuple[list[Grid], Any, list[dict[str, Any]], list[str]]:
    grids = []
    records = []
    told = []
    for group, own in zip(collection.groups, built, strict=True):
        found, remarks = published.compare(group, own)
        grids.append(published.grid(found, remarks))
        told += [_told(group, remark) for remark in remarks]
        records += published.entries(found)
    figures = [figure._asdict() for figure in published.figures(methods)]
    return grids, {"comparisons": records, "figures": figures}, records, told
