"""A job's folder: the names of its files, the holder of its lock, how its attempts ended."""

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
# Weights: after the last step, and of the step that was best in validation.
WEIGHTS = {"last": "model.pkl", "best": "model_best.pkl"}
WEIGHTS_FORMAT = 1
STATE = "state.pt"

MAX_ATTEMPTS = 3

# Exit statuses of train: another process runs the job (EX_CANTCREAT of sysexits.h); the disk is
# full (EX_IOERR); it was told to stop and has saved itself (EX_TEMPFAIL).
HELD_ELSEWHERE = 73
NO_SPACE = 74
STOPPED = 75
# These are not counted as failures of the job, nor are Ctrl-C and signals it did not catch.
UNCOUNTED_STATUSES = (HELD_ELSEWHERE, NO_SPACE, STOPPED, 130, -15, -10, -2)
WRONG_ARGUMENTS = 2  # trying again is useless

# By this variable a launcher hands the lock that it holds to the job that it starts.
LOCK_VARIABLE = process_variables.LOCK_DESCRIPTOR.name


class Holder(NamedTuple):
    """The process that runs a job, and its progress: ``step`` of ``steps``."""

    host: str
    pid: int
    slurm: str | None
    since: float
    step: int | None = None
    steps: int | None = None
    images_per_step: int | None = None
    updated: float | None = None

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"

        place = f"SLURM job {self.slurm} on {self.host}" if self.slurm else self.host
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{place}, process {self.pid}, since {since}"


UNKNOWN = Holder("?", 0, None, 0.0)


class Attempt(NamedTuple):
    """How one attempt at a job ended; the status is negative for a signal.

    ``step``: how many steps were saved, of a job that was told to stop.
    """

    started: float
    ended: float
    host: str
    slurm: str | None
    status: int
    last_words: str
    step: int | None = None


