"""Evaluate runs in this process, or several at a time in processes that each evaluate many."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, TypeAlias

from tqdm import tqdm

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError, brief, raise_for
from domainbed_carft.escaping import print_lines
from domainbed_carft.images.squares import get_memory
from domainbed_carft.progress_bar import log, progress

# Return True if the task had to be done, and False if its result existed.
Task: TypeAlias = Callable[[], bool]


class TaskEnd(NamedTuple):
    """How a task ended.

    Attributes:
        was_measured: True if the task had to be done, and it was.
        problem: the reason why it has no result; empty if it has one.
    """

    was_measured: bool
    problem: str = ""


class _Worker(NamedTuple):
    """A process that runs one task after another, and the process variables it was started with."""

    slot: Mapping[str, str]
    process: SpawnProcess
    connection: Connection


def run_tasks(tasks: Mapping[str, Task], jobs: int | None) -> dict[str, TaskEnd]:
    """Evaluate runs; one that fails, or whose process ends, does not affect the others.

    Args:
        tasks: functions that can be pickled, by name of the run. They must save their results.
        jobs: number of tasks at a time. 1 runs all of them in this process. Default: one per GPU,
            or one per core without a GPU.

    Returns:
        The ends by name, in the order of the tasks.
    """
    pool: Any = launchers.make("pool", {"jobs": jobs})
    raise_for(pool.problems())
    slots = pool.slots(len(tasks)) if tasks else []
    ends: dict[str, TaskEnd] = {}
    in_this_process = ((name, _run(task)) for name, task in tasks.items())
    try:
        with progress(total=len(tasks), unit="run", description="evaluate", delay=2) as bar:
            for name, end in in_this_process if len(slots) < 2 else _run_in(slots, tasks):
                ends[name] = end
                if end.problem:
                    log(f"evaluate: {name}: {end.problem}")
                bar.update()
    finally:
        get_memory.cache_clear()  # the image files can change before the next call
    return {name: ends[name] for name in tasks}


def _run(task: Task) -> TaskEnd:
    """Run a task; its problems, or another error, become one line."""
    try:
        return TaskEnd(task())
    except CarftError as error:
        problem = "; ".join(error.problems)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch is out of memory
        problem = str(error).partition("\n")[0] or type(error).__name__
    except (Exception, SystemExit) as error:  # a user's own method can raise any type
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{brief(error)} ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return TaskEnd(was_measured=False, problem=problem)


def _run_in(
    slots: Sequence[Mapping[str, str]], tasks: Mapping[str, Task]
) -> Iterator[tuple[str, TaskEnd]]:
    """Run tasks in a process per slot, and replace a process that ends."""
    # Not a ProcessPoolExecutor, nor pebble's pool: their processes share their process variables,
    # outlive a killed command until their runs end, and print a traceback if Ctrl-C comes while
    # they start. If a process of the former ends, all runs in progress fail.
    waiting = deque(tasks.items())
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, str]] = {}
    shown: set[str] = set()
    try:
        for slot in reversed(slots):
            idle.append(_start_worker(slot))
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                name, task = waiting.popleft()
                busy[worker.connection] = worker, name
                with contextlib.suppress(OSError):  # the process has ended, which `recv` reports
                    worker.connection.send(task)

            ready = wait([*busy])
            for connection in [each for each in busy if each in ready]:
                worker, name = busy.pop(connection)
                try:
                    end, caught = connection.recv()
                    _print_new(caught, shown)
                    yield name, end
                except (EOFError, ConnectionResetError):  # the latter if the task was not received
                    worker.process.join()
                    problem = f"the process ended with status {worker.process.exitcode}"
                    yield name, TaskEnd(was_measured=False, problem=problem)
                    if not waiting:
                        continue
                    worker = _start_worker(worker.slot)
                idle.append(worker)
    finally:
        for worker in idle:
            worker.connection.close()  # it then ends by itself
        for worker, _ in busy.values():
            worker.process.terminate()


def _print_new(caught: Sequence[str], shown: set[str]) -> None:
    """Print the warnings of a process that are not in ``shown``, and add them to it."""
    with tqdm.external_write_mode(sys.stderr):  # clears the bar
        print_lines(*[text for text in caught if text not in shown], stream=sys.stderr)
    shown.update(caught)


def _start_worker(slot: Mapping[str, str]) -> _Worker:
    """Start a process with the variables, which libraries such as OpenMP read at its start."""
    context = multiprocessing.get_context("spawn")
    connection, end = context.Pipe()
    process = context.Process(target=_serve, args=(end,))
    earlier = dict(os.environ)
    os.environ.update(slot)
    # Ctrl-C is for the command, which ends its processes: they inherit the blocked signal, even
    # while they start. The tracker of semaphores, which unblocks it, must run before.
    resource_tracker.ensure_running()
    earlier_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier_mask)
        os.environ.clear()
        os.environ.update(earlier)
    end.close()
    return _Worker(slot, process, connection)


def _serve(connection: Connection) -> None:
    """Run the tasks that arrive, until the command closes the connection or ends."""
    # Without a handler, a stopped process would not remove its semaphores.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_command, daemon=True).start()
    with (
        contextlib.suppress(EOFError, OSError, KeyboardInterrupt),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        while True:
            task = connection.recv()
            with warnings.catch_warnings(record=True) as caught:
                end = _run(task)
            connection.send((end, [_format_warning(warning) for warning in caught]))


def _end_with_command() -> None:
    """End this process and its loading processes at once when the command ends, however it ends.

    Otherwise they would write results beside the next command.
    """
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    for process in multiprocessing.active_children():
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _format_warning(warning: warnings.WarningMessage) -> str:
    text = warnings.formatwarning(
        warning.message, warning.category, warning.filename, warning.lineno, line=""
    )
    return text.rstrip()
