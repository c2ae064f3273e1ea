"""JSON: everything, with all digits."""

from __future__ import annotations

import json

from domainbed_carft.collect.document import Document


def render(document: Document) -> str:
    """An object of the document's caption and sections."""
    content = {"caption": list(document.caption), **document.sections}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
