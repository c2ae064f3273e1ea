"""Writing what was collected to a file that is whole at any time."""

from __future__ import annotations

import os
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.collect import scan
from domainbed_carft.errors import CarftError
from domainbed_carft.job_folder import ATTEMPTS, ERRORS, LOCK, OUTPUT, STATE, WEIGHTS

# Names of files, and what is in a folder where they are a job's, or a sweep's.
_KNOWN_BY = {
    **dict.fromkeys((*scan.SURE, OUTPUT, ERRORS, *WEIGHTS.values()), tuple(scan.SURE)),
    **dict.fromkeys((STATE, LOCK, ATTEMPTS), tuple(scan.SURE)),
    **dict.fromkeys((scan.DECLARATION, scan.LAUNCHED), (scan.LAUNCHED,)),
}
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
    folder, name = os.path.split(os.path.realpath(path))
    beside = _KNOWN_BY.get(name, ())
    if any(os.path.exists(os.path.join(folder, other)) for other in beside):
        raise CarftError(
            f"--output {path} is a file of a job, or of a sweep, and other commands read it; "
            "expected another place"
        )


def can_be_replaced(path: Path) -> bool:
    """Not so a device or a pipe, a file that is open by a name in /dev, one in a closed folder."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return False
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):
        return False
    return os.access(os.path.dirname(os.path.realpath(path)), os.W_OK)
