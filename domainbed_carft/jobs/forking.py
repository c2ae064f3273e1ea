"""The warm process itself, `python -m domainbed_carft.jobs.forking DESCRIPTOR` (see `warm`).

It has a child for each job, the job's guard, whose child is the job. The guard tells the launcher
how the job ended, also after the warm process has died, which ends with its launcher.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.folder import INHERITED
from domainbed_carft.jobs.warm import TRAIN


def main() -> None:
    """Fork jobs as long as the launcher asks; returns in a job, to become it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        import_what_train_imports()
    except BaseException:  # whatever it is, a job that starts cold tells it
        os._exit(1)
    # Ctrl-C is for the launcher and its jobs; guards that end leave no zombies.
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGCHLD)}
    if os.fork() == 0:  # at a fork libraries that can do so end their threads
        os._exit(0)
    # That in which wilds, upstream's, asks for its newest version, ends by itself.
    patience = time.monotonic() + 3
    while _threads() > 1 and time.monotonic() < patience:
        time.sleep(0.05)
    job = _next_job(control)
    for number, handler in before.items():
        signal.signal(number, handler)
    _become(*job)


def import_what_train_imports() -> None:
    """Run the import statements of train, and what our algorithms import when they are built."""
    spec = importlib.util.find_spec(TRAIN)
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).read_bytes())
    tree.body = [one for one in tree.body if isinstance(one, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, spec.origin, "exec"), {"__name__": TRAIN})
    path = sys.path[:]
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip-anytorch's, of pkg_resources
        import clip  # noqa: F401
    sys.path[:] = path  # pkg_resources has added a folder, also for jobs that need no clip


def _next_job(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """In a job what it was asked to be, and its descriptors; ends once the launcher is gone."""
    while message := (received := socket.recv_fds(control, 1 << 20, 3))[0]:
        # A launcher that gets no answer starts the job cold. A fork has no threads but its own.
        if _threads() == 1 and os.fork() == 0:
            control.close()
            if _guard(*received[1]):
                return json.loads(message), received[1]
        # Else the next job would hold the lock of this one.
        for descriptor in received[1]:
            os.close(descriptor)
    os._exit(0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _guard(answer: int, *others: int) -> bool:
    """Fork the job, and return True in it; the guard waits for its end, tells it, and ends."""
    job = -1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if (job := os.fork()) == 0:
            return True
        # What stops the job, such as a signal to all processes here, is not to stop its guard.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for descriptor in others:
            os.close(descriptor)
        os.write(answer, b"%d\n" % job)
        status = os.waitpid(job, 0)[1]
        os.write(answer, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        if job:
            os._exit(0)
    return False


def _become(asked: dict[str, Any], descriptors: list[int]) -> None:
    """Run train as `python -m` does, with this process's streams or those of a job apart.

    The pipe for the answer stays open: should the guard be killed, its end is the job's end.
    """
    answer, *descriptors = descriptors
    os.set_inheritable(answer, False)
    variables = asked["variables"]
    if asked["apart"]:
        lock, errors = descriptors
        os.setsid()
        os.dup2(errors, 2)
        os.close(errors)
        os.set_inheritable(lock, True)
        variables[INHERITED] = str(lock)
    os.environ.update(variables)
    sys.argv = [TRAIN, *asked["arguments"]]
    runpy.run_module(TRAIN, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
