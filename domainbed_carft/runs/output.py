"""Where results go: standard output, or a file that is whole or not there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.results import output


def require_file(path: Path | None, read: Iterable[Path | str | None] = ()) -> None:
    """Raise CarftError, before anything takes time, unless ``path`` can be a file's.

    It must be none of those that are ``read``.
    """
    if path is None:
        return
    if os.path.isdir(path):
        raise CarftError(f"--output {path} is a folder; expected the name of a file")
    if not os.path.isdir(path.parent):
        raise CarftError(f"--output {path}: {path.parent} is no folder; make it first")
    require_no_input(path, read)


def require_no_input(path: Path, read: Iterable[Path | str | None]) -> None:
    """Raise CarftError for a job's file, and for one of those that are ``read``."""
    output.require_no_input(path)
    there = os.path.exists(path)
    if there and any(other and os.path.exists(other) and path.samefile(other) for other in read):
        raise CarftError(f"--output {path} is what this command reads; choose another name")


def write(text: str, path: Path | None) -> None:
    """Write ``text`` to ``path``, to standard output without one."""
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        output.write(text, path)


def save(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` make a file beside ``path``, then rename it.

    Raises CarftError where it cannot be written; what was there before is untouched then.
    """
    try:
        files.write(path, write_to)
    except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
        raise CarftError(
            f"{path} cannot be written: {error}. Expected a place in a folder that may be written "
            "to, with room on its disk"
        ) from error


@contextlib.contextmanager
def stream(path: Path | None) -> Iterator[TextIO]:
    """A text file to write line after line, standard output without a path.

    The file is called ``path`` once the block is done, and has ``.part`` behind its name before,
    unless it is a pipe or a device. Raises CarftError where it cannot be written.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    whole = os.path.realpath(path)  # a link stays one
    replaced = output.can_be_replaced(path)
    part = Path(f"{whole}.part") if replaced else path
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        if replaced:
            os.replace(part, whole)
    except OSError as error:
        raise CarftError(
            f"{path} cannot be written: {error}. Expected a place in a folder that may be written "
            f"to, with room on its disk; what was done is in {part}, if that is there"
        ) from error
