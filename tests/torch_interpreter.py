"""Interpreters that share one import of torch: each is a fork of a process that has it.

For runs in foreign checkouts and environments, which need a real `domainbed` of their own: nothing
of it, nor of our package, is imported before the fork. A fork does what an interpreter does when it
starts: by the environment's `.pth` files, thus our start hook. Streams, signals and exit statuses
are real, and a run costs a tenth of what `subprocess.run` does. Of the variables that only a start
reads, a fork obeys PYTHONPATH and PYTHONDONTWRITEBYTECODE; torch has one thread.

One server serves all workers of a test run. `executable` is for launchers and others that start
interpreters themselves. What it runs is no child of who started it: a process that looks for its
parent needs an interpreter of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import venv
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# The variable with the folder that all processes of a test run share.
FOLDER = "CARFT_TESTS_TORCH_INTERPRETER"

_HEADER = 8  # bytes, the length of a request
_MOST_DESCRIPTORS = 100
_FREE_NUMBER = 200  # above that of each descriptor that a process hands over


def run(
    python: str | Path,
    *arguments: str,
    cwd: Path,
    variables: Mapping[str, str],
    forks_others: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `cwd` with exactly these variables.

    `arguments` are "-c CODE ...", "-m NAME ..." or "SCRIPT ...". `forks_others`: by its
    `sys.executable`, the interpreters that it starts are forks, too.
    """
    with (
        open(os.devnull) as stdin,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
        _connect(_socket()) as connection,
    ):
        descriptors = {0: stdin.fileno(), 1: stdout.fileno(), 2: stderr.fileno()}
        python_of_fork = executable(python, forks_others) if forks_others else str(python)
        _send(connection, str(python), python_of_fork, arguments, cwd, variables, descriptors)
        _, status = _answers(connection)
        for stream in (stdout, stderr):
            stream.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


