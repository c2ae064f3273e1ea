"""Files: written whole or not at all, never over an input, never through somebody else's link."""

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

# What a process that was killed while it wrote leaves beside the file.
PART_FILE_PATTERN = ".carft-*.part"

# Files by which a folder is that of a job or a sweep.
_FILES_OF_JOBS = ("results.jsonl", "sweep.json", "lock", "done")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, opened at its first byte; a link to one is followed.

    Does not wait for a pipe's writer. Raises OSError if it is anything else.
    """
    return open(path, "rb", opener=_open_without_waiting)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def open_nofollow(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of the regular file at ``path``, which ``flags`` may create.

    Raises OSError if it is a link, whose target would be written to, or no regular file.
    """
    try:
        return _open_without_waiting(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        reason = "it is a link, which is not written through; remove it"
        raise OSError(errno.ELOOP, reason, str(path)) from error


def _open_without_waiting(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of a regular file; OSError for a pipe, a socket, a device or a folder."""
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
    """Lock an open file (flock) without waiting; False if another process has locked it.

    The lock ends when all descriptors of this opening are closed, those of child processes, too. It
    can be ``shared`` with others that only look. Raises OSError if the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def append_line(path: Path, line: str) -> None:
    """Append a line, after a line break if a full disk had cut the line before.

    Raises OSError as `open_nofollow`.
    """
    with open(path, "ab+", buffering=0, opener=open_nofollow) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        is_cut = file.read(1) not in (b"", b"\n")
        content = f"\n{line}\n".encode() if is_cut else f"{line}\n".encode()
        while content:  # all of it at once, unless the disk is full: then the next write says so
            content = content[file.write(content) :]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Have the block fill a file beside ``path``, then give it that name.

    A reader sees the old content or the whole new file; of two concurrent writers, the last one
    wins. A link is replaced, not followed. Permissions are the old file's, else those that the
    umask gives.
    """
    # A name that nobody can have put a link at, for this user's eyes alone until it is whole.
    part = path.with_name(f".carft-{secrets.token_hex(8)}.part")
    part.touch(0o600, exist_ok=False)

    try:
        yield part
        is_file = path.is_file() and not path.is_symlink()
        part.chmod(stat.S_IMODE(path.stat().st_mode) if is_file else _usual_mode())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save(path: Path, write_to: Callable[[Path], object]) -> None:
    """Have ``write_to`` fill a file beside ``path``, then give it that name; folders are made.

    Raises CarftError if writing fails, and leaves the old file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            write_to(part)
    except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
        raise write_error(path, error) from error


def save_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all. Raises CarftError where that fails."""
    save_bytes(path, text.encode(errors="backslashreplace"))


def save_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, whole or not at all. Raises CarftError where that fails."""
    save(path, lambda part: part.write_bytes(content))


@contextlib.contextmanager
def stream(path: Path | None) -> Iterator[TextIO]:
    """The file that the user names with -o, to write line after line; standard output without one.

    The file appears when the block ends, as with ``replacing``. Links are followed, and pipes and
    devices written to directly. Raises CarftError where writing fails.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return

    # What is open by a name in /dev may be a file that others write to as well.
    is_open = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    try:
        is_device = is_open or (path.exists() and not path.is_file())
        target = Path(os.path.realpath(path))
        replacement = contextlib.nullcontext(path) if is_device else replacing(target)
        with replacement as part, part.open("w", encoding="utf-8", errors="backslashreplace") as f:
            yield f
    except OSError as error:
        raise write_error(path, error) from error


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


def write_error(path: Path, error: Exception) -> CarftError:
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
