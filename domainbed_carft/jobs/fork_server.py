"""A fork server: a process that has imported what jobs import, and is forked for each of them.

What a job gets as arguments, and from the system, is what a process of its own would get. The
launcher's side is `ForkServer`. The server itself is `python -m domainbed_carft.jobs.fork_server
SOCKET MODULE`: it imports what the module imports, forks itself for each request on the socket, and
ends with the process at the socket's other end.

It is not multiprocessing's. There a job counts as ended when the server dies, though it runs on.
The caller's main module is imported for each job, which a script without a guard does not survive.
What a job has registered with atexit is not run, and a server with threads is forked all the same.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from domainbed_carft import process_variables
from domainbed_carft.jobs.folder import LOCK_VARIABLE

MODULE = "domainbed_carft.jobs.fork_server"
SWITCH = process_variables.COLD_START.name

TRAIN = "domainbed.scripts.train"

# What may differ from job to job, since nothing reads it while it is imported.
VARIABLES_OF_JOBS = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", LOCK_VARIABLE)

# Open where a GPU's driver has been started, which does not survive a fork.
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/dxg")

_STREAMS = {"stdout": 1, "stderr": 2}

_MAX_REQUEST = 1 << 20  # bytes
_MAX_DESCRIPTORS = 4  # the pipe for the answers, and three of the process
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


class Process:
    """A process that was forked, with as much of subprocess.Popen as its users need.

    ``returncode``: the exit status, once `wait` or `poll` has returned it; negative for a signal,
    -15 if the guard of the process was killed.
    """

    def __init__(self, pid: int, answers: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answers = answers  # a pipe in which the process's guard writes the exit status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return the exit status.

        Raises subprocess.TimeoutExpired if that takes more than ``timeout`` seconds.
        """
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._answers, select.POLLIN)
            if not poller.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            with self._answers:
                self.returncode = int(self._answers.readline() or -signal.SIGTERM)
        return self.returncode

    def poll(self) -> int | None:
        """The exit status; None as long as the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """Starts processes as forks of one that has imported what ``module`` imports.

    A context manager: the server starts with the first process that it can fork, and ends with the
    block. ``detached`` processes get a session of their own, no input, and no output but the
    streams that they are given; others share this process's session and streams. So does the
    server. ``module``: what jobs run as ``python -m``.
    """

    def __init__(self, detached: bool, module: str = TRAIN) -> None:
        self._detached = detached
        self._module = module
        self._starting = threading.Lock()  # held while a process is started
        self._process: subprocess.Popen[bytes] | Process | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._control.close()
            self._process.wait()

    def start(
        self, command: Sequence[str], variables: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a job; None if it has to start cold.

        ``variables``: all those of its process; ``descriptors``: of a detached job its lock and
        standard error.
        """
        if sys.platform != "linux" or variables.get(SWITCH, "") not in ("", "0"):
            return None
        if list(command[:3]) != [sys.executable, "-m", self._module]:
            return None

        request = Request(
            module=self._module,
            arguments=list(command[3:]),
            variables={name: variables[name] for name in VARIABLES_OF_JOBS if name in variables},
            is_detached=self._detached,
            descriptors=[LOCK_VARIABLE, "stderr"] if self._detached else [],
        )
        server_variables = {
            name: value for name, value in variables.items() if name not in VARIABLES_OF_JOBS
        }
        with self._starting, contextlib.suppress(OSError):
            self._start_server(server_variables)
            if self._started_with != (server_variables, os.getcwd()):
                return None
            return self._send(request, descriptors)
        return None

    def fork(
        self, request: Request, server_variables: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a process, whatever it is; None if it cannot be forked.

        ``server_variables``: all those of the server, should it not run yet; ``descriptors``: those
        that the request names. Raises OSError if the server has died, or the request is too long.
        """
        with self._starting:
            self._start_server(server_variables)
            return self._send(request, descriptors)

    def _start_server(self, variables: Mapping[str, str]) -> None:
        """Start the server, unless it has been started."""
        if self._process is not None:
            return

        self._started_with = (dict(variables), os.getcwd())
        self._control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child_end:
            self._process = run_server(child_end, self._module, variables, self._detached)

    def _send(self, request: Request, descriptors: Sequence[int]) -> Process | None:
        """Ask the server for a process; None if it does not answer.

        Raises OSError if the server is dead, or the request too long.
        """
        read_end, write_end = os.pipe()
        answers = os.fdopen(read_end, "rb", buffering=0)  # so that a wait sees what is unread
        with os.fdopen(write_end, "wb"):
            message = json.dumps(request._asdict()).encode()
            socket.send_fds(self._control, [message], [write_end, *descriptors])

        pid = answers.readline()
        return Process(int(pid), answers) if pid else None


def run_server(
    control: socket.socket, module: str, variables: Mapping[str, str], is_detached: bool
) -> subprocess.Popen[bytes] | Process:
    """Start a server with these variables, which takes its requests from ``control``."""
    stream = subprocess.DEVNULL if is_detached else None
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, str(control.fileno()), module],
        env=variables,
        pass_fds=(control.fileno(),),
        start_new_session=is_detached,
        stdin=stream,
        stdout=stream,
        stderr=stream,
    )


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
