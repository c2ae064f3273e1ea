"""A fork server: it has imported what each job of a launch imports, and jobs are forks of it.

What a job gets as arguments, and from the system, is what a process of its own would get. With
multiprocessing's forkserver, jobs would count as ended when it dies.
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
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from domainbed_carft.jobs.folder import LOCK_VARIABLE

# Any value but 0 has all jobs start cold.
SWITCH = "DOMAINBED_COLD_START"

TRAIN = "domainbed.scripts.train"

# Open where a GPU's driver has been started, which does not survive a fork.
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/dxg")

# What may differ from job to job, since nothing reads it while it is imported.
VARIABLES_OF_JOBS = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", LOCK_VARIABLE)

_MAX_REQUEST = 1 << 20  # bytes
_MAX_DESCRIPTORS = 3  # the pipe for the answers, the lock, and standard error
_THREADS_PATIENCE = 3.0  # seconds


@dataclass(frozen=True)
class Process:
    """A job that was forked, with as much of subprocess.Popen as launchers use.

    ``answers``: the pipe in which the job's guard writes the exit status.
    """

    pid: int
    answers: IO[str]

    def wait(self) -> int:
        """The exit status, negative for a signal; -15 if the guard of the process was killed."""
        with self.answers:
            return int(self.answers.readline() or -signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """Starts jobs as forks of a process that has imported what they import.

    A context manager: the server starts with the first job that it can fork, and ends with the
    block. ``detached`` jobs get a session of their own, no input, and no output but standard error;
    others share this process's session and streams. So does the server. ``module``: what jobs run
    as ``python -m``.
    """

    def __init__(self, detached: bool, module: str = TRAIN) -> None:
        self._detached = detached
        self._module = module
        self._starting = threading.Lock()  # held while a job is started
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
        """Start a job; None if it has to start cold.

        ``variables``: the whole environment of its process; ``descriptors``: of a detached job its
        lock and standard error.
        """
        if sys.platform != "linux" or variables.get(SWITCH, "") not in ("", "0"):
            return None
        if list(command[:3]) != [sys.executable, "-m", self._module]:
            return None

        server_variables = {
            name: value for name, value in variables.items() if name not in VARIABLES_OF_JOBS
        }
        job_variables = {name: variables[name] for name in VARIABLES_OF_JOBS if name in variables}
        request = {"arguments": command[3:], "variables": job_variables, "detached": self._detached}

        with self._starting, contextlib.suppress(OSError):
            if self._process is None:
                self._start_server(server_variables)
            if self._started_with != (server_variables, os.getcwd()):
                return None
            return self._request(request, descriptors)
        return None

    def _start_server(self, variables: dict[str, str]) -> None:
        self._started_with = (variables, os.getcwd())
        self._control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream = subprocess.DEVNULL if self._detached else None
        with child_end:
            words = [sys.executable, "-m", "domainbed_carft.jobs.fork_server"]
            self._process = subprocess.Popen(
                [*words, str(child_end.fileno()), self._module],
                env=variables,
                pass_fds=(child_end.fileno(),),
                start_new_session=self._detached,
                stdin=stream,
                stdout=stream,
                stderr=stream,
            )

    def _request(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> Process | None:
        """Ask the server for a job; None if it does not answer.

        Raises OSError if the server is dead, or the request too long.
        """
        read_end, write_end = os.pipe()
        answers = os.fdopen(read_end)
        with os.fdopen(write_end, "wb"):
            message = json.dumps(request).encode()
            socket.send_fds(self._control, [message], [write_end, *descriptors])

        pid = answers.readline()
        return Process(int(pid), answers) if pid else None


def _main() -> None:
    """Be the fork server: fork jobs as long as the launcher asks; goes on in a job, to become it.

    A job is the child of its guard, a child of this process, which writes the launcher how the job
    ended, also after this process has died. This process ends with its launcher.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    module = sys.argv[2]
    try:
        _import_what_jobs_import(module)
    except BaseException:  # whatever it is, a job that starts cold shows it
        os._exit(1)

    # Ctrl-C is for the launcher and its jobs; guards that end leave no zombies.
    handlers = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGCHLD)
    }
    _end_threads()

    request, descriptors = _next_job(control)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _become(module, request, *descriptors)


def _import_what_jobs_import(module: str) -> None:
    """Run a module's import statements, and what our algorithms import when they are built."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).read_bytes())
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, spec.origin, "exec"), {"__name__": module})

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


def _next_job(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """In a job its request and descriptors; the server ends here once the launcher is gone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)

        # A launcher that gets no answer starts the job cold.
        if _may_fork() and os.fork() == 0:
            control.close()
            if _guard(*descriptors):
                return json.loads(message), descriptors

        # Else the next job would hold the lock of this one.
        for descriptor in descriptors:
            os.close(descriptor)


def _may_fork() -> bool:
    """Whether a child would be sound: there is one thread, and no driver of a GPU was started."""
    open_files = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return _count_threads() == 1 and not any(path.startswith(GPU_DEVICES) for path in open_files)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _guard(answers: int, *job_descriptors: int) -> bool:
    """Fork the job, and return True in it; the guard waits, writes how the job ended, and ends.

    ``answers``: the descriptor to write the process id to, and then the exit status.
    """
    job = -1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        job = os.fork()
        if job == 0:
            return True

        # What stops the job, such as a signal to all processes here, is not to stop its guard.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for descriptor in job_descriptors:
            os.close(descriptor)

        os.write(answers, b"%d\n" % job)
        _, status = os.waitpid(job, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        if job:
            os._exit(0)
    return False


def _become(module: str, request: Mapping[str, Any], answers: int, *job_descriptors: int) -> None:
    """Run a module as `python -m` does, with this process's streams or those of a detached job.

    The pipe for the answers stays open: should the guard be killed, its end is the job's end.
    """
    os.set_inheritable(answers, False)
    variables = request["variables"]
    if request["detached"]:
        lock, stderr = job_descriptors
        os.setsid()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.set_inheritable(lock, True)
        variables[LOCK_VARIABLE] = str(lock)

    os.environ.update(variables)
    sys.argv = [module, *request["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
