"""Writing what was collected to a file that is whole at any time."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import scan
from domainbed_carft.jobs.folder import ATTEMPTS, ERRORS, LOCK, OUTPUT, STATE, WEIGHTS

# Names of a job's files, and what is in a folder where they are one's.
_JOBS = re.compile(
    "|".join(map(re.escape, (*scan.SURE, OUTPUT, ERRORS, *WEIGHTS.values(), STATE, LOCK, ATTEMPTS)))
    + r"|model_step\d+\.pkl"
)
_BESIDE_JOBS = (*scan.SURE, *WEIGHTS.values())
_UNENCODABLE = "backslashreplace"  # as Python has it for the error stream


def write(text: str, path: Path) -> None:
    """Write ``text`` in UTF-8; what ``path`` had before is kept until all of it is written.

    A link stays one, and a file keeps its permissions. Raises CarftError, naming ``path``.
    """
    require_no_input(path)
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


def require_no_input(path: Path) -> None:
    """Raise CarftError for a file that a job has, or would have, and what declares a sweep."""
    if any(map(_is_read_by_others, {os.path.abspath(path), os.path.realpath(path)})):
        raise CarftError(
            f"--output {path} is a file of a job, or of a sweep, and other commands read it; "
            "expected another place"
        )


def _is_read_by_others(path: str) -> bool:
    folder, name = os.path.split(path)
    beside: Sequence[str] = ()
    if _JOBS.fullmatch(name):
        beside = _BESIDE_JOBS
    elif name in (scan.DECLARATION, scan.LAUNCHED):
        beside = (scan.LAUNCHED,)
    return any(os.path.exists(os.path.join(folder, other)) for other in beside)


def can_be_replaced(path: Path) -> bool:
    """Not so a device or a pipe, a file that is open by a name in /dev, one in a closed folder."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return False
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):
        return False
    return os.access(os.path.dirname(os.path.realpath(path)), os.W_OK)
