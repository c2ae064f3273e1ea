"""Processes forked from one that has imported torch and the harness: a tenth of a second, not four.

`run` and `start` take what follows `python` on a command line, "-m NAME ..." or "-c CODE ...", and
stand in for `subprocess.run` and `subprocess.Popen`. Signals, files and exit statuses are real, and
nothing is shared with the tests' own process. The server is the launchers' `ForkServer`. What the
interpreter's start does is not done again: a switch of our start hook, another checkout and the
encoding of the streams need a real one.

The fork servers of launchers that run in such a process, or under the fixture `warm_launches`, are
forks of this one, too: they need not import torch again. So is `OPEN_CLIP`, which has imported
open_clip beside; it knows an empty cache of the hub, and nothing of HF_HUB_OFFLINE. This one, and
those for another checkout, are forks of a `torch_interpreter`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch_interpreter

from domainbed_carft.jobs import fork_server
from domainbed_carft.jobs.fork_server import ForkServer, Request

HERE = Path(__file__).resolve().parent

_IMPORTS = "warm_imports"

# Variables with the number of a descriptor: the socket on which the server takes requests, by which
# a child has its launchers' servers forked; and that of such a server.
_CONTROL = "WARM_CONTROL"
_LAUNCHERS_CONTROL = "WARM_LAUNCHERS_CONTROL"

_run_cold_server = fork_server.run_server


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Have another value in a module. Children import this file, which pytest would slow down."""
    earlier = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, earlier)


def _run_server_with_torch(
    control: socket.socket, module: str, variables: Mapping[str, str], is_detached: bool
) -> subprocess.Popen[bytes] | fork_server.Process:
    """A launcher's `run_server`, by an interpreter that has imported torch and nothing else."""
    with _replaced(sys, "executable", torch_interpreter.executable(sys.executable)):
        return _run_cold_server(control, module, variables, is_detached)


class _OwnServer(ForkServer):
    """The server of this module."""

    def _start_server(self, variables: Mapping[str, str]) -> None:
        with _replaced(fork_server, "run_server", _run_server_with_torch):
            super()._start_server(variables)


_SERVER: ForkServer = _OwnServer(detached=True, module=_IMPORTS)


class Process:
    """A child that runs; what it prints can be read meanwhile from `stdout` and `stderr`."""

    def __init__(
        self, process: fork_server.Process, arguments: list[str], stdout: TextIO, stderr: TextIO
    ) -> None:
        self.args = arguments
        self.pid = process.pid
        self.stdout = stdout
        self.stderr = stderr
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float = 300) -> int:
        return self._process.wait(timeout)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; the rest of what it printed."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    def kill(self) -> None:
        if self.returncode is None:
            self._process.send_signal(signal.SIGKILL)


