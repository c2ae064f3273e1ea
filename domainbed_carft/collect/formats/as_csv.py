"""CSV: a row a cell, all digits; percent as in the tables."""

from __future__ import annotations

import pandas as pd

from domainbed_carft.collect.document import Document


def render(document: Document) -> str:
    """The one table of ``document.records``; an empty field where there is no value."""
    if not document.records:
        return ""
    return pd.DataFrame(document.records).to_csv(index=False, lineterminator="\n")
