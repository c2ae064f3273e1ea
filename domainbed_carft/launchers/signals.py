"""Stopping a launcher: its jobs are told, save themselves and leave before it does."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from domainbed_carft.launchers.attempt import Children


@contextlib.contextmanager
def stopping(children: Children, name: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the children with SIGTERM, then this process.

    A second Ctrl-C kills what still runs. Outside of the main thread, which alone may handle
    signals, nothing is changed.

    Raises:
        KeyboardInterrupt: at the end, after Ctrl-C.
        SystemExit: at the end, after another signal: 128 + its number, as a shell says it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and children.stopped_by is not None:
            children.kill()
            return
        if children.stopped_by is None:
            print(f"{name}: stopping; waiting for the running jobs to save", file=sys.stderr)
        children.stop(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {}
    if threading.current_thread() is threading.main_thread():
        # What is ignored, as nohup has it, stays so.
        found = {number: signal.getsignal(number) for number in numbers}
        before = {n: handler for n, handler in found.items() if handler is not signal.SIG_IGN}
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
