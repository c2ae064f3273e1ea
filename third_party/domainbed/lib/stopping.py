"""Stopping cleanly on SIGTERM, Ctrl-C, or SIGUSR1, SLURM's warning of its time limit."""

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

_PR_SET_PDEATHSIG = 1  # of prctl: the signal that a process gets when its parent ends


class Stopped(BaseException):
    """A signal stopped training. Not an Exception, so that no caller takes this for a failure."""


class StopSignals:
    """Inside the block the signals do not end the process; `check` raises Stopped instead.

    A second Ctrl-C raises KeyboardInterrupt at once. All processes of the group stop if a signal
    comes to one; each calls `check` equally often.
    """

    def __init__(self, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._process_group = process_group
        self._received: signal.Signals | None = None
        self._waits = False

    def __enter__(self) -> StopSignals:
        # Only the main thread may handle signals.
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
        """Inside, where this process waits for others, a signal raises Stopped at once.

        But not in a job of several processes: those have to stop after the same step.
        """
        self._waits = self._process_group.size == 1
        try:
            if self._waits and self._received:
                raise Stopped(self._received.name)
            yield
        finally:
            self._waits = False

    def check(self) -> None:
        """Raise Stopped, with the signal's name, if one has come to any process of the job."""
        if received := self._process_group.max_over_processes(self._received or 0):
            raise Stopped(signal.Signals(received).name)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals inside; worker processes that start there inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(pid: int | None) -> None:
    """Have Linux kill this process when `pid`, which has started it, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:  # it has ended already
        os._exit(1)


def init_worker(worker_id: int) -> None:
    """Keep a worker process running for the last step when SLURM signals the whole job.

    The process ends when its parent signals it, which only `sigwaitinfo` can distinguish, and when
    its parent has died: while it runs, the job is locked. Torch alone would miss a parent that died
    before the process began.
    """
    # Already blocked, unless a fork server from before `block_signals` made this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None, "to be called in a loader's process"
    # A fork server of multiprocessing's ends with the process that it works for.
    has_server = multiprocessing.get_start_method() == "forkserver"
    end_with_parent(os.getppid() if has_server else parent.pid)

    def end_on_parent_signal() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent.pid:
            continue
        os._exit(0)

    threading.Thread(target=end_on_parent_signal, daemon=True).start()
