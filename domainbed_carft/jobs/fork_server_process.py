"""The fork server itself: `python -m domainbed_carft.jobs.fork_server_process SOCKET MODULE`.

It imports what the module imports, forks itself for each request on the socket, and ends with the
process at the socket's other end.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Open where a GPU's driver has been started, which does not survive a fork.
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/dxg")

_STREAMS = {"stdout": 1, "stderr": 2}

_MAX_REQUEST = 1 << 20  # bytes
_MAX_DESCRIPTORS = 3  # the pipe for the answers, and two of the process
_THREADS_PATIENCE = 3.0  # seconds


class Request(NamedTuple):
    """A process to fork, which runs a module as `python -m` does."""

    module: str
    arguments: list[str]
    variables: dict[str, str]  # those that it has beside the server's
    is_detached: bool  # whether it leads a session of its own
    # What the descriptors are that come with the request: "stdout", "stderr", or the name of the
    # variable by which the process learns the number.
    descriptors: list[str]


def _main() -> None:
    """Be the fork server, as long as requests come; goes on in a fork, to become its process.

    A process is the child of its guard, a child of this one, which writes how the process ended,
    also after this one has died.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        _import_what_is_imported_by(sys.argv[2])
        _import_clip()
    except BaseException:  # whatever it is, a process that starts cold shows it
        os._exit(1)

    # Ctrl-C is for the launcher and its jobs; guards that end leave no zombies.
    handlers = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGCHLD)
    }
    _end_threads()
    gc.freeze()  # else each process copies all of this memory when it ends

    request, descriptors = _next_request(control)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _become(request, *descriptors)


def _import_what_is_imported_by(module: str) -> None:
    """Run a module's import statements."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).read_bytes())
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, spec.origin, "exec"), {"__name__": module})


def _import_clip() -> None:
    """Import what our algorithms import when they are built, if it is there."""
    path = sys.path[:]
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip-anytorch's, of pkg_resources
        import clip  # noqa: F401
    sys.path[:] = path  # pkg_resources has added a folder, also for jobs that need no clip


def _end_threads() -> None:
    """Let what was imported end its threads: libraries that can do so do it at a fork."""
    if os.fork() == 0:
        os._exit(0)

    # The thread in which wilds, upstream's, asks for its newest version ends by itself.
    deadline = time.monotonic() + _THREADS_PATIENCE
    while _count_threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _next_request(control: socket.socket) -> tuple[Request, list[int]]:
    """In a fork its request and descriptors; the server ends here once the launcher is gone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)

        # A launcher that gets no answer starts the job cold.
        if _may_fork() and os.fork() == 0:
            control.close()
            if _guard(*descriptors):
                return Request(**json.loads(message)), descriptors

        # Else the next job would hold the lock of this one.
        for descriptor in descriptors:
            os.close(descriptor)


def _may_fork() -> bool:
    """Whether a child would be sound: there is one thread, and no driver of a GPU was started."""
    open_files = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return _count_threads() == 1 and not any(path.startswith(GPU_DEVICES) for path in open_files)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _guard(answers: int, *process_descriptors: int) -> bool:
    """Fork the process, and return True in it; its guard waits, writes how it ended, and ends.

    ``answers``: the descriptor to write the process id to, and then the exit status.
    """
    process = -1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()
        if process == 0:
            return True

        # What stops the job, such as a signal to all processes here, is not to stop its guard.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for descriptor in process_descriptors:
            os.close(descriptor)

        os.write(answers, b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        if process:
            os._exit(0)
    return False


def _become(request: Request, answers: int, *process_descriptors: int) -> None:
    """Run the module as `python -m` does.

    The pipe for the answers stays open: should the guard be killed, its end is the process's end.
    """
    os.set_inheritable(answers, False)
    if request.is_detached:
        os.setsid()

    os.environ.update(request.variables)
    os.environ.update(_receive(request.descriptors, process_descriptors))
    sys.argv = [request.module, *request.arguments]
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def _receive(names: Sequence[str], descriptors: Sequence[int]) -> dict[str, str]:
    """Make streams of the descriptors with these names; return the others' numbers by name."""
    numbers = {}
    for name, descriptor in zip(names, descriptors):
        if name in _STREAMS:
            os.dup2(descriptor, _STREAMS[name])
            os.close(descriptor)
        else:
            os.set_inheritable(descriptor, True)
            numbers[name] = str(descriptor)
    return numbers


if __name__ == "__main__":
    _main()
