"""Writing what was collected to a file that is whole at any time."""

from __future__ import annotations

import os
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import CarftError

_UNENCODABLE = "backslashreplace"  # as Python has it for the error stream


def write(text: str, path: Path) -> None:
    """Write ``text`` in UTF-8; what ``path`` had before is kept until all of it is written.

    A link stays one, and a file keeps its permissions. Raises CarftError, naming ``path``.
    """
    content = text.encode("utf-8", _UNENCODABLE)
    try:
        if can_be_replaced(path):
            files.write(Path(os.path.realpath(path)), lambda beside: beside.write_bytes(content))
        else:
            path.write_bytes(content)
    except OSError as error:
        raise CarftError(
            f"--output {path} cannot be written ({error.strerror}); expected room for a file in a "
            "folder that is there"
        ) from error


def can_be_replaced(path: Path) -> bool:
    """Not so a device or a pipe, a file that is open by a name in /dev, one in a closed folder."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return False
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):
        return False
    return os.access(os.path.dirname(os.path.realpath(path)), os.W_OK)
