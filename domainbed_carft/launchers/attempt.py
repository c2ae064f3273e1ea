"""One attempt at a job: what every launcher does with a command, in a SLURM job as well."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import (
    NOT_ITS_FAULT,
    UNKNOWN,
    Attempt,
    Held,
    JobFolder,
    last_line,
    slurm_id,
)
from domainbed_carft.launchers.protocol import FailedJob

ELSEWHERE = 73
CANNOT_START = 127  # as a shell says it

ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


class Result(enum.Enum):
    """What came of an attempt."""

    DONE = "done, now or before"
    FAILED = "failed, and may be tried again"
    LEFT = "failed, and is to be left alone"
    HELD = "another process runs it"
    ELSEWHERE = "another process runs it, whose lock is not seen from here"
    INTERRUPTED = "stopped before its end, and may be started again"


@dataclass(frozen=True)
class Ending:
    """A result; `failure` says how the job ended, unless it is done or another's."""

    command: str
    result: Result
    failure: FailedJob | None = None
    held: Held | None = None


@dataclass
class Command:
    """A command as DomainBed writes it, taken apart without a shell."""

    text: str
    arguments: list[str] = field(init=False)
    environment: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = shlex.split(self.text)
        # T3A and DPLCLIP write `NAME=value python -m ...`, which a shell would understand.
        while self.arguments and (assigned := ASSIGNMENT.fullmatch(self.arguments[0])):
            self.environment[assigned["name"]] = assigned["value"]
            del self.arguments[0]
        if self.arguments[:1] == ["python"]:  # the jobs need what this interpreter imports
            self.arguments[0] = sys.executable

    @property
    def folder(self) -> JobFolder | None:
        """The job's --output_dir, if it has one."""
        value = None
        for word, following in zip(self.arguments, [*self.arguments[1:], None]):
            if word == "--output_dir":
                value = following
            elif word.startswith("--output_dir="):
                value = word.partition("=")[2]
        return JobFolder(value) if value else None


class Children:
    """The jobs that this process runs now, and whether it was told to stop."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.killed = False
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], fds: Sequence[int],
        stderr: IO[bytes],
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a child that a signal to this process's group, as Ctrl-C sends it, spares."""
        # SLURM sends submitit's signal to every process of a job. It is meant for submitit alone
        # and would kill the others; what is blocked here stays blocked in a child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            process = subprocess.Popen(
                arguments, env=environment, pass_fds=fds, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip
            self._running[process.pid] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.stopped_by is not None:  # told while the child was being started
            process.terminate()
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Forget a child that has ended."""
        self._running.pop(process.pid, None)

    def stop(self, told: int, signal_number: int = signal.SIGTERM) -> None:
        """Tell all children to save and leave, and start no others; safe in a signal handler.

        Args:
            told: the signal that this process was stopped by.
            signal_number: the one that the children get.
        """
        self.stopped_by = told
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)

    def kill(self) -> None:
        """End all children at once; safe in a signal handler."""
        self.killed = True
        for process in list(self._running.values()):
            process.kill()


def run(
    command: str,
    environment: Mapping[str, str] | None = None,
    children: Children | None = None,
    patience: float = 0.0,
) -> Ending:
    """Make one attempt at a job, unless it is done, another's, or to be left alone.

    Args:
        command: shell-quoted words; no shell sees them.
        environment: variables to set, under those that the command itself sets.
        children: where to note the running child.
        patience: seconds to wait for another process to let go of the job.
    """
    parsed = Command(command)
    children = children or Children()
    variables = {**os.environ, **(environment or {}), **parsed.environment}
    variables.pop("DOMAINBED_LOCK_FD", None)  # this process's own, if it was launched itself
    folder = parsed.folder
    if folder is None:
        status, words = _attempt(parsed, variables, (), children)
        failure = FailedJob(command, status, 1, words)
        return Ending(command, *((Result.LEFT, failure) if status else (Result.DONE,)))
    give_up = time.monotonic() + patience
    while True:
        try:
            return _run_in(folder, parsed, variables, children)
        except Held as held:
            if time.monotonic() >= give_up:
                return Ending(command, Result.HELD, held=held)
        except (OSError, CarftError) as error:  # of the folder: no attempt can be made, or noted
            failure = FailedJob(str(folder.path), CANNOT_START, 1, str(error))
            return Ending(command, Result.LEFT, failure)
        time.sleep(0.5)


def _run_in(
    folder: JobFolder, command: Command, variables: dict[str, str], children: Children
) -> Ending:
    if not folder.done:
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.claim() as lock:
            if not folder.done and folder.failed() is None:
                variables["DOMAINBED_LOCK_FD"] = str(lock.descriptor)
                status = _noted_attempt(folder, command, variables, lock.descriptor, children)
                return _ending(folder, command.text, status)
    return _ending(folder, command.text, None)


def _ending(folder: JobFolder, command: str, status: int | None) -> Ending:
    if folder.done:
        return Ending(command, Result.DONE)
    if status == ELSEWHERE:
        held = Held(folder.path, folder.holder() or UNKNOWN)
        return Ending(command, Result.ELSEWHERE, held=held)
    attempts = folder.attempts()
    failures = sum(attempt.status not in NOT_ITS_FAULT for attempt in attempts)
    last = attempts[-1]
    failure = FailedJob(str(folder.path), last.status, failures, last.last_words)
    if folder.failed():
        return Ending(command, Result.LEFT, failure)
    result = Result.INTERRUPTED if last.status in NOT_ITS_FAULT else Result.FAILED
    return Ending(command, result, failure)


def _noted_attempt(
    folder: JobFolder, command: Command, variables: Mapping[str, str], lock: int,
    children: Children,
) -> int:  # fmt: skip
    started, status, words = time.time(), -signal.SIGTERM, "the launcher was stopped"
    try:
        status, words = _attempt(command, variables, (lock,), children)
        if status == 0 and not folder.done:
            words = "ended with status 0 but left no file done"
        return status
    finally:
        attempt = Attempt(
            started, time.time(), socket.gethostname(), slurm_id(), status,
            words or (_new_words(folder, started) if status else ""),
        )  # fmt: skip
        folder.add_attempt(attempt)


def _new_words(folder: JobFolder, since: float) -> str:
    """The last words in err.txt, which keeps those of earlier attempts, if there are new ones."""
    try:
        changed = (folder.path / "err.txt").stat().st_mtime
    except OSError:
        return ""
    return folder.last_words() if changed >= since - 1 else ""  # clocks of file systems are coarse


def _attempt(
    command: Command, variables: Mapping[str, str], fds: Sequence[int], children: Children
) -> tuple[int, str]:
    """The child's exit status and the last thing it wrote to its stderr."""
    with tempfile.NamedTemporaryFile(prefix="carft-job-") as stderr:
        try:
            process = children.start(command.arguments, variables, fds, stderr.file)
        except (OSError, ValueError) as error:  # ValueError: a null byte
            return CANNOT_START, str(error)
        try:
            status = process.wait()
        except BaseException:  # where no handler takes Ctrl-C: do not leave the job unlocked
            process.terminate()
            process.wait()
            raise
        finally:
            children.ended(process)
        if children.killed and status == -signal.SIGKILL:  # by us, which is not the job's fault
            return -signal.SIGTERM, "it did not stop when told to, and was killed"
        return status, last_line(stderr.name)
