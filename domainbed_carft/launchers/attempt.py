"""One attempt at a job, made by every launcher, also inside a SLURM job."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

from domainbed_carft.errors import CarftError, is_disk_full
from domainbed_carft.jobs import job_folder
from domainbed_carft.jobs.fork_server import ForkServer, Process
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import (
    STOPPED,
    UNCOUNTED_STATUSES,
    Attempt,
    HeldError,
    JobFolder,
    Lock,
    get_slurm_id,
    read_last_line,
)
from domainbed_carft.wording import quantity

CANNOT_START = 127  # the exit status of shells for a missing command

# A disk with less free space cannot hold the state of a job.
MIN_FREE_SPACE = 2**20

Result = Literal["done", "failed", "again", "interrupted", "held", "no space"]


@dataclass(frozen=True)
class JobEnd:
    """How a job ended in one call of a launcher."""

    folder: Path
    # "failed": must not be retried. "again": can be retried. "held": another process runs the job.
    # "no space": a full disk ended the job.
    result: Result
    status: int = 0
    attempts: int = 0  # number of failed attempts
    last_words: str = ""  # of the last attempt

    def __str__(self) -> str:
        if self.result == "held":
            return self.last_words

        result = f"failed {quantity(self.attempts, 'time')}"
        if self.result in ("interrupted", "no space"):
            result = "was stopped"
        return f"{self.folder}: {result}, {describe_end(self.status, self.last_words)}"


# Returns the ends of all jobs that are not done, or None if it does not wait for jobs.
Launcher = Callable[[Sequence[Job]], list[JobEnd] | None]


@dataclass(frozen=True)
class Command(Job):
    """A job from DomainBed's registry, of which only the command line is known."""

    words: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The words of the command line."""
        return list(self.words)


def run_commands(launcher: Launcher, commands: Sequence[str]) -> list[JobEnd] | None:
    """Run jobs given as command lines, as by the sweeps of DomainBed and its forks.

    T3A and DPLCLIP write ``NAME=value python -m ...`` for a shell. Here no shell is involved.

    Raises:
        CarftError: if a command has no --output_dir.
    """
    jobs = []
    for command in commands:
        words, variables = _split_assignments(shlex.split(command))
        if "--output_dir" not in words[:-1]:
            raise CarftError(f"the command has no --output_dir: {command!r}")

        folder = Path(words[words.index("--output_dir") + 1])
        jobs.append(Command({}, folder, variables=variables, words=tuple(words)))
    return launcher(jobs)


def _split_assignments(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split leading assignments ``NAME=value`` from the words of a command."""
    assigned: dict[str, str] = {}
    for number, word in enumerate(words):
        assignment = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
        if assignment is None:
            return list(words[number:]), assigned
        assigned[assignment[1]] = assignment[2]
    return [], assigned


def run(
    job: Job,
    variables: Mapping[str, str],
    children: Children,
    patience: float = 0.25,
) -> JobEnd:
    """Make one attempt at a job, unless it is done, held, or must not be retried.

    Args:
        job: the job.
        variables: environment variables to set for it.
        children: the running processes of this launcher.
        patience: seconds to wait while another process holds the lock.
    """
    folder = JobFolder(job.folder)
    try:
        if not folder.done:
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.claim(patience) as lock:
                if not folder.done and folder.get_final_failure() is None:
                    _attempt(folder, job.command, variables, lock, children)
        return _get_end(folder)
    except HeldError as held:
        return JobEnd(job.folder, "held", last_words=str(held))
    except (OSError, CarftError) as error:  # the folder cannot be used
        if is_disk_full(error):
            return JobEnd(job.folder, "no space", job_folder.NO_SPACE, last_words=str(error))
        return JobEnd(job.folder, "failed", status=CANNOT_START, attempts=1, last_words=str(error))


def _get_end(folder: JobFolder) -> JobEnd:
    """Return the end of a job whose last attempt has ended."""
    if folder.done:
        return JobEnd(folder.path, "done")

    attempts = folder.read_attempts()
    last_attempt = attempts[-1]
    result: Result = "again"
    if folder.get_final_failure():
        result = "failed"
    elif last_attempt.status == job_folder.HELD_ELSEWHERE:
        result = "held"
    elif last_attempt.status == job_folder.NO_SPACE:
        result = "no space"
    elif last_attempt.status in UNCOUNTED_STATUSES:
        result = "interrupted"

    return JobEnd(
        folder=folder.path,
        result=result,
        status=last_attempt.status,
        attempts=sum(attempt.status not in UNCOUNTED_STATUSES for attempt in attempts),
        last_words=last_attempt.last_words,
    )


def _attempt(
    folder: JobFolder,
    words: list[str],
    variables: Mapping[str, str],
    lock: Lock,
    children: Children,
) -> None:
    """Run the command and record how it ended, even if this process is interrupted.

    Raises TransientError if the folder was moved or removed in the meantime.
    """
    if words[:1] == ["python"]:  # the jobs need what this interpreter imports
        words = [sys.executable, *words[1:]]
    all_variables = {**os.environ, **variables, job_folder.LOCK_VARIABLE: str(lock.descriptor)}

    started = time.time()
    status: int = -signal.SIGTERM
    last_words = "the launcher was stopped"
    try:
        with tempfile.NamedTemporaryFile(prefix="carft-job-") as stderr:
            try:
                status = children.run(words, all_variables, lock.descriptor, stderr.file)
            except (OSError, ValueError) as error:  # ValueError: a null byte
                status, last_words = CANNOT_START, str(error)
            else:
                status, last_words = _explain_end(folder, status, stderr.name, started, children)
    finally:
        attempt = Attempt(
            started=started,
            ended=time.time(),
            host=socket.gethostname(),
            slurm=get_slurm_id(),
            status=status,
            last_words=last_words,
            step=folder.get_last_step() if status == STOPPED else None,
        )
        lock.require_held()
        folder.add_attempt(attempt)


