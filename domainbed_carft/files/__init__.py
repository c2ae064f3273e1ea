"""Files: written whole or not at all, never over an input."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftError

# What a process that was killed while it wrote leaves beside the file.
HALF_WRITTEN = ".carft-*.part"

# Files by which a folder is that of a job or a sweep.
_FILES_OF_JOBS = ("results.jsonl", "sweep.json", "lock", "done")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Have the block fill a file beside ``path``, then give it that name; folders are made.

    A reader sees the old content or the whole new file; of two concurrent writers, the last one
    wins. A link stays a link. Permissions are the old file's, else those that the umask gives.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can have put a link at, for this user's eyes alone until it is whole.
    part = target.with_name(f".carft-{secrets.token_hex(8)}.part")
    part.touch(0o600, exist_ok=False)

    try:
        yield part
        part.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else _usual_mode())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save(path: Path, write_to: Callable[[Path], object]) -> None:
    """Have ``write_to`` fill a file beside ``path``, then give it that name; folders are made.

    Raises CarftError if writing fails, and leaves the old file.
    """
    try:
        with replacing(path) as part:
            write_to(part)
    except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
        raise not_written(path, error) from error


def save_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all. Raises CarftError where that fails."""
    with stream(path) as file:
        file.write(text)


@contextlib.contextmanager
def stream(path: Path | None) -> Iterator[TextIO]:
    """A text file in UTF-8 to write line after line, standard output without a path.

    The file appears when the block ends, as with ``replacing``; pipes and devices are written to
    directly. Raises CarftError where writing fails.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return

    # What is open by a name in /dev may be a file that others write to as well.
    is_open = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    try:
        is_device = is_open or (path.exists() and not path.is_file())
        replacement = contextlib.nullcontext(path) if is_device else replacing(path)
        with replacement as part, part.open("w", encoding="utf-8", errors="backslashreplace") as f:
            yield f
    except OSError as error:
        raise not_written(path, error) from error


def require_output(path: Path | None, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise CarftError, before anything takes time, unless ``-o path`` can be written.

    It may be none of the ``inputs``, and no file in the folder of a job or a sweep: whatever lies
    beside records, a manifest or a lock is theirs.
    """
    if path is None:
        return

    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise CarftError(f"-o {path}: expected the name of a file in an existing folder")
    if target in [Path(os.path.realpath(source)) for source in inputs if source]:
        raise CarftError(f"-o {path} would overwrite an input; choose another name")
    if target.exists() and any(target.with_name(name).exists() for name in _FILES_OF_JOBS):
        raise CarftError(f"-o {path} would overwrite a file of a job or sweep; choose another name")


def cache_folder() -> Path:
    """``$DOMAINBED_CARFT_CACHE``, else ``domainbed_carft`` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    explicit = process_variables.CACHE.read()
    return Path(explicit or f"{caches}/domainbed_carft").expanduser()


def not_written(path: Path, error: Exception) -> CarftError:
    """What to raise where ``path``, a file or a folder, could not be written."""
    # torch hides the error of a write behind one of its own.
    reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", error)
    return CarftError(
        f"{path} could not be written: {reason}; choose a writable folder on a disk with free space"
    )


def _usual_mode() -> int:
    """The permissions that the umask gives a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
