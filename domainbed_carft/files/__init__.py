"""Atomic writes and safe reads: outputs never replace an input or follow an untrusted link."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftError

# Incomplete files that a process leaves if it is killed while it writes.
PART_FILE_PATTERN = ".carft-*.part"

_BLOCK = 4096  # bytes of a block of most file systems

# A folder with one of these belongs to a job or a sweep.
_JOB_FILES = ("results.jsonl", "sweep.json", "lock", "done")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; raise OSError for anything else."""
    return open(path, "rb", opener=_open_without_waiting)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file; raise OSError for anything else."""
    with open_regular(path) as file:
        return file.read()


def open_nofollow(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file for writing, without following a link; an opener for `open`.

    Raises:
        OSError: if ``path`` is a link or not a regular file.
    """
    try:
        return _open_without_waiting(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        reason = "it is a link, which is not written through; remove it"
        raise OSError(errno.ELOOP, reason, str(path)) from error


def _open_without_waiting(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file; raise OSError at once for a pipe, a socket, a device or a folder."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor

    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    reason = "it is a pipe, a socket or a device, expected a regular file"
    raise OSError(errno.EINVAL, reason, str(path))


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file (flock) without waiting; return False if another process holds the lock.

    The lock ends when all duplicates of the descriptor are closed, including duplicates in child
    processes.

    Args:
        descriptor: the open file.
        shared: share the lock with other readers.

    Raises:
        OSError: if the file system does not support locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def append_line(path: Path, line: str) -> None:
    """Append a line, on a new line even if a full disk cut the last one; can raise OSError."""
    with open(path, "ab+", buffering=0, opener=open_nofollow) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        start = "" if file.read(1) in (b"", b"\n") else "\n"
        content = f"{start}{line}\n".encode()
        while content:  # a full disk accepts a part, and then raises at the next write
            content = content[file.write(content) :]


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Let the block write a temporary file, then rename it to ``path``.

    A reader sees either the old content or all of the new content, and the last of two concurrent
    writers wins. A link is replaced, not followed. The permissions of an old file are kept.
    """
    # The name is random, so that an attacker cannot place a link there beforehand.
    part = path.with_name(f".carft-{secrets.token_hex(8)}.part")
    part.touch(0o600, exist_ok=False)

    try:
        yield part
        if path.is_file() and not path.is_symlink():
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        else:
            part.chmod(_usual_mode())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` write a temporary file, then rename it to ``path``; create its folders.

    Raises:
        CarftError: if writing fails; an old file is then unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as part:
            write_to(part)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        raise write_error(path, error) from error


def save_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically; raise CarftError if that fails."""
    save_bytes(path, text.encode(errors="backslashreplace"))


def save_bytes(path: Path, content: bytes) -> None:
    """Write bytes, atomically; raise CarftError if that fails."""
    save(path, lambda part: part.write_bytes(content))


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Open the file of the option -o for writing, or standard output without one.

    A regular file appears when the block ends. Links are followed. Pipes and devices are written
    to directly.

    Raises:
        CarftError: if writing fails.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return

    # A name such as /dev/fd/3 can be a regular file that other processes write to as well.
    is_open = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    try:
        is_device = is_open or (path.exists() and not path.is_file())
        target = Path(os.path.realpath(path))
        replacement = contextlib.nullcontext(path) if is_device else replace_atomically(target)
        with replacement as part, part.open("w", encoding="utf-8", errors="backslashreplace") as f:
            yield f
    except OSError as error:
        raise write_error(path, error) from error


def require_output(path: Path | None, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise CarftError if ``-o path`` cannot be written, or is an input or a file of a job.

    To be called before the work starts.
    """
    if path is None:
        return

    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise CarftError(f"-o {path}: expected the name of a file in an existing folder")
    if target in [Path(os.path.realpath(source)) for source in inputs if source]:
        raise CarftError(f"-o {path} would overwrite an input; choose another name")
    if target.exists() and any(target.with_name(name).exists() for name in _JOB_FILES):
        raise CarftError(f"-o {path} would overwrite a file of a job or sweep; choose another name")
    if target.is_file() or not os.path.lexists(target):  # not a pipe or a device
        require_space(target)


def require_space(output: Path) -> None:
    """Raise CarftError if a block cannot be written at the place of a file or folder.

    To be called before the work starts. A later write can still fill the disk.
    """
    folder = next(place for place in (output, *output.absolute().parents) if place.is_dir())
    part = folder / f".carft-{secrets.token_hex(8)}.part"
    try:
        try:
            part.write_bytes(bytes(_BLOCK))
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(output, error) from error


def require_folder(path: Path) -> None:
    """Raise CarftError if ``-o path``, a folder to write, is a file."""
    if os.path.lexists(path) and not path.is_dir():
        raise CarftError(f"-o {path} is a file, expected a folder; choose another name")


def cache_folder() -> Path:
    """Return ``$DOMAINBED_CARFT_CACHE``, or ``domainbed_carft`` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    explicit = process_variables.CACHE.read()
    return Path(explicit or f"{caches}/domainbed_carft").expanduser()


def write_error(path: Path, error: Exception) -> CarftError:
    """Return the CarftError to raise if a file or folder could not be written."""
    # torch hides the error of a write behind another one.
    reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", error)
    return CarftError(
        f"{path} could not be written: {reason}; choose a writable folder on a disk with free space"
    )


def _usual_mode() -> int:
    """Return the permissions that the umask gives a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