def _explain_end(
    folder: JobFolder, status: int, stderr: str, started: float, children: Children
) -> tuple[int, str]:
    """Return the exit status of a job for its attempt, and its last words.

    A job has not failed if it was killed while the launcher stopped, or if its disk was full.
    """
    last_words = ""
    if children.stopped_by is not None and status == -signal.SIGKILL:
        status = -signal.SIGTERM
        last_words = "it did not stop after the first signal"
    if children.stopped_by == signal.SIGINT and status in (STOPPED, -signal.SIGTERM):
        last_words = last_words or "stopped by Ctrl-C (SIGINT)"  # the job got SIGTERM
    last_words = last_words or read_last_line(stderr)

    if status == 0 and not folder.done:
        last_words = "ended with status 0 but wrote no file 'done'"
    elif status and not last_words:
        last_words = _last_error(folder, started)
    if status == 1 and _is_disk_full(folder.path, last_words):  # a checkout's train
        status = job_folder.NO_SPACE
    return status, last_words


def _is_disk_full(folder: Path, last_words: str) -> bool:
    """Return True if the disk of a folder is full, or a job ended because of a quota."""
    disk = os.statvfs(folder)
    free_space = disk.f_bavail * disk.f_frsize
    return free_space < MIN_FREE_SPACE or os.strerror(errno.EDQUOT) in last_words


def _last_error(folder: JobFolder, started: float) -> str:
    """Return the last line of the job's errors, empty if none were written since ``started``."""
    path = folder.path / job_folder.ERRORS
    with contextlib.suppress(OSError):
        # The file keeps errors of earlier attempts. Clocks of file systems are coarse.
        if path.stat().st_mtime >= started - 1:
            return read_last_line(path)
    return ""


def describe_end(status: int, words: str) -> str:
    """Describe the end of a process, such as ``exit status 1: ValueError: ...``."""
    names: dict[int, str] = {-number: f"killed by {number.name}" for number in signal.Signals}
    names[-signal.SIGKILL] += " (often: out of memory)"
    return f"{names.get(status, f'exit status {status}')}: {words or 'no error message'}"


class Children:
    """The jobs that this process is running."""

    def __init__(self, fork_server: ForkServer | None = None) -> None:
        self.stopped_by: int | None = None  # the signal that stopped this process
        self._fork_server = fork_server
        self._running: dict[int, Process | subprocess.Popen[Any]] = {}

    def run(
        self, words: Sequence[str], variables: Mapping[str, str], lock: int, stderr: IO[bytes]
    ) -> int:
        """Run a child, which shares the lock, in a new session; return its exit status."""
        process: Process | subprocess.Popen[Any] | None = None
        # SLURM sends submitit's signal to every process of a job. It would kill all processes but
        # submitit's; a child inherits the blocked signal.
        signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            if self._fork_server:
                process = self._fork_server.start(words, variables, lock, stderr.fileno())
            process = process or subprocess.Popen(
                words,
                env=variables,
                pass_fds=(lock,),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)

        with self.running(process):
            return process.wait()

    @contextlib.contextmanager
    def running(self, process: Process | subprocess.Popen[Any]) -> Iterator[None]:
        """Let `stop` signal a process while the block runs."""
        self._running[process.pid] = process
        if self.stopped_by is not None:  # stopped while the child was being started
            process.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            self._running.pop(process.pid, None)

    def stop(self, stopped_by: int | None, signal_number: int = signal.SIGTERM) -> None:
        """Send a signal to all children, and to children that are being started.

        Args:
            stopped_by: the signal that stopped this process, if any.
            signal_number: the signal to send.
        """
        self.stopped_by = stopped_by or self.stopped_by
        for process in list(self._running.values()):
            process.send_signal(signal_number)


@contextlib.contextmanager
def stop_on_signals(children: Children, name: str) -> Iterator[None]:
    """Stop the children with SIGTERM on Ctrl-C, SIGTERM and SIGHUP, then end this process.

    A second Ctrl-C kills the children that still run.

    Raises:
        KeyboardInterrupt: at the end, after Ctrl-C.
        SystemExit: at the end, after other signals, with 128 + the signal's number like shells.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if children.stopped_by is None:
            print(f"{name}: stopping; waiting for the running jobs to save", file=sys.stderr)
            children.stop(number)
        else:
            kills = number == signal.SIGINT
            children.stop(None, signal.SIGKILL if kills else signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Only the main thread can handle signals. Ignored signals remain ignored, for nohup.
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if is_main}
    replaced = {
        number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN
    }
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)

    if children.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if children.stopped_by is not None:
        raise SystemExit(128 + children.stopped_by)
