"""A document as text in one of the formats: a module each, with one function ``render``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from domainbed_carft.results.document import Document

NAMES = ("text", "markdown", "csv", "json", "html", "latex")


def render(document: Document, name: str) -> str:
    """``document`` in the format called ``name``, one of NAMES."""
    module = import_module(f"{__name__}.as_{name}")
    function: Callable[[Document], str] = module.render
    return function(document)
