"""The cache folder: what is made once and used by every later job of this user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """``$DOMAINBED_CARFT_CACHE``, else ``domainbed_carft`` in the user's cache folder."""
    explicit = os.environ.get("DOMAINBED_CARFT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "domainbed_carft"


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` make a temporary file beside ``path``, then rename it.

    A reader sees nothing or the whole file, and of two writers at once the last one wins. Whoever
    may read what this user writes may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write_to(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
