"""One process at a time in a job's folder.

The file `lock` is held by `flock` and says in one line of JSON who holds it. The kernel lets go of
it when the last process that has it open is gone, however it ended, so a lock never has to be
broken. Children inherit it: a loader's processes keep it some seconds longer than a killed parent.

A launcher may have locked the folder for us: then the descriptor is in DOMAINBED_LOCK_FD.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from typing import Any

NAME = "lock"
INHERITED = "DOMAINBED_LOCK_FD"
PATIENCE_S = 15.0

# Exit status of a process that found the job taken: EX_CANTCREAT of sysexits.h.
STATUS = 73


class LockedError(RuntimeError):
    """Another process trains this job."""


class JobLock:
    """Holds the lock of `folder` inside a `with` block.

    Raises:
        LockedError: somebody else holds it and has not let go within `patience` seconds, PATIENCE_S
            if left out.
        OSError: the file system has no locks, or the folder cannot be written.
    """

    def __init__(self, folder: str, patience: float | None = None) -> None:
        self._path = os.path.join(folder, NAME)
        self._patience = PATIENCE_S if patience is None else patience
        self._descriptor = -1
        self._is_ours = True
        self._holder: dict[str, Any] = {}

    def __enter__(self) -> JobLock:
        inherited = _inherited(self._path)
        if inherited is not None:
            self._descriptor, self._is_ours = inherited, False
            self._holder = _content(inherited)
        else:
            self._descriptor = self._acquired()
        now = time.time()
        self._holder = {"since": now, "slurm": slurm_id(), **self._holder}
        self.tell(host=socket.gethostname(), pid=os.getpid(), updated=now)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            # While it is held, so that who waits sees that it is gone; it may be, with the folder.
            if _is_file(self._descriptor, self._path):
                os.unlink(self._path)
            os.close(self._descriptor)

    def tell(self, **facts: Any) -> None:
        """Add to what others can read of us: step, steps, pictures_per_step."""
        empty = {"step": None, "steps": None, "pictures_per_step": None, "updated": None}
        self._holder = {**empty, **self._holder, **facts}
        line = json.dumps(self._holder).encode() + b"\n"
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, line, 0)
        except OSError as error:  # what it tells is a courtesy, and a full disk stops others
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def _acquired(self) -> int:
        """Open and lock the file, which its last holder may be deleting meanwhile."""
        until = time.monotonic() + self._patience
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file(descriptor, self._path):
                    return descriptor
            except BlockingIOError:
                if time.monotonic() > until:
                    holder = _content(descriptor)
                    os.close(descriptor)
                    raise LockedError(_held_by(self._path, holder)) from None
                time.sleep(0.2)
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)


def is_held(folder: str) -> bool:
    """Whether a process has the lock of `folder`, and so trains there."""
    try:
        descriptor = os.open(os.path.join(folder, NAME), os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: it cannot be asked, and is not ours to touch
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def slurm_id() -> str | None:
    """Return this process's SLURM job as `123` or `123_4`."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _inherited(path: str) -> int | None:
    """The descriptor that a launcher has locked for us, if it is that of this very folder."""
    text = os.environ.get(INHERITED, "")
    if text.isdigit() and _is_file(int(text), path):
        return int(text)
    return None


def _is_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _content(descriptor: int) -> dict[str, Any]:
    """What the holder tells; nothing if it is just being written."""
    try:
        found = json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _held_by(path: str, holder: dict[str, Any]) -> str:
    slurm = f", SLURM job {holder['slurm']}" if holder.get("slurm") else ""
    since = holder.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if since else "unknown"
    return (
        f"{os.path.dirname(path)} is being trained by process {holder.get('pid', '?')} on "
        f"{holder.get('host', '?')}{slurm}, since {when}. Wait for it or stop it, or give another "
        "--output_dir."
    )
