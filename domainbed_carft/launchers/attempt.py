"""One attempt at a job, as every launcher makes it, including inside a SLURM job."""

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
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs.folder import (
    STOPPED,
    UNCOUNTED_STATUSES,
    Attempt,
    Held,
    JobFolder,
    Lock,
    last_line,
    slurm_id,
)
from domainbed_carft.jobs.fork_server import ForkServer, Process
from domainbed_carft.jobs.job import Job
from domainbed_carft.text import quantity

CANNOT_START = 127  # as a shell says it

# A disk with less free space cannot hold the state of a job.
MIN_FREE_SPACE = 2**20

Result = Literal["done", "failed", "again", "interrupted", "held", "no space"]
VariablesOf = (
    Callable[[Job], Mapping[str, str]] | None
)  # the environment variables to set for a job


@dataclass(frozen=True)
class JobOutcome:
    """The outcome of a job in one call of a launcher, and of the last attempt at it.

    "failed" jobs are not to be retried, "again" are those that may be, "held" ones are run by
    another process, and "no space" are those that a full disk ended. ``attempts`` counts those that
    failed.
    """

    folder: Path
    result: Result
    status: int = 0
    attempts: int = 0
    last_words: str = ""

    def __str__(self) -> str:
        if self.result == "held":
            return self.last_words

        result = f"failed {quantity(self.attempts, 'time')}"
        if self.result in ("interrupted", "no space"):
            result = "was stopped"
        return f"{self.folder}: {result}, {describe_end(self.status, self.last_words)}"


# Of jobs and maybe VariablesOf: the outcomes of those not done, None if it does not wait.
Launcher = Callable[..., list[JobOutcome] | None]


@dataclass(frozen=True)
class Command(Job):
    """A job as DomainBed's registry hands it over: of its arguments only the words are known."""

    words: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The words of the command line."""
        return list(self.words)


def run_commands(launcher: Launcher, commands: Sequence[str]) -> list[JobOutcome] | None:
    """Have a launcher run jobs given as command lines, as DomainBed's and its forks' sweeps do.

    T3A and DPLCLIP write ``NAME=value python -m ...`` for a shell; no shell is involved here.
    Raises CarftError for a command without --output_dir.
    """
    jobs = []
    variables: dict[Path, dict[str, str]] = {}
    for command in commands:
        words, assigned = _split_assignments(shlex.split(command))
        if "--output_dir" not in words[:-1]:
            raise CarftError(f"the command has no --output_dir: {command!r}")

        folder = Path(words[words.index("--output_dir") + 1])
        jobs.append(Command({}, folder, words=tuple(words)))
        variables[folder] = assigned
    return launcher(jobs, lambda job: variables[job.folder])


def _split_assignments(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words after the assignments ``NAME=value`` at the beginning, and these."""
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
) -> JobOutcome:
    """Make one attempt at a job, unless it is done, held by another process, or failed for good.

    ``patience``: seconds to wait for another process's lock.
    """
    folder = JobFolder(job.folder)
    try:
        if not folder.done:
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.claim(patience) as lock:
                if not folder.done and folder.failed() is None:
                    _attempt(folder, job.command, variables, lock, children)
        return _outcome(folder)
    except Held as held:
        return JobOutcome(job.folder, "held", last_words=str(held))
    except (OSError, CarftError) as error:  # of the folder: no attempt can be made, or noted
        if is_disk_full(error):
            return JobOutcome(job.folder, "no space", job_folder.NO_SPACE, last_words=str(error))
        return JobOutcome(
            job.folder, "failed", status=CANNOT_START, attempts=1, last_words=str(error)
        )


