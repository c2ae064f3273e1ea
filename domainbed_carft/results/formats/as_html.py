"""One HTML page that needs nothing from anywhere else."""

from __future__ import annotations

from domainbed_carft import text
from domainbed_carft.results.document import Document


def render(document: Document) -> str:
    """Tables with headers for screen readers, notes below; by assets/tables.html.j2."""
    environment = text.templates(autoescape=True)
    environment.filters["shown"] = text.shown
    return environment.get_template("tables.html.j2").render(document=document)
