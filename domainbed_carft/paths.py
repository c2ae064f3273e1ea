"""Paths passed to the Python API, as text, as `pathlib.Path`, or as lists of either."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from domainbed_carft.errors import CarftError, invalid

AnyPath: TypeAlias = str | os.PathLike[str]


def as_path(value: AnyPath) -> Path:
    """Convert a path; raise CarftError for anything else, such as a list or empty text."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise CarftError(invalid("the path", value, "text or a pathlib.Path"))
    if not path or "\0" in path:
        expected = "a path of at least one character and without NUL"
        raise CarftError(invalid("the path", value, expected))
    return Path(path)


def as_text(value: AnyPath | None) -> str | None:
    """Convert a path to text, and None to None."""
    return None if value is None else os.fspath(as_path(value))


def as_paths(values: AnyPath | Iterable[AnyPath]) -> list[Path]:
    """Convert one path, or several, to a list of paths."""
    return [as_path(value) for value in as_list(values)]


def as_list(values: Any) -> list[Any]:
    """Return a list of the items, or of the single value if it is text or not iterable."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return [values]
    return list(values)
