"""The cache folder: what is made once and used by every later job of this user."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from domainbed_carft import files


def folder() -> Path:
    """``$DOMAINBED_CARFT_CACHE``, else ``domainbed_carft`` in the user's cache folder."""
    explicit = os.environ.get("DOMAINBED_CARFT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "domainbed_carft"


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` make a file of the cache, as ``files.write`` has it, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, write_to)
