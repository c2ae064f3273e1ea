"""A fork server: a process that has imported what jobs import, and forks itself for each job.

A job sees the arguments and the system as a newly started process would. `ForkServer` is the
launcher's side. The server, `python -m domainbed_carft.jobs.fork_server SOCKET MODULE`, runs the
imports of the module, forks itself for each request on the socket, and ends with the process at
the other end of the socket.

The fork server of multiprocessing does not suit. If it dies, its jobs count as ended although they
still run. It imports the caller's main module for each job, which breaks scripts without a main
guard. It skips functions that jobs register with atexit, and it forks even with several threads.
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
from typing import IO, Any

from domainbed_carft import process_variables
from domainbed_carft.jobs.job_folder import LOCK_VARIABLE

MODULE = "domainbed_carft.jobs.fork_server"
SWITCH = process_variables.COLD_START.name

TRAIN = "domainbed.scripts.train"

# These can differ between jobs, because no import reads them.
JOB_VARIABLES = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", LOCK_VARIABLE)

# Files that are open once the driver of a GPU has been started, which does not survive a fork.
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/dxg")

_MAX_REQUEST = 1 << 20  # bytes
_MAX_DESCRIPTORS = 3  # the pipe for the answers, the lock, and the standard error
_MAX_THREAD_WAIT = 3.0  # seconds


class Process:
    """A forked process, with the part of the interface of subprocess.Popen that launchers use."""

    def __init__(self, pid: int, answers: IO[bytes]) -> None:
        self.pid = pid
        # Set by `wait` and `poll`: negative for a signal, -15 if the guard process was killed.
        self.returncode: int | None = None
        self._answers = answers  # the pipe into which the guard process writes the exit status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit status.

        Args:
            timeout: maximum number of seconds; None to wait forever.

        Raises:
            subprocess.TimeoutExpired: if the process has not ended by then.
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
        """Return the exit status, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """Context manager that starts jobs as forks of a server, which ends with the block.

    The server starts with the first job. It has run the imports of ``module``, which jobs run as
    ``python -m``. ``detached`` jobs and their server run in a new session without the streams of
    this process, except streams passed to `start`.
    """

    def __init__(self, detached: bool, module: str = TRAIN) -> None:
        self._detached = detached
        self._module = module
        self._starting = threading.Lock()  # held while a process is started
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._control.close()
            self._process.wait()

    def start(
        self, command: Sequence[str], variables: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a job, or return None if it has to be started as a new process.

        Args:
            command: the words of its command line.
            variables: all its process variables.
            descriptors: the lock and the standard error, for a detached job.
        """
        if sys.platform != "linux" or variables.get(SWITCH, "") not in ("", "0"):
            return None
        if list(command[:3]) != [sys.executable, "-m", self._module]:
            return None

        request = {
            "arguments": list(command[3:]),
            "variables": {name: variables[name] for name in JOB_VARIABLES if name in variables},
        }
        server_variables = {
            name: value for name, value in variables.items() if name not in JOB_VARIABLES
        }
        with self._starting, contextlib.suppress(OSError):
            if self._process is None:
                self._start_server(server_variables)
            if self._started_with != (server_variables, os.getcwd()):
                return None

            read_end, write_end = os.pipe()
            answers = os.fdopen(read_end, "rb", buffering=0)  # a buffer would hide bytes from poll
            with os.fdopen(write_end, "wb"):
                message = json.dumps(request).encode()
                socket.send_fds(self._control, [message], [write_end, *descriptors])
            if pid := answers.readline():
                return Process(int(pid), answers)
        return None

    def _start_server(self, variables: Mapping[str, str]) -> None:
        self._started_with = (dict(variables), os.getcwd())
        self._control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream = subprocess.DEVNULL if self._detached else None
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(child_end.fileno()), self._module],
                env=variables,
                pass_fds=(child_end.fileno(),),
                start_new_session=self._detached,
                stdin=stream,
                stdout=stream,
                stderr=stream,
            )


def _main() -> None:
    """Serve requests until the launcher has gone; in each forked process, run the request.

    The parent of a forked process is its guard, a child of the server. The guard reports the exit
    status of the process even after the server has died.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        _run_import_statements(sys.argv[2])
        _import_clip()
    except BaseException:  # jobs then start as new processes, which show the error
        os._exit(1)

    # Ctrl-C is for the launcher and its jobs. Without SIGCHLD, guards do not become zombies.
    handlers = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGCHLD)
    }
    _end_threads()
    gc.freeze()  # otherwise each forked process copies all of this memory when it ends

    request, descriptors = _receive_request(control)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _run_request(sys.argv[2], request, *descriptors)


def _run_import_statements(module: str) -> None:
    """Run a module's import statements."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).read_bytes())
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, spec.origin, "exec"), {"__name__": module})


def _import_clip() -> None:
    """Import clip, which algorithms import when they are built, if it is installed."""
    path = sys.path[:]
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip-anytorch warns about pkg_resources
        import clip  # noqa: F401
    sys.path[:] = path  # jobs without clip must not see the folder that pkg_resources adds


def _end_threads() -> None:
    """Fork once, at which some libraries end their threads, and wait for other threads to end."""
    if os.fork() == 0:
        os._exit(0)

    # The thread in which wilds, imported by upstream, looks for updates ends by itself.
    deadline = time.monotonic() + _MAX_THREAD_WAIT
    while _count_threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _receive_request(control: socket.socket) -> tuple[Any, list[int]]:
    """Return the request and its descriptors in each forked process.

    The server itself stays in this function, and ends here when the launcher has gone.
    """
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)

        # Without an answer the launcher starts the job as a new process.
        if _can_fork() and os.fork() == 0:
            control.close()
            if _guard(*descriptors):
                return json.loads(message), descriptors

        # Otherwise the next job would hold the lock of this one.
        for descriptor in descriptors:
            os.close(descriptor)


def _can_fork() -> bool:
    """Return True if there is a single thread and no GPU driver has been started."""
    open_files = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return _count_threads() == 1 and not any(path.startswith(GPU_DEVICES) for path in open_files)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _guard(answers: int, *process_descriptors: int) -> bool:
    """Fork the process, and return True in it. Its guard waits for it and reports its exit status.

    Args:
        answers: descriptor to which the guard writes the process id, and later the exit status.
        process_descriptors: descriptors that only the process keeps.
    """
    process = -1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()
        if process == 0:
            return True

        # A signal to all processes of the session stops the job, but must not stop its guard.
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


def _run_request(module: str, request: Any, answers: int, *job_descriptors: int) -> None:
    """Run the module as `python -m` does.

    Args:
        module: the module.
        request: its ``arguments``, and ``variables`` to add to the server's.
        answers: the pipe for the answers. It stays open, so that it closes with the process if the
            guard is killed.
        job_descriptors: for a detached job, its lock and its standard error.
    """
    os.set_inheritable(answers, False)
    os.environ.update(request["variables"])
    if job_descriptors:
        os.setsid()
        lock, stderr = job_descriptors
        os.set_inheritable(lock, True)
        os.environ[LOCK_VARIABLE] = str(lock)
        os.dup2(stderr, 2)
        os.close(stderr)

    sys.argv = [module, *request["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
