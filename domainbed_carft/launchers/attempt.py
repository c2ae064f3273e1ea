"""One attempt at a job, as every launcher makes it, including inside a SLURM job."""

from __future__ import annotations

import contextlib
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
from typing import IO, Literal

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs.folder import NOT_ITS_FAULT, Attempt, Held, JobFolder, last_line, slurm_id
from domainbed_carft.jobs.fork_server import ForkServer, Process
from domainbed_carft.jobs.job import Job
from domainbed_carft.text import counted

CANNOT_START = 127  # as a shell says it

Result = Literal["done", "failed", "again", "interrupted", "held"]
Environment = Callable[[Job], Mapping[str, str]] | None  # the variables to set for a job


@dataclass(frozen=True)
class Ending:
    """The outcome of a job in one call of a launcher, and of the last attempt at it.

    "failed" jobs are not to be retried, "again" are those that may be, "held" ones are run by
    another process. ``attempts`` counts those that failed.
    """

    folder: Path
    result: Result
    status: int = 0
    attempts: int = 0
    last_words: str = ""

    def __str__(self) -> str:
        if self.result == "held":
            return self.last_words
        count = f"failed {counted(self.attempts, 'time')}"
        how = "was stopped" if self.result == "interrupted" else count
        return f"{self.folder}: {how}, {described(self.status, self.last_words)}"


# Of jobs and maybe an Environment: the endings of those not done, None if it does not wait.
Launcher = Callable[..., list[Ending] | None]


@dataclass(frozen=True)
class Command(Job):
    """A job as DomainBed's registry hands it over: of its arguments only the words are known."""

    words: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return list(self.words)


def run_commands(launcher: Launcher, commands: Sequence[str]) -> list[Ending] | None:
    """Have a launcher run jobs given as command lines, as DomainBed's and its forks' sweeps do.

    T3A and DPLCLIP write ``NAME=value python -m ...`` for a shell; no shell is involved here.
    Raises CarftError for a command without --output_dir.
    """
    jobs, variables = [], {}
    for command in commands:
        words, assigned = shlex.split(command), {}
        while words and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
            assigned[found[1]] = found[2]
            del words[0]
        if "--output_dir" not in words[:-1]:
            raise CarftError(f"the command has no --output_dir: {command!r}")
        folder = Path(words[words.index("--output_dir") + 1])
        jobs.append(Command({}, folder, words=tuple(words)))
        variables[folder] = assigned
    return launcher(jobs, lambda job: variables[job.folder])


class Children:
    """The jobs that this process runs now, and whether it was told to stop, by which signal."""

    def __init__(self, warm: ForkServer | None = None) -> None:
        self.stopped_by: int | None = None
        self._warm = warm
        self._running: dict[int, Process | subprocess.Popen[bytes]] = {}

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], lock: int, stderr: IO[bytes]
    ) -> int:
        """Run a child, which holds the lock too, in a session of its own; returns its status."""
        # SLURM sends submitit's signal to every process of a job. It is meant for submitit alone
        # and would kill the others; what is blocked here stays blocked in a child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            warm = self._warm and self._warm.start(words, environment, lock, stderr.fileno())
            process = warm or subprocess.Popen(
                words, env=environment, pass_fds=(lock,), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip
            self._running[process.pid] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.stopped_by is not None:  # told while the child was being started
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait()
        finally:
            self._running.pop(process.pid, None)

    def stop(self, told: int | None, signal_number: int = signal.SIGTERM) -> None:
        """Send all children a signal, and start no others; `told`, if any, stops this process."""
        self.stopped_by = told or self.stopped_by
        for process in list(self._running.values()):
            process.send_signal(signal_number)


@contextlib.contextmanager
def stopping(children: Children, name: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the children with SIGTERM, then this process.

    A second Ctrl-C kills those still running. At the end raises KeyboardInterrupt after Ctrl-C,
    SystemExit with 128 + the signal's number after other signals, as shells do.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        again = children.stopped_by is not None
        if not again:
            print(f"{name}: stopping; waiting for the running jobs to save", file=sys.stderr)
        kills = again and number == signal.SIGINT
        children.stop(None if again else number, signal.SIGKILL if kills else signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Ignored signals stay ignored, for nohup.
    is_main = threading.current_thread() is threading.main_thread()  # others may handle none
    handlers = {number: signal.getsignal(number) for number in numbers if is_main}
    before = {n: handler for n, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if children.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if children.stopped_by is not None:
        raise SystemExit(128 + children.stopped_by)


def run(
    job: Job, environment: Mapping[str, str], children: Children, patience: float = 0.25
) -> Ending:
    """Make one attempt at a job, unless it is done, held by another process, or failed for good.

    ``patience``: seconds to wait for another process's lock.
    """
    folder = JobFolder(job.folder)
    try:
        if not folder.done:
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.claim(patience) as lock:
                if not folder.done and folder.failed() is None:
                    _attempt(folder, job.command, environment, lock.descriptor, children)
        return _ending(folder)
    except Held as held:
        return Ending(job.folder, "held", last_words=str(held))
    except (OSError, CarftError) as error:  # of the folder: no attempt can be made, or noted
        return Ending(job.folder, "failed", CANNOT_START, 1, str(error))


def _ending(folder: JobFolder) -> Ending:
    if folder.done:
        return Ending(folder.path, "done")
    attempts = folder.attempts()
    status, words = attempts[-1].status, attempts[-1].last_words
    count = sum(attempt.status not in NOT_ITS_FAULT for attempt in attempts)
    result: Result = "again"
    if folder.failed():
        result = "failed"
    elif status in NOT_ITS_FAULT:
        result = "held" if status == job_folder.ELSEWHERE else "interrupted"
    return Ending(folder.path, result, status, count, words)


def _attempt(
    folder: JobFolder, words: list[str], environment: Mapping[str, str], lock: int,
    children: Children,
) -> None:  # fmt: skip
    """Run the command and note how it ended, even where this process is interrupted."""
    if words[:1] == ["python"]:  # the jobs need what this interpreter imports
        words = [sys.executable, *words[1:]]
    variables = {**os.environ, **environment, "DOMAINBED_LOCK_FD": str(lock)}
    started, status, told = time.time(), -signal.SIGTERM, "the launcher was stopped"
    try:
        with tempfile.NamedTemporaryFile(prefix="carft-job-") as stderr:
            try:
                status, told = children.run(words, variables, lock, stderr.file), ""
            except (OSError, ValueError) as error:  # ValueError: a null byte
                status, told = CANNOT_START, str(error)
            if children.stopped_by is not None and status == -signal.SIGKILL:  # not its fault
                status, told = -signal.SIGTERM, "killed, since it did not stop when told to"
            told = told or last_line(stderr.name)
        if status == 0 and not folder.done:
            told = "ended with status 0 but wrote no file 'done'"
        elif status and not told:
            errors = folder.path / job_folder.ERRORS
            with contextlib.suppress(OSError):
                # It keeps those of earlier attempts; the clocks of file systems are coarse.
                told = last_line(errors) if errors.stat().st_mtime >= started - 1 else ""
    finally:
        attempt = Attempt(started, time.time(), socket.gethostname(), slurm_id(), status, told)
        folder.add_attempt(attempt)


def described(status: int, words: str) -> str:
    """``exit status 1: ...``, ``killed by SIGKILL (often: out of memory): ...``."""
    names = {-number: f"killed by {number.name}" for number in signal.Signals}
    names[-signal.SIGKILL] += " (often: out of memory)"
    return f"{names.get(status, f'exit status {status}')}: {words or 'no error message'}"
