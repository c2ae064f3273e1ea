"""CSV: a row a cell, all digits; percent as in the tables."""

from __future__ import annotations

import pandas as pd

from domainbed_carft.results.document import Document


def render(document: Document) -> str:
    """The one table of ``document.records``; an empty field where there is no value."""
    columns = None if document.records else [*document.columns]
    frame = pd.DataFrame(document.records, columns=columns)
    return frame.to_csv(index=False, lineterminator="\n")
