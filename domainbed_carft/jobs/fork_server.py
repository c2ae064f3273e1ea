"""A warm process: it has imported what each job of a launch imports, and jobs are forks of it.

What a job is told, and gets from the system, is what a process of its own would get. With
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

from domainbed_carft.jobs.folder import INHERITED

# Any value but 0 has all jobs start cold.
SWITCH = "DOMAINBED_COLD_START"

TRAIN = "domainbed.scripts.train"

# Open where a GPU's driver has been started, which does not survive a fork.
GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/dxg")

# What may differ from job to job, since nothing reads it while it is imported.
SET_LATE = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", INHERITED)


@dataclass(frozen=True)
class Process:
    """A job that was forked, with as much of subprocess.Popen as launchers use."""

    pid: int
    told: IO[str]

    def wait(self) -> int:
        """Its exit status, negative for a signal; -15 if it is gone and nobody knows how."""
        with self.told:
            return int(self.told.readline() or -signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Warm:
    """Starts jobs warm, inside a block; the warm process is made with the first, and as it wants.

    Jobs ``apart`` get a session of their own, no input, and no output but standard error; others
    share this process's session and streams. So does the warm process.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._control.close()
            self._process.wait()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a job, one apart with its lock and stderr; None if it has to start cold."""
        if sys.platform != "linux" or environment.get(SWITCH, "") not in ("", "0"):
            return None
        if list(words[:3]) != [sys.executable, "-m", TRAIN]:
            return None
        early = {name: value for name, value in environment.items() if name not in SET_LATE}
        late = {name: environment[name] for name in SET_LATE if name in environment}
        request = json.dumps({"arguments": words[3:], "variables": late, "apart": self._apart})
        with self._one_at_a_time, contextlib.suppress(OSError):
            if self._process is None:
                self._make(early)
            if self._made_for != (early, os.getcwd()):
                return None
            read, write = os.pipe()
            told = os.fdopen(read)
            with os.fdopen(write, "wb"):  # an OSError: the process is dead, the request too long
                socket.send_fds(self._control, [request.encode()], [write, *descriptors])
            if pid := told.readline():
                return Process(int(pid), told)
        return None

    def _make(self, environment: dict[str, str]) -> None:
        self._made_for = environment, os.getcwd()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = subprocess.DEVNULL if self._apart else None
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "domainbed_carft.jobs.fork_server", str(theirs.fileno())],
                env=environment, pass_fds=(theirs.fileno(),), start_new_session=self._apart,
                stdin=streams, stdout=streams, stderr=streams,
            )  # fmt: skip


def _main() -> None:
    """Be the warm process: fork jobs as long as the launcher asks; goes on in a job, to become it.

    A job is the child of its guard, a child of this process, which tells the launcher how the job
    ended, also after this process has died. That ends with its launcher.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        _import_what_train_imports()
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
    asked, descriptors = _next_job(control)
    for number, handler in before.items():
        signal.signal(number, handler)
    _become(asked, *descriptors)


def _import_what_train_imports() -> None:
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
        # A launcher that gets no answer starts the job cold.
        if _may_fork() and os.fork() == 0:
            control.close()
            if _guard(*received[1]):
                return json.loads(message), received[1]
        # Else the next job would hold the lock of this one.
        for descriptor in received[1]:
            os.close(descriptor)
    os._exit(0)


def _may_fork() -> bool:
    """Whether a child would be sound: there is one thread, and no driver of a GPU was started."""
    opened = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return _threads() == 1 and not any(path.startswith(GPUS) for path in opened)


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


def _become(asked: dict[str, Any], answer: int, *descriptors: int) -> None:
    """Run train as `python -m` does, with this process's streams or those of a job apart.

    The pipe for the answer stays open: should the guard be killed, its end is the job's end.
    """
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
    _main()