def start(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    server: ForkServer = _SERVER,
) -> Process:
    """Start a child, the leader of a process group of its own; `stdout` may be a descriptor."""
    words = [str(argument) for argument in arguments]
    variables = dict(os.environ if env is None else env)
    with tempfile.NamedTemporaryFile("a") as out, tempfile.NamedTemporaryFile("a") as err:
        descriptors = {"stdout": stdout or out.fileno(), "stderr": err.fileno()}
        descriptors[_CONTROL] = _control()
        process = _fork(words, variables, descriptors, cwd or os.getcwd(), server)
        return Process(
            process, words, open(out.name, errors="replace"), open(err.name, errors="replace")
        )


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a child to its end."""
    process = start(*arguments, **options)
    try:
        process.wait()
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())


def _fork(
    words: Sequence[str],
    variables: Mapping[str, str],
    descriptors: Mapping[str, int],
    cwd: str | Path,
    server: ForkServer,
) -> fork_server.Process:
    """Fork a child of a server; `descriptors` have the names that a `Request` gives them."""
    request = Request(
        module="warm",
        arguments=[str(cwd), json.dumps(dict(variables)), *words],
        variables={},
        is_detached=True,
        descriptors=[*descriptors],
    )
    process = server.fork(request, _server_variables(), *descriptors.values())
    assert process is not None, "the fork server cannot import the harness, or has threads"
    return process


def _server_variables() -> dict[str, str]:
    search_path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": search_path}


def _control() -> int:
    """The descriptor of the socket on which the server takes requests."""
    _SERVER._start_server(_server_variables())
    return _SERVER._control.fileno()


class _InheritedServer(ForkServer):
    """The server that has forked this process."""

    def __init__(self, control: int) -> None:
        super().__init__(detached=True)
        self._control = socket.socket(fileno=control)
        self._control.set_inheritable(False)

    def _start_server(self, variables: Mapping[str, str]) -> None:
        """Nothing: it runs."""


def run_server(
    control: socket.socket, module: str, variables: Mapping[str, str], is_detached: bool
) -> subprocess.Popen[bytes] | fork_server.Process:
    """A launcher's `run_server`; one for another domainbed imports it itself."""
    path = [os.getcwd(), *variables.get("PYTHONPATH", "").split(os.pathsep)]
    has_own_host = any((Path(folder) / "domainbed").exists() for folder in path)
    if module == _IMPORTS or has_own_host:
        return _run_server_with_torch(control, module, variables, is_detached)

    descriptors = {_LAUNCHERS_CONTROL: control.fileno()}
    if not is_detached:
        descriptors |= {"stdout": 1, "stderr": 2}
    words = ["-m", fork_server.MODULE, _LAUNCHERS_CONTROL, module]
    return _fork(words, variables, descriptors, os.getcwd(), _SERVER)


class _OpenClipServer(ForkServer):
    """A fork of the server, which imports open_clip."""

    def __init__(self) -> None:
        super().__init__(detached=True, module="open_clip_imports")

    def _start_server(self, variables: Mapping[str, str]) -> None:
        if self._process is not None:
            return

        self._hub = tempfile.TemporaryDirectory(prefix="carft-test-hub-")
        variables = {**variables, "HF_HOME": self._hub.name}
        variables.pop("HF_HUB_OFFLINE", None)
        with _replaced(fork_server, "run_server", run_server):
            super()._start_server(variables)


OPEN_CLIP = _OpenClipServer()


@atexit.register
def _end_servers() -> None:
    OPEN_CLIP.__exit__()
    _SERVER.__exit__()


def _skip_finalizers_of_imports() -> None:
    """End without the finalizers of what was imported before the fork: torch's take 0.1 s."""
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False


def _run_as_python_does() -> None:
    """In a child: run the words of its command line, by its own current folder and variables."""
    global _SERVER
    folder, variables, kind, target, *arguments = sys.argv[1:]
    if _CONTROL in os.environ:
        _SERVER = _InheritedServer(int(os.environ[_CONTROL]))
        fork_server.run_server = run_server

    if target == fork_server.MODULE:
        _, module = arguments
        arguments[0] = os.environ[_LAUNCHERS_CONTROL]
        sys.modules.pop(module, None)  # which its processes run as their main module

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(json.loads(variables))

    tempfile.tempdir = None  # by another TMPDIR
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    of_server = [path for path in sys.path[1:] if path != str(HERE)]
    sys.path[:] = ["" if kind == "-c" else folder, *added, *of_server]
    if any((Path(path) / "sitecustomize.py").exists() for path in added):
        sys.modules.pop("sitecustomize", None)  # Debian's Python has one of its own
        runpy.run_module("sitecustomize")

    if kind == "-c":
        sys.argv = ["-c", *arguments]
        sys.modules["__main__"] = ModuleType("__main__")  # which its own children look at
        exec(compile(target, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = [target, *arguments]
        sys.modules.pop(target, None)  # else runpy warns that it is there already
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def _end_at_once(status: int) -> None:
    """End as an interpreter does, but for freeing what the server has imported: half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _skip_finalizers_of_imports()
    try:
        _run_as_python_does()
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise  # and have the message printed
        _end_at_once((end.code or 0) & 0xFF)
    _end_at_once(0)
