"""The templates in ``assets``, each with its own environment of jinja2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def environment(autoescape: bool) -> jinja2.Environment:
    """One where an unknown name is an error, and a line of a block leaves none behind.

    ``autoescape``: for HTML. Filters are the caller's to add before a template is read.
    """
    import jinja2  # for what is written by a template only: it takes a while to load

    return jinja2.Environment(
        loader=jinja2.PackageLoader("domainbed_carft", "assets"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
