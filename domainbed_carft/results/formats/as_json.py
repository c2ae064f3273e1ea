"""JSON: everything, with all digits."""

from __future__ import annotations

import json
from typing import Any

from domainbed_carft.results.document import Document


def render(document: Document) -> str:
    """An object of the document's caption and sections."""
    return text({"caption": list(document.caption), **document.sections})


def text(content: Any) -> str:
    """As JSON that every program reads, in any encoding: null for what is no number, and ASCII."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError:
        plain = json.loads(json.dumps(content), parse_constant=lambda name: None)
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"
