"""Processes forked from one that has imported torch and the harness: a tenth of a second, not four.

`run` and `start` take what follows `python` on a command line, "-m NAME ..." or "-c CODE ...", and
stand in for `subprocess.run` and `subprocess.Popen`. Signals, files and exit statuses are real, and
nothing is shared with the tests' own process. What the interpreter's start does is not done again:
a switch of our start hook, another checkout and the encoding of the streams need a real one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["clip", "domainbed.scripts.sweep", "domainbed.scripts.train"])


class Process:
    """A child that runs; what it prints can be read meanwhile from `stdout` and `stderr`."""

    def __init__(self, process: BaseProcess, arguments: list[str], streams: list[TextIO]) -> None:
        self.args = arguments
        self.stdout, self.stderr = streams
        self._process = process

        assert process.pid

        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; the rest of what it printed."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    def kill(self) -> None:
        self._process.kill()


def start(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> Process:
    """Start a child, the leader of a process group of its own; `stdout` may be a descriptor."""
    words = [str(argument) for argument in arguments]
    with tempfile.NamedTemporaryFile("a") as out, tempfile.NamedTemporaryFile("a") as err:
        variables = dict(os.environ if env is None else env)
        streams = {"stdout": _Handed(stdout or out.fileno()), "stderr": _Handed(err.fileno())}
        process = _FORKS.Process(
            target=_child,
            args=(words, variables),
            kwargs={**streams, "cwd": str(cwd or os.getcwd())},
        )
        process.start()
        return Process(process, words, [open(file.name, errors="replace") for file in (out, err)])


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a child to its end."""
    process = start(*arguments, **options)
    try:
        process.wait()
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())


class _Handed:
    """A descriptor that goes to the child with its arguments."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return reduction.DupFd(self.descriptor).detach, ()


def _child(words: list[str], env: dict[str, str], stdout: int, stderr: int, cwd: str) -> None:
    os.setpgid(0, 0)
    for number, descriptor in ((1, stdout), (2, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)

    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # by another TMPDIR
    multiprocessing.set_start_method(None, force=True)  # its own workers start as any process's do
    kind, target, *arguments = words
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    script_folder = "" if kind == "-c" else cwd
    sys.path[:] = [script_folder, *added, *(p for p in sys.path if p != str(Path(__file__).parent))]

    try:
        if any((Path(path) / "sitecustomize.py").exists() for path in added):
            runpy.run_module("sitecustomize")
        if kind == "-c":
            sys.argv = ["-c", *arguments]
            exec(compile(target, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [target, *arguments]
            sys.modules.pop(target, None)  # else runpy warns that it is there already
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
