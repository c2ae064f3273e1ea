"""The processes in which a launcher runs jobs, and what signals to the launcher do to them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from domainbed_carft.jobs.fork_server import ForkServer, Process


class Children:
    """The jobs that this process runs now.

    ``stopped_by``: the number of the signal that told this process to stop, if one did.
    """

    def __init__(self, fork_server: ForkServer | None = None) -> None:
        self.stopped_by: int | None = None
        self._fork_server = fork_server
        self._running: dict[int, Process | subprocess.Popen[bytes]] = {}

    def run(
        self, words: Sequence[str], variables: Mapping[str, str], lock: int, stderr: IO[bytes]
    ) -> int:
        """Run a child, which holds the lock too, in a session of its own; returns its status."""
        process = self._start(words, variables, lock, stderr)
        if self.stopped_by is not None:  # told while the child was being started
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait()
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
            process: Process | subprocess.Popen[bytes] | None = None
            if self._fork_server:
                process = self._fork_server.start(words, variables, lock, stderr.fileno())

            if process is None:
                process = subprocess.Popen(
                    words,
                    env=variables,
                    pass_fds=(lock,),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                )
            self._running[process.pid] = process
            return process
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
