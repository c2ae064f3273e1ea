"""Libraries that are loaded only when they are asked for."""

from __future__ import annotations

import importlib


def problems(name: str, wanted_by: str) -> list[str]:
    """Say if a library cannot be imported, and how to get it."""
    try:
        found = importlib.import_module(name)
    except Exception as error:  # a broken installation may raise anything
        reason = str(error) or type(error).__name__
    else:
        # A folder of that name, as these libraries leave them, is an empty package.
        if getattr(found, "__file__", None):
            return []
        reason = "it is not installed"
    return [
        f"{wanted_by} needs {name}, which cannot be loaded ({reason}): pip install {name}, or "
        "pip install 'domainbed-carft[log]'."
    ]