@functools.cache
def executable(python: str | Path, forks_others: bool = False) -> str:
    """The path of a program, named "python", that does what `python` does, as a fork.

    `forks_others`: as of `run`.
    """
    path = Path(tempfile.mkdtemp(dir=os.environ[FOLDER])) / "python"
    python_of_fork = path if forks_others else python
    words = [sys.executable, "-IS", __file__, _socket(), str(python), str(python_of_fork)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def _socket() -> str:
    """The path of the server's socket; the first process that asks starts it, and ends it."""
    path = Path(os.environ[FOLDER]) / "socket"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _start_server(path)
    return str(path)


def _start_server(path: Path) -> None:
    variables = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        packages = [folder for folder in sys.path if folder.endswith("-packages")]
        # An environment with nothing in it: no `.pth` file of this one is read before the fork.
        bare = path.with_name("bare")
        venv.create(bare, symlinks=True)
        server = subprocess.Popen(
            [bare / "bin" / "python", __file__, str(listener.fileno()), *packages],
            cwd=os.sep,
            env={**variables, "OMP_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        path.unlink()
        server.communicate()

    atexit.register(end)


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def _send(
    connection: socket.socket,
    python: str,
    executable: str,
    arguments: Sequence[str],
    cwd: str | Path,
    variables: Mapping[str, str],
    descriptors: Mapping[int, int],
) -> None:
    """Ask for a process; `descriptors`: its number -> ours, of all that it has."""
    request = {
        "python": python,
        "executable": executable,
        "arguments": list(arguments),
        "cwd": str(cwd),
        "variables": dict(variables),
        "descriptors": list(descriptors),
    }
    message = json.dumps(request).encode()
    header = len(message).to_bytes(_HEADER, "big")
    socket.send_fds(connection, [header], list(descriptors.values()))
    connection.sendall(message)


def _answers(connection: socket.socket) -> tuple[int, int]:
    """The process's id and its exit status, once it has ended."""
    with connection.makefile() as answers:
        return int(answers.readline()), int(answers.readline())


def _be_interpreter(address: str, python: str, python_of_fork: str, *arguments: str) -> None:
    """Have a fork do what this process is to do, and end as it does."""
    open_numbers = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            os.fstat(int(name))
            open_numbers.append(int(name))

    connection = _connect(address)
    descriptors = {number: number for number in open_numbers}
    _send(connection, python, python_of_fork, arguments, os.getcwd(), os.environ, descriptors)
    for number in open_numbers:
        if number > 2:
            os.close(number)

    answers = connection.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(process, number))

    status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _serve(listener: socket.socket, *packages: str) -> dict[str, Any]:
    """Fork a process for each request, and return the request in it; end with standard input.

    `packages`: the folders of what is imported, torch and what else takes long.
    """
    own_path = [folder for folder in sys.path[1:] if not folder.endswith("-packages")]
    sys.path[:] = [*own_path, *packages]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip  # noqa: F401
        import matplotlib.figure  # noqa: F401
        import pandas  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    sys.path[:] = own_path

    gc.freeze()  # or each child copies all of this memory when it ends
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False  # of what was imported: torch's take 0.1 s at the end

    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards that end leave no zombies
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()

        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, handler)
            return _guard(connection)
        connection.close()


def _guard(connection: socket.socket) -> dict[str, Any]:
    """Fork the process, and return its request in it; wait here, and answer how it ended.

    The process is killed when the one that asked for it is gone.
    """
    header, received, _, _ = socket.recv_fds(connection, _HEADER, _MOST_DESCRIPTORS)
    with connection.makefile("rb") as stream:
        request: dict[str, Any] = json.loads(stream.read(int.from_bytes(header, "big")))

    process = os.fork()
    if process == 0:
        connection.close()
        _take(dict(zip(request["descriptors"], received)))
        return request

    for descriptor in received:
        os.close(descriptor)
    connection.sendall(b"%d\n" % process)
    end = os.pidfd_open(process)
    ready, _, _ = select.select([end, connection.fileno()], [], [])
    if end not in ready:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _take(descriptors: Mapping[int, int]) -> None:
    """Give each descriptor its number, the key; no other is open then."""
    moved = {
        number: fcntl.fcntl(received, fcntl.F_DUPFD, _FREE_NUMBER)
        for number, received in descriptors.items()
    }
    os.closerange(0, _FREE_NUMBER)
    for number, descriptor in moved.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _start(
    python: str,
    executable: str,
    arguments: Sequence[str],
    cwd: str,
    variables: Mapping[str, str],
    **_: Any,
) -> None:
    """Start as `python ARGUMENTS` does, and run what it is to run."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # by another TMPDIR
    sys.dont_write_bytecode = bool(variables.get("PYTHONDONTWRITEBYTECODE"))

    added = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = added
    _read_site(python)
    sys.executable = executable

    kind, *words = arguments
    main = ModuleType("__main__")
    if kind == "-c":
        code, *sys.argv[1:] = words
        sys.argv[0] = kind
        sys.path.insert(0, "")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.argv = words
        sys.path.insert(0, cwd)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *words]
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


def _read_site(python: str) -> None:
    """Find the packages of this interpreter, and run the lines of its `.pth` files."""
    sys.executable = python
    multiprocessing.set_executable(python)
    root = Path(python).parent.parent
    is_environment = (root / "pyvenv.cfg").exists()
    sys.prefix = sys.exec_prefix = str(root) if is_environment else sys.base_prefix

    sys.modules.pop("site", None)
    import site

    site.main()


def _end(status: int) -> None:
    """As an interpreter ends, but for freeing what was imported, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(request: Mapping[str, Any]) -> None:
    """Run a request to its end."""
    try:
        _start(**request)
    except SystemExit as end:
        if isinstance(end.code, (int, type(None))):
            _end((end.code or 0) & 0xFF)
        print(end.code, file=sys.stderr)
        _end(1)
    except Exception:
        traceback.print_exc()
        _end(1)
    _end(0)


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        number, *packages = sys.argv[1:]
        _run(_serve(socket.socket(fileno=int(number)), *packages))
    else:
        _be_interpreter(*sys.argv[1:])
