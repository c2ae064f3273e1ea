"""A file that is whole at any time: written beside its place, then renamed."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` fill a file beside ``path``, then give it that name.

    A reader sees what was there before or the whole file, and of two writers at once the last one
    wins. Permissions are those of the file before, else as the umask has them.
    """
    # With an ending: torch takes none for a name.
    beside = path.with_name(f".carft-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        open(beside, "xb").close()
        write_to(beside)
        if path.exists():
            os.chmod(beside, stat.S_IMODE(path.stat().st_mode))
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