def _outcome(folder: JobFolder) -> JobOutcome:
    """The outcome of a job whose last attempt has ended."""
    if folder.done:
        return JobOutcome(folder.path, "done")

    attempts = folder.attempts()
    last_attempt = attempts[-1]
    result: Result = "again"
    if folder.failed():
        result = "failed"
    elif last_attempt.status == job_folder.HELD_ELSEWHERE:
        result = "held"
    elif last_attempt.status == job_folder.NO_SPACE:
        result = "no space"
    elif last_attempt.status in UNCOUNTED_STATUSES:
        result = "interrupted"

    return JobOutcome(
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
    """Run the command and note how it ended, even where this process is interrupted.

    Raises TransientError if the folder was moved or removed meanwhile.
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
                last_words = ""
            except (OSError, ValueError) as error:  # ValueError: a null byte
                status = CANNOT_START
                last_words = str(error)

            if children.stopped_by is not None and status == -signal.SIGKILL:  # not its fault
                status = -signal.SIGTERM
                last_words = "killed, since it did not stop when told to"
            if children.stopped_by == signal.SIGINT and status in (STOPPED, -signal.SIGTERM):
                last_words = last_words or "stopped by Ctrl-C (SIGINT)"  # the job got SIGTERM
            last_words = last_words or last_line(stderr.name)

        if status == 0 and not folder.done:
            last_words = "ended with status 0 but wrote no file 'done'"
        elif status and not last_words:
            last_words = _last_error(folder, started)
        if status == 1 and _is_disk_full(folder.path, last_words):  # a checkout's train
            status = job_folder.NO_SPACE
    finally:
        attempt = Attempt(
            started=started,
            ended=time.time(),
            host=socket.gethostname(),
            slurm=slurm_id(),
            status=status,
            last_words=last_words,
            step=folder.last_step() if status == STOPPED else None,
        )
        lock.require_held()
        folder.add_attempt(attempt)


def _is_disk_full(folder: Path, last_words: str) -> bool:
    """Whether there is no space left in a folder, or a job's last words are of a quota."""
    disk = os.statvfs(folder)
    has_space = disk.f_bavail * disk.f_frsize >= MIN_FREE_SPACE
    return not has_space or os.strerror(errno.EDQUOT) in last_words


def _last_error(folder: JobFolder, started: float) -> str:
    """The last line of the job's errors, "" if none were written since ``started``."""
    path = folder.path / job_folder.ERRORS
    with contextlib.suppress(OSError):
        # It keeps those of earlier attempts; the clocks of file systems are coarse.
        if path.stat().st_mtime >= started - 1:
            return last_line(path)
    return ""


def describe_end(status: int, words: str) -> str:
    """How a process ended, and its last words, as in ``exit status 1: ValueError: ...``."""
    names: dict[int, str] = {-number: f"killed by {number.name}" for number in signal.Signals}
    names[-signal.SIGKILL] += " (often: out of memory)"
    return f"{names.get(status, f'exit status {status}')}: {words or 'no error message'}"


class Children:
    """The jobs that this process runs now.

    ``stopped_by``: the number of the signal that told this process to stop, if one did.
    """

    def __init__(self, fork_server: ForkServer | None = None) -> None:
        self.stopped_by: int | None = None
        self._fork_server = fork_server
        self._running: dict[int, Process | subprocess.Popen[Any]] = {}

    def run(
        self, words: Sequence[str], variables: Mapping[str, str], lock: int, stderr: IO[bytes]
    ) -> int:
        """Run a child, which holds the lock too, in a session of its own; returns its status."""
        process = self._start(words, variables, lock, stderr)
        with self.running(process):
            return process.wait()

    @contextlib.contextmanager
    def running(self, process: Process | subprocess.Popen[Any]) -> Iterator[None]:
        """Have `stop` signal a process while the block runs."""
        self._running[process.pid] = process
        if self.stopped_by is not None:  # told while the child was being started
            process.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            self._running.pop(process.pid, None)

    def _start(
        self, words: Sequence[str], variables: Mapping[str, str], lock: int, stderr: IO[bytes]
    ) -> Process | subprocess.Popen[bytes]:
        """Start a child, while signals that are not meant for it are blocked."""
        # SLURM sends submitit's signal to every process of a job. It is meant for submitit alone
        # and would kill the others; what is blocked here stays blocked in a child.
        signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            process: Process | None = None
            if self._fork_server:
                process = self._fork_server.start(words, variables, lock, stderr.fileno())
            return process or subprocess.Popen(
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

    def stop(self, stopped_by: int | None, signal_number: int = signal.SIGTERM) -> None:
        """Send all children a signal, and start no others.

        ``stopped_by``: the signal, if any, that told this process to stop.
        """
        self.stopped_by = stopped_by or self.stopped_by
        for process in list(self._running.values()):
            process.send_signal(signal_number)


@contextlib.contextmanager
def stopping(children: Children, name: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the children with SIGTERM, then this process.

    A second Ctrl-C kills those still running. At the end raises KeyboardInterrupt after Ctrl-C,
    SystemExit with 128 + the signal's number after other signals, as shells do.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        is_repeated = children.stopped_by is not None
        if not is_repeated:
            print(f"{name}: stopping; waiting for the running jobs to save", file=sys.stderr)
            children.stop(number)
        else:
            kills = number == signal.SIGINT
            children.stop(None, signal.SIGKILL if kills else signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Ignored signals stay ignored, for nohup.
    is_main = threading.current_thread() is threading.main_thread()  # others may handle none
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
