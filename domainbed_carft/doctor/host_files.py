"""What the files of a checkout tell without being run: its scripts, and the libraries it imports.

A failing import names one missing library; the next shows only once that one is installed.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# The modules of a checkout from which a training job imports all others.
STARTING_POINTS = ("algorithms", "hparams_registry", "datasets", "scripts.train")


def training_scripts(package: Path) -> list[str]:
    """The files by which the checkout of the package ``domainbed`` trains, below its root."""
    root = package.parent
    paths = [*root.glob("train*.py"), *package.glob("scripts/*train*.py")]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def missing_libraries(package: Path) -> list[str]:
    """The libraries that training jobs of the package ``domainbed`` import and that are missing.

    Imports inside functions, conditions and ``try`` do not count: a job may do without them.
    """
    waiting = list(STARTING_POINTS)
    read = set()
    missing = set()
    while waiting:
        module = waiting.pop()
        path = _file_of(package, module)
        if path is None or path in read:
            continue

        read.add(path)
        for imported in _imported_modules(path, package):
            library, _, rest = imported.partition(".")
            if library == package.name:
                waiting.append(rest)
            elif find_spec(library) is None:
                missing.add(library)
    return sorted(missing)


def _file_of(package: Path, module: str) -> Path | None:
    """The file of a module below ``package``, "" for the package itself; None if it has none."""
    path = package.joinpath(*module.split(".")) if module else package
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported_modules(path: Path, package: Path) -> Iterator[str]:
    """The modules that a file imports at its top, with every name that may be one.

    Nothing for a file that is not Python of this interpreter.
    """
    statements: list[ast.stmt] = []
    with contextlib.suppress(SyntaxError, ValueError):
        statements = ast.parse(path.read_bytes()).body

    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            if statement.level:
                folder = path.parents[statement.level - 1].relative_to(package.parent)
                module = ".".join(filter(None, [*folder.parts, module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in statement.names)
