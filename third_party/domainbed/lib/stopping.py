"""Stop cleanly on SIGTERM, Ctrl-C, and SIGUSR1, SLURM's warning before its time limit."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from domainbed.lib.process_group import SINGLE_PROCESS, ProcessGroup

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_PR_SET_PDEATHSIG = 1  # prctl: the signal that a process receives when its parent ends


class Stopped(BaseException):
    """A signal stopped training. Not an Exception, so that no caller treats it as a failure."""


class StopSignals:
    """Block in which signals do not end the process; `check` raises Stopped instead.

    A second Ctrl-C raises KeyboardInterrupt at once. If one process of a group receives a signal,
    all of them stop; each must call `check` equally often.
    """

    def __init__(self, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._process_group = process_group
        self._received: signal.Signals | None = None
        self._waits = False

    def __enter__(self) -> StopSignals:
        # Only the main thread can handle signals.
        numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._former = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self._waits:
            self._waits = False
            raise Stopped(self._received.name)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise Stopped at once if a signal arrives while the block waits for other processes.

        In a job of several processes this does nothing, since they must stop after the same step.
        """
        self._waits = self._process_group.size == 1
        try:
            if self._waits and self._received:
                raise Stopped(self._received.name)
            yield
        finally:
            self._waits = False

    def check(self) -> None:
        """Raise Stopped, with the signal's name, if any process of the job received a signal."""
        if received := self._process_group.max_over_processes(self._received or 0):
            raise Stopped(signal.Signals(received).name)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals in this process and in worker processes that are started in the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(pid: int | None) -> None:
    """Make Linux kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:  # the parent has ended already
        os._exit(1)


def init_worker(worker_id: int) -> None:
    """Keep a worker process running for the last step when SLURM signals all processes of a job.

    The process ends when its parent signals it, which only `sigwaitinfo` can distinguish. It also
    ends with its parent, since the job is locked while it runs; torch alone would not notice a
    parent that died before the process began.
    """
    # Already blocked, unless this process was forked by a fork server older than `block_signals`.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None, "must be called in a loader process"
    # The fork server of multiprocessing ends together with the process that it serves.
    has_server = multiprocessing.get_start_method() == "forkserver"
    end_with_parent(os.getppid() if has_server else parent.pid)

    def end_on_parent_signal() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent.pid:
            continue
        os._exit(0)

    threading.Thread(target=end_on_parent_signal, daemon=True).start()
