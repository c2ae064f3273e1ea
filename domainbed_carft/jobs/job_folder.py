"""The folder of a job: its file names, its lock, and its recorded attempts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft import files, process_variables
from domainbed_carft.errors import CarftError, TransientError

RECORDS = "results.jsonl"
OUTPUT = "out.txt"
ERRORS = "err.txt"
DONE = "done"
# Files of the weights after the last step and of the step that was best in validation.
WEIGHTS = {"last": "model.pkl", "best": "model_best.pkl"}
WEIGHTS_FORMAT = 1
STATE = "state.pt"

MAX_ATTEMPTS = 3

# Exit statuses of train, as in sysexits.h.
HELD_ELSEWHERE = 73  # EX_CANTCREAT: another process runs the job
NO_SPACE = 74  # EX_IOERR: the disk is full
STOPPED = 75  # EX_TEMPFAIL: a signal stopped the job, which saved its state
# Not counted as failures of the job; the last four are Ctrl-C and signals it did not catch.
UNCOUNTED_STATUSES = (HELD_ELSEWHERE, NO_SPACE, STOPPED, 130, -15, -10, -2)
WRONG_ARGUMENTS = 2  # retrying cannot help

# A launcher passes the descriptor of its lock to the job in this variable.
LOCK_VARIABLE = process_variables.LOCK_DESCRIPTOR.name


class Holder(NamedTuple):
    """The process that runs a job, and the progress of the job."""

    host: str
    pid: int
    slurm: str | None  # its SLURM job id
    since: float  # seconds since the epoch
    step: int | None = None
    steps: int | None = None
    images_per_step: int | None = None
    updated: float | None = None  # when the progress was published

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"

        place = f"SLURM job {self.slurm} on {self.host}" if self.slurm else self.host
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{place}, process {self.pid}, since {since}"


UNKNOWN_HOLDER = Holder("?", 0, None, 0.0)


class Attempt(NamedTuple):
    """An attempt at a job that has ended."""

    started: float  # seconds since the epoch
    ended: float
    host: str
    slurm: str | None  # its SLURM job id
    status: int  # exit status, negative for a signal
    last_words: str  # the last line of its errors
    step: int | None = None  # the saved step, if the job was stopped


class HeldError(CarftError):
    """Another process runs this job."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        super().__init__(f"{folder} is being run by {holder}; wait for that process or stop it")


class Lock:
    """The held lock of a job's folder. Its file contains the progress for other processes.

    A child that inherits the ``descriptor`` holds the lock too, in case this process is killed.
    The library filelock does not suit: it has no descriptor to pass on, and it leaves its file
    when the lock is released, as if the process had died.
    """

    def __init__(self, folder: JobFolder, descriptor: int, launcher: Holder | None = None) -> None:
        self._folder = folder
        self.descriptor = descriptor

        # The launcher that passed the lock on has recorded the start and the SLURM job.
        holder = launcher or Holder("", 0, get_slurm_id(), time.time())
        self._holder = holder._replace(host=socket.gethostname(), pid=os.getpid())
        self.publish()

    def publish(self, **progress: Any) -> None:
        """Publish the progress for other processes: ``step``, ``steps``, ``images_per_step``."""
        self._holder = self._holder._replace(**{"updated": time.time(), **progress})
        with contextlib.suppress(OSError):  # a full disk must not end the job
            os.truncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(self._holder._asdict()).encode() + b"\n", 0)

    def require_held(self) -> None:
        """Raise TransientError if the folder has been moved or removed since it was locked."""
        if not self._folder.is_lock(self.descriptor):
            raise TransientError(
                f"{self._folder.path} was moved or removed while this job ran there. The job ends, "
                "because another process could be running it there. To train it there, rerun the "
                "command; to resume a folder that you moved, pass its new path as --output_dir"
            )


