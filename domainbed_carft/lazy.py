"""Modules of a package as its attributes, imported when they are first used."""

import importlib


def imported_attribute(package: str, name: str) -> object:
    """The module of this name in a package, imported now; AttributeError if there is none."""
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
