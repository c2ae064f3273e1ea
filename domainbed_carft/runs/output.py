"""Where results go; to be merged into files.py with the room's port."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from domainbed_carft.files import require_output, save, save_text, stream

__all__ = ["require_file", "require_no_input", "save", "stream", "write"]


def require_file(path: Path | None, read: Iterable[Path | str | None] = ()) -> None:
    """As ``files.require_output``."""
    require_output(path, read)


def require_no_input(path: Path, read: Iterable[Path | str | None]) -> None:
    """As ``files.require_output``."""
    require_output(path, read)


def write(text: str, path: Path | None) -> None:
    """Write ``text`` to ``path``, to standard output without one."""
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        save_text(path, text)
