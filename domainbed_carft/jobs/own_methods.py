"""Methods from a user's own files: where these are, and what their source text declares. No torch.

A file is named by the process variable METHODS or by an entry point of an installed package, both
of this process, and never by a sweep file, a manifest or a record. Nothing here runs a file.
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
from domainbed_carft.jobs.algorithms import SHIPPED, DeclaredAlgorithm, find_algorithms, sort_by_row

ENTRY_POINTS = "domainbed_carft.methods"  # the group
VARIABLE = process_variables.METHODS.name


class MethodFile(NamedTuple):
    """A file with a user's methods.

    ``path``: absolute, None where the ``module`` of an entry point is not found; ``named_by``: what
    names the file, for messages.
    """

    path: Path | None
    named_by: str
    module: str = ""


def files() -> list[MethodFile]:
    """The files that this process has methods from, each once: the variable's, then packages'."""
    listed = [MethodFile(path, VARIABLE) for path in _paths_of_variable()]
    distinct: dict[object, MethodFile] = {}
    for file in (*listed, *_files_of_packages()):
        distinct.setdefault(file.path.resolve() if file.path else file, file)
    return [*distinct.values()]


def variables() -> dict[str, str]:
    """The process variable by which jobs get this process's methods, with absolute paths."""
    paths = _paths_of_variable()
    return {VARIABLE: os.pathsep.join(map(str, paths))} if paths else {}


def known() -> dict[str, DeclaredAlgorithm]:
    """Name -> file and style of all algorithms whose style is known, in the order of their rows.

    Those of files that cannot be read are left out.
    """
    algorithms: dict[str, DeclaredAlgorithm] = {}
    for file in files():
        if file.path is not None:
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                algorithms |= dict(find_algorithms(file.path))
    return sort_by_row({**algorithms, **SHIPPED})


def _paths_of_variable() -> list[Path]:
    paths = process_variables.METHODS.read().split(os.pathsep)
    return [Path(path).absolute() for path in paths if path]


@functools.cache
def _files_of_packages() -> tuple[MethodFile, ...]:
    """The modules of the entry points, which reading finds without importing them."""
    files = []
    for point in metadata.entry_points(group=ENTRY_POINTS):
        owner = f" of {point.dist.name}" if point.dist else ""
        named_by = f"the entry point {point.name} = {point.value}{owner}"
        files.append(MethodFile(_source_of(point.value), named_by, point.value))
    return tuple(files)


def _source_of(module: str) -> Path | None:
    """The source file of a module; None if it has none, or there is no such module."""
    top, *names = module.split(".")
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)  # which imports nothing, unlike that of a submodule
        for name in names:
            places = spec.submodule_search_locations if spec else None
            full_name = f"{spec.name}.{name}" if spec else name
            spec = importlib.machinery.PathFinder.find_spec(full_name, places or [])
        if spec and spec.has_location and str(spec.origin).endswith(".py"):
            return Path(str(spec.origin)).absolute()
    return None
