"""The jinja templates of ``assets``."""

from __future__ import annotations

from typing import Any


def load_templates(autoescape: bool) -> Any:
    """Return a strict jinja2.Environment of ``assets``, with ``autoescape`` for HTML."""
    import jinja2  # slow to import, and rarely needed

    return jinja2.Environment(
        loader=jinja2.PackageLoader("domainbed_carft", "assets"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
