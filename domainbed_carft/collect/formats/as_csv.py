"""CSV: a row a cell, all digits; percent as in the tables."""

from __future__ import annotations

import csv
import io

from domainbed_carft.collect.document import Document


def render(document: Document) -> str:
    """The one table of ``document.records``; an empty field where there is no value."""
    out = io.StringIO()
    if document.records:
        writer = csv.DictWriter(out, list(document.records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(document.records)
    return out.getvalue()
