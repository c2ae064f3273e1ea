"""What a caller of the Python API gives as a path, or as several."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from domainbed_carft.errors import CarftError, invalid

AnyPath: TypeAlias = str | os.PathLike[str]


def as_path(value: AnyPath) -> Path:
    """The path; raises CarftError for what is none, such as a list or empty text."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise CarftError(invalid("the path", value, "text or a pathlib.Path"))
    return Path(path)


def as_text(value: AnyPath | None) -> str | None:
    """The path as text, None without one; raises CarftError for what is none."""
    return None if value is None else os.fspath(as_path(value))


def as_paths(values: AnyPath | Iterable[AnyPath]) -> list[Path]:
    """One path, or several, as a list; raises CarftError for what is none."""
    return [as_path(value) for value in as_list(values)]


def as_list(values: Any) -> list[Any]:
    """The values, or the one value if it is a path or nothing that has items."""
    is_one = isinstance(values, (str, bytes)) or not isinstance(values, Iterable)
    return [values] if is_one else list(values)
