"""Run tasks in this process, or several at a time in processes that each run many tasks."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeAlias

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.text import log, progress

# Return True if the task had to be done, and False if its result existed.
Task: TypeAlias = Callable[[], bool]
# The result of a task, or the reason why it has none.
Outcome: TypeAlias = bool | str


def run_tasks(tasks: Mapping[str, Task], jobs: int | None, description: str) -> dict[str, Outcome]:
    """Run all tasks; a task that fails, or whose process ends, does not affect the others.

    Args:
        tasks: functions that can be pickled, by name. They must save their results.
        jobs: number of tasks at a time. 1 runs all of them in this process. Default: one per GPU,
            or one per core without a GPU.
        description: name of the command, for messages.

    Returns:
        The outcomes, in the order of the tasks.
    """
    pool: Any = launchers.make("pool", {"jobs": jobs})
    raise_for(pool.problems())
    slots = pool.slots(len(tasks)) if tasks else []
    run = _run_here if len(slots) < 2 else _run_in_processes
    outcomes: dict[str, Outcome] = {}
    with progress(total=len(tasks), unit="run", description=description, delay=2) as bar:
        for name, outcome in run(tasks, slots):
            outcomes[name] = outcome
            if isinstance(outcome, str):
                log(f"{description}: {name}: {outcome}")
            bar.update()
    return {name: outcomes[name] for name in tasks}


def _run_here(
    tasks: Mapping[str, Task], slots: list[dict[str, str]]
) -> Iterator[tuple[str, Outcome]]:
    for name, task in tasks.items():
        yield name, _run(task)


def _run(task: Task) -> Outcome:
    """Run a task, and return its result, or its problems or the first line of another error."""
    try:
        return task()
    except CarftError as error:
        return "; ".join(error.problems)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch is out of memory
        return str(error).partition("\n")[0] or type(error).__name__


def _run_in_processes(
    tasks: Mapping[str, Task], slots: list[dict[str, str]]
) -> Iterator[tuple[str, Outcome]]:
    """Run tasks in a process per slot, and replace a process that ends."""
    waiting = deque(tasks.items())
    processes: dict[Connection, tuple[SpawnProcess, dict[str, str], str]] = {}

    def give_task(connection: Connection, process: SpawnProcess, slot: dict[str, str]) -> None:
        name, task = waiting.popleft()
        processes[connection] = process, slot, name
        with contextlib.suppress(OSError):  # the process has ended, which `recv` reports
            connection.send(task)

    try:
        for slot in slots:
            give_task(*_start_process(slot), slot)
        while processes:
            ready = wait([*processes])
            for connection in [each for each in processes if each in ready]:
                process, slot, name = processes.pop(connection)
                try:
                    yield name, connection.recv()
                except (EOFError, ConnectionResetError):  # the latter if the task was not received
                    process.join()
                    yield name, f"the process ended with status {process.exitcode}"
                    if waiting:
                        connection, process = _start_process(slot)
                if waiting:
                    give_task(connection, process, slot)
                else:
                    connection.close()
                    process.join()
    finally:
        for process, _, _ in processes.values():
            process.terminate()


def _start_process(variables: Mapping[str, str]) -> tuple[Connection, SpawnProcess]:
    """Start a process with process variables, which libraries such as OpenMP read at its start."""
    context = multiprocessing.get_context("spawn")
    connection, end = context.Pipe()
    process = context.Process(target=_serve, args=(end,))
    earlier = dict(os.environ)
    os.environ.update(variables)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(earlier)
    end.close()
    return connection, process


def _serve(connection: Connection) -> None:
    """Run the tasks that arrive, until the command closes the connection or ends."""
    # The command ends its processes. Without a handler, they would not remove their semaphores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.suppress(EOFError, OSError), contextlib.redirect_stderr(io.StringIO()):
        while True:
            connection.send(_run(connection.recv()))
