"""Processes forked from one that has imported torch and the harness: a tenth of a second, not four.

`run` and `start` take what follows `python` on a command line, "-m NAME ..." or "-c CODE ...", and
stand in for `subprocess.run` and `subprocess.Popen`. Signals, files and exit statuses are real, and
nothing is shared with the tests' own process. The server is the launchers' `ForkServer`. What the
interpreter's start does is not done again: a switch of our start hook, another checkout and the
encoding of the streams need a real one.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from domainbed_carft.jobs import fork_server
from domainbed_carft.jobs.fork_server import ForkServer, Request

HERE = Path(__file__).resolve().parent

_SERVER = ForkServer(detached=True, module="warm_imports")


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
) -> Process:
    """Start a child, the leader of a process group of its own; `stdout` may be a descriptor."""
    words = [str(argument) for argument in arguments]
    variables = json.dumps(dict(os.environ if env is None else env))
    request = Request(
        module="warm",
        arguments=[str(cwd or os.getcwd()), variables, *words],
        variables={},
        is_detached=True,
        descriptors=["stdout", "stderr"],
    )
    search_path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    server_variables = {**os.environ, "PYTHONPATH": search_path}

    with tempfile.NamedTemporaryFile("a") as out, tempfile.NamedTemporaryFile("a") as err:
        out_descriptor = stdout or out.fileno()
        process = _SERVER.fork(request, server_variables, out_descriptor, err.fileno())
        assert process is not None, "the fork server cannot import the harness, or has threads"
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


@atexit.register
def _end_server() -> None:
    _SERVER.__exit__()


def _run_as_python_does() -> None:
    """In a child: run the words of its command line, by its own current folder and variables."""
    folder, variables, kind, target, *arguments = sys.argv[1:]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(json.loads(variables))

    tempfile.tempdir = None  # by another TMPDIR
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    of_server = [path for path in sys.path[1:] if path != str(HERE)]
    sys.path[:] = ["" if kind == "-c" else folder, *added, *of_server]
    if any((Path(path) / "sitecustomize.py").exists() for path in added):
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
    try:
        _run_as_python_does()
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise  # and have the message printed
        _end_at_once((end.code or 0) & 0xFF)
    _end_at_once(0)
