"""Files with a user's own methods.

A file is named by the process variable METHODS or by an entry point of an installed package, both
of this process, and never by a sweep file, a manifest or a record. This module runs no file and
does not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from domainbed_carft import process_variables

ENTRY_POINTS = "domainbed_carft.methods"  # the group
VARIABLE = process_variables.METHODS.name


class MethodFile(NamedTuple):
    """A file with a user's methods."""

    path: Path | None  # absolute; None if the module of an entry point is not found
    named_by: str  # the variable or the entry point, for messages
    module: str = ""  # the module of an entry point


def find_files() -> list[MethodFile]:
    """Return the distinct files with methods: files named by the variable, then by packages."""
    listed = [MethodFile(path, VARIABLE) for path in _parse_variable()]
    distinct: dict[object, MethodFile] = {}
    for file in (*listed, *_find_package_files()):
        distinct.setdefault(file.path.resolve() if file.path else file, file)
    return [*distinct.values()]


def get_variables() -> dict[str, str]:
    """Return the process variable that passes this process's methods to jobs (absolute paths)."""
    paths = _parse_variable()
    return {VARIABLE: os.pathsep.join(map(str, paths))} if paths else {}


def _parse_variable() -> list[Path]:
    paths = process_variables.METHODS.read().split(os.pathsep)
    return [Path(path).absolute() for path in paths if path]


@functools.cache
def _find_package_files() -> tuple[MethodFile, ...]:
    """Find the files of the entry points without importing their modules."""
    files = []
    for point in metadata.entry_points(group=ENTRY_POINTS):
        owner = f" of {point.dist.name}" if point.dist else ""
        named_by = f"the entry point {point.name} = {point.value}{owner}"
        files.append(MethodFile(_find_source(point.value), named_by, point.value))
    return tuple(files)


def _find_source(module: str) -> Path | None:
    """Find the source file of a module without importing it; return None if there is none."""
    top, *names = module.split(".")
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)  # for a submodule it would import the package
        for name in names:
            places = spec.submodule_search_locations if spec else None
            full_name = f"{spec.name}.{name}" if spec else name
            spec = importlib.machinery.PathFinder.find_spec(full_name, places or [])
        if spec and spec.has_location and str(spec.origin).endswith(".py"):
            return Path(str(spec.origin)).absolute()
    return None