class JobFolder:
    """The folder of one job. All methods read the disk; nothing is cached."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lock_path = self.path / "lock"
        self.attempts_path = self.path / "attempts.jsonl"
        self.records_path = self.path / RECORDS
        self.state_path = self.path / STATE

    @property
    def done(self) -> bool:
        """True if the job has finished."""
        return os.path.exists(self.path / DONE)  # False also without permission to look

    def is_held(self) -> bool:
        """Return True if a process runs this job now.

        This and all other methods that read the lock raise CarftError if the file system has no
        locks.
        """
        try:
            descriptor = files.open_nofollow(self.lock_path, os.O_RDONLY)
        except PermissionError:  # another user has locked it
            return True
        except OSError:  # there is no lock file
            return False
        try:
            return not self._try_lock(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def get_holder(self) -> Holder | None:
        """Return the process that runs this job, UNKNOWN_HOLDER for an unreadable lock, or None."""
        return (self._read_holder() or UNKNOWN_HOLDER) if self.is_held() else None

    def get_last_step(self) -> int | None:
        """Return the step published in the lock file, or None if there is no file."""
        holder = self._read_holder()
        return holder.step if holder else None

    def get_last_holder(self) -> Holder | None:
        """Return the process that died while it ran this job, or None."""
        if not os.path.exists(self.lock_path) or self.is_held():
            return None
        return self._read_holder() or UNKNOWN_HOLDER

    @contextlib.contextmanager
    def claim(self, patience: float = 0.25, inherited: int | None = None) -> Iterator[Lock]:
        """Hold the lock inside the block, and remove it at the end.

        Args:
            patience: seconds to wait for the current holder. Processes that only check the lock
                hold it for an instant.
            inherited: descriptor of a lock that the launcher holds, and removes later. Ignored if
                it belongs to another file.

        Raises:
            HeldError: if another process runs this job.
            OSError: if the folder cannot be written.
        """
        if inherited is not None and self.is_lock(inherited):
            yield Lock(self, inherited, launcher=self._read_holder())
            return

        descriptor = self._acquire_lock(patience)
        try:
            yield Lock(self, descriptor)
        finally:
            # If the folder was moved away, a lock file in its place belongs to another process.
            if self.is_lock(descriptor):
                self.lock_path.unlink(missing_ok=True)
            os.close(descriptor)

    def read_attempts(self) -> list[Attempt]:
        """Return the ended attempts in order, without lines truncated by a full disk or a crash."""
        with contextlib.suppress(OSError):
            text = files.read_regular(self.attempts_path).decode(errors="replace")
            attempts = [_parse(line, Attempt) for line in text.splitlines()]
            return [attempt for attempt in attempts if attempt]
        return []

    def add_attempt(self, attempt: Attempt) -> None:
        """Record an attempt that has ended. Raises OSError if the file cannot be written."""
        files.append_line(self.attempts_path, json.dumps(attempt._asdict()))

    def get_final_failure(self) -> Attempt | None:
        """Return the last failed attempt if the job must not be retried, or else None."""
        attempts = [] if self.done else self.read_attempts()
        failures = [attempt for attempt in attempts if attempt.status not in UNCOUNTED_STATUSES]
        if not failures:
            return None

        last_failure = failures[-1]
        if last_failure.status == WRONG_ARGUMENTS or len(failures) >= MAX_ATTEMPTS:
            return last_failure
        return None

    def _acquire_lock(self, patience: float) -> int:
        """Lock the lock file within ``patience`` seconds, and return its descriptor."""
        deadline = time.monotonic() + patience
        while True:
            try:
                descriptor = files.open_nofollow(self.lock_path, os.O_RDWR | os.O_CREAT)
            except PermissionError:
                if os.path.exists(self.lock_path) and self.is_held():  # held by another user
                    raise HeldError(self.path, self.get_holder() or UNKNOWN_HOLDER) from None
                raise

            locked = self._try_lock(descriptor)
            # The previous holder could have removed the file before it was locked here.
            if locked and self.is_lock(descriptor):
                return descriptor

            os.close(descriptor)
            if time.monotonic() > deadline and not locked:
                raise HeldError(self.path, self.get_holder() or UNKNOWN_HOLDER)
            time.sleep(0 if locked else 0.02)

    def is_lock(self, descriptor: int) -> bool:
        """Return True if a descriptor belongs to the current lock file."""
        try:
            return os.path.samestat(os.lstat(self.lock_path), os.fstat(descriptor))
        except OSError:
            return False

    def _try_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Lock without waiting; return False if another process holds the lock."""
        try:
            return files.try_lock(descriptor, shared=shared)
        except OSError as error:
            raise CarftError(
                f"{self.path} cannot be locked: {error}. Put the output folder on a file system "
                "with flock: a local disk, NFS version 4, or Lustre mounted with -o flock"
            ) from error

    def _read_holder(self) -> Holder | None:
        with contextlib.suppress(OSError):
            return _parse(files.read_regular(self.lock_path).decode(errors="replace"), Holder)
        return None


def get_inherited_descriptor() -> int | None:
    """Return the descriptor of the lock that a launcher passed to this process."""
    text = process_variables.LOCK_DESCRIPTOR.read()
    return int(text) if text.isdecimal() else None


def read_last_line(path: str | os.PathLike[str]) -> str:
    """Return the last line that is not blank in a file's last 64 KiB, or an empty string."""
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
        lines = file.read().decode(errors="replace").rstrip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""


def get_slurm_id() -> str | None:
    """Return the SLURM job id of this process, such as "123" or "123_4" in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and element:
        return f"{array}_{element}"
    return os.environ.get("SLURM_JOB_ID")


def _parse(line: str, kind: Any) -> Any:
    """Parse a line of JSON as a named tuple, or return None if the line was truncated."""
    with contextlib.suppress(ValueError, TypeError):
        content = json.loads(line)
        return kind(**{name: content[name] for name in kind._fields if name in content})
    return None


# The beginning of the name of a folder that is being deleted.
_DELETED_PREFIX = ".deleted-"


def delete_claimed(folder: JobFolder) -> None:
    """Delete a folder whose lock this process holds. Raises OSError if it cannot be renamed.

    The folder is renamed first, so that a launch from then on makes a new one with its own lock.
    """
    folder.records_path.unlink(missing_ok=True)  # so that no table has a partly deleted job
    moved = folder.path.with_name(f"{_DELETED_PREFIX}{folder.path.name}-{os.getpid()}")
    folder.path.rename(moved)
    shutil.rmtree(moved)


def delete_remains(output: Path) -> None:
    """Delete what is left of interrupted deletions in an output folder and its variants."""
    for path in (*output.glob(f"{_DELETED_PREFIX}*"), *output.glob(f"*/{_DELETED_PREFIX}*")):
        shutil.rmtree(path, ignore_errors=True)
