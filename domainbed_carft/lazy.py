"""Modules as attributes of their package, imported on first use."""

import importlib


def import_attribute(package: str, name: str) -> object:
    """Import and return a module of a package; AttributeError if it does not exist."""
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