class Held(CarftError):
    """Another process runs this job."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        super().__init__(f"{folder} is being run by {holder}; wait for that process or stop it")


class Lock:
    """The lock of a job's folder, while held; other processes can read the progress in it.

    A child that is given the ``descriptor`` holds the lock too, in case this process is killed.
    That is why it is no lock of the library filelock, which hands out no descriptor; and its file
    would stay when the lock is released, as if the process had died.
    """

    def __init__(self, folder: JobFolder, descriptor: int, launcher: Holder | None = None) -> None:
        self._folder = folder
        self.descriptor = descriptor

        # A launcher that has handed the lock on knows since when, and in which SLURM job.
        holder = launcher or Holder("", 0, slurm_id(), time.time())
        self._holder = holder._replace(host=socket.gethostname(), pid=os.getpid())
        self.publish()

    def publish(self, **progress: Any) -> None:
        """Let other processes read the progress: ``step``, ``steps``, ``images_per_step``."""
        self._holder = self._holder._replace(**{"updated": time.time(), **progress})
        with contextlib.suppress(OSError):  # of a full disk: publishing is a courtesy
            os.truncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(self._holder._asdict()).encode() + b"\n", 0)

    def require_held(self) -> None:
        """Raise TransientError if the folder has been moved or removed since it was locked."""
        if not self._folder.is_lock(self.descriptor):
            raise TransientError(
                f"{self._folder.path} was moved or removed while this job ran there. The job ends, "
                "because another process may run it there by now. To train it there, rerun the "
                "command; to resume a folder that you moved, pass its new path as --output_dir"
            )


class JobFolder:
    """The folder of one job. Every method reads the disk anew: nothing is cached."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lock_path = self.path / "lock"
        self.attempts_path = self.path / "attempts.jsonl"
        self.records_path = self.path / RECORDS
        self.state_path = self.path / STATE

    @property
    def done(self) -> bool:
        """Whether the job has finished."""
        return os.path.exists(self.path / DONE)  # False also where one may not look

    def is_held(self) -> bool:
        """Whether a process runs this job now.

        Raises CarftError if the file system has no locks, as do the other methods that read them.
        """
        try:
            descriptor = files.open_nofollow(self.lock_path, os.O_RDONLY)
        except PermissionError:  # another user's
            return True
        except OSError:  # there is none, or what is there is no lock
            return False
        try:
            return not self._try_lock(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def holder(self) -> Holder | None:
        """Who runs this job now; UNKNOWN if the lock cannot be read, None if nobody does."""
        return (self._written_holder() or UNKNOWN) if self.is_held() else None

    def last_step(self) -> int | None:
        """The progress that the last process to hold the lock published, if the lock is there."""
        holder = self._written_holder()
        return holder.step if holder else None

    def last_holder(self) -> Holder | None:
        """Who ran this job and died; None if the job is held, or its lock was released."""
        if not os.path.exists(self.lock_path) or self.is_held():
            return None
        return self._written_holder() or UNKNOWN

    @contextlib.contextmanager
    def claim(self, patience: float = 0.25, inherited: int | None = None) -> Iterator[Lock]:
        """Hold the lock, and remove it at the end.

        Waits ``patience`` seconds for the holder: a process that only checks holds it for an
        instant. ``inherited`` is the descriptor that the caller got from its launcher, which then
        removes the lock; a descriptor of another file is ignored. Raises Held, naming the process
        that runs this job, and OSError if the folder cannot be written.
        """
        if inherited is not None and self.is_lock(inherited):
            yield Lock(self, inherited, launcher=self._written_holder())
            return

        descriptor = self._acquire(patience)
        try:
            yield Lock(self, descriptor)
        finally:
            # Where the folder was moved away, a lock in its place is another's.
            if self.is_lock(descriptor):
                self.lock_path.unlink(missing_ok=True)
            os.close(descriptor)

    def attempts(self) -> list[Attempt]:
        """The ended attempts, first to last, without lines cut by a full disk or a crash."""
        with contextlib.suppress(OSError):
            text = files.read_regular(self.attempts_path).decode(errors="replace")
            attempts = [_parse(line, Attempt) for line in text.splitlines()]
            return [attempt for attempt in attempts if attempt]
        return []

    def add_attempt(self, attempt: Attempt) -> None:
        """Note how an attempt ended; raises OSError if that cannot be written."""
        files.append_line(self.attempts_path, json.dumps(attempt._asdict()))

    def failed(self) -> Attempt | None:
        """The last attempt, if the job is not to be retried; None if the job may run."""
        attempts = [] if self.done else self.attempts()
        failures = [attempt for attempt in attempts if attempt.status not in UNCOUNTED_STATUSES]
        if not failures:
            return None

        last_failure = failures[-1]
        is_final = last_failure.status == WRONG_ARGUMENTS or len(failures) >= MAX_ATTEMPTS
        return last_failure if is_final else None

    def _acquire(self, patience: float) -> int:
        """A descriptor of the locked lock file; waits ``patience`` seconds, then raises Held."""
        deadline = time.monotonic() + patience
        while True:
            try:
                descriptor = files.open_nofollow(self.lock_path, os.O_RDWR | os.O_CREAT)
            except PermissionError:
                if os.path.exists(self.lock_path) and self.is_held():  # by another user
                    raise Held(self.path, self.holder() or UNKNOWN) from None
                raise

            locked = self._try_lock(descriptor)
            # The holder before may have removed the file before we had locked it.
            if locked and self.is_lock(descriptor):
                return descriptor

            os.close(descriptor)
            if time.monotonic() > deadline and not locked:
                raise Held(self.path, self.holder() or UNKNOWN)
            time.sleep(0 if locked else 0.02)

    def is_lock(self, descriptor: int) -> bool:
        """Whether a descriptor belongs to the current lock file."""
        try:
            return os.path.samestat(os.lstat(self.lock_path), os.fstat(descriptor))
        except OSError:
            return False

    def _try_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Lock without waiting; False if another process has it."""
        try:
            return files.try_lock(descriptor, shared=shared)
        except OSError as error:
            raise CarftError(
                f"{self.path} cannot be locked: {error}. Put the output folder on a file system "
                "with flock: a local disk, NFS version 4, or Lustre mounted with -o flock"
            ) from error

    def _written_holder(self) -> Holder | None:
        with contextlib.suppress(OSError):
            return _parse(files.read_regular(self.lock_path).decode(errors="replace"), Holder)
        return None


def inherited() -> int | None:
    """The descriptor that a launcher has handed to this process."""
    text = process_variables.LOCK_DESCRIPTOR.read()
    return int(text) if text.isdecimal() else None


def last_line(path: str | os.PathLike[str]) -> str:
    """The last line of a file's last 64 KiB that is not blank; "" if there is none."""
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
        lines = file.read().decode(errors="replace").rstrip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""


def slurm_id() -> str | None:
    """This process's SLURM job, an array's element as "123_4"."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and element:
        return f"{array}_{element}"
    return os.environ.get("SLURM_JOB_ID")


def _parse(line: str, kind: Any) -> Any:
    """A line of JSON as a named tuple of this kind; None if the line was cut."""
    with contextlib.suppress(ValueError, TypeError):
        content = json.loads(line)
        return kind(**{name: content[name] for name in kind._fields if name in content})
    return None


# How the name of a folder begins that is being deleted.
_PREFIX = ".deleted-"


def delete_claimed(folder: JobFolder) -> None:
    """Delete a folder whose lock this process holds.

    First it gets another name: a launch from then on makes a new folder, with a lock of its own.
    Raises OSError if that is impossible.
    """
    folder.records_path.unlink(missing_ok=True)  # no table has half a folder
    moved = folder.path.with_name(f"{_PREFIX}{folder.path.name}-{os.getpid()}")
    folder.path.rename(moved)
    shutil.rmtree(moved)


def delete_remains(output: Path) -> None:
    """Delete what interrupted deletions have left in an output folder and its variants."""
    for path in (*output.glob(f"{_PREFIX}*"), *output.glob(f"*/{_PREFIX}*")):
        shutil.rmtree(path, ignore_errors=True)
