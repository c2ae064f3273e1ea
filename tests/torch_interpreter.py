"""Interpreters that share one import of torch: each run is a fork of a process that has it.

For runs in foreign checkouts and environments, which need a real `domainbed` of their own: nothing
of it, nor of our package but the start hook, is imported before the fork. `run` stands in for
`subprocess.run`, at a tenth of the cost; streams, signals and exit statuses are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

# What the interpreter or torch reads when it starts; runs that differ in them share no server.
START_VARIABLES = ("PYTHON", "OMP_", "DOMAINBED_CARFT_DISABLE")

SERVER = """
import atexit, gc, json, os, runpy, sys, threading, warnings, weakref

path_at_start = sys.path[:]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch, torchvision, clip
sys.path[:] = path_at_start  # clip's pkg_resources adds a folder

gc.freeze()  # or each child copies all of this memory when it ends
for finalizer in weakref.finalize._registry:  # of what was imported: torch's take 0.1 s at the end
    finalizer.atexit = False
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
else:
    sys.exit()

request = json.loads(line)
for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
    descriptor = os.open(name, os.O_RDWR)
    os.dup2(descriptor, number)
    os.close(descriptor)

sys.stdin = open(0, closefd=False)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["variables"])
kind, *words = request["arguments"]
try:
    if kind == "-c":
        code, *sys.argv[1:] = words
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.path[0] = request["cwd"]
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(kind)
        sys.argv = [kind, *words]
        runpy.run_path(kind, run_name="__main__")
    status = 0
except SystemExit as end:
    if not isinstance(end.code, (int, type(None))):
        raise
    status = end.code or 0

# As an interpreter ends, but for freeing what was imported, which takes half a second.
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status & 0xFF)
"""

# A server takes 300 MB.
MOST_SERVERS = 2

_servers: dict[tuple[str, ...], subprocess.Popen[str]] = {}  # the last one used is the last


def run(
    python: str | Path, *arguments: str, cwd: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `cwd` with exactly these variables; a server starts if none fits.

    `arguments` are "-c CODE ...", "-m NAME ..." or "SCRIPT ...".
    """
    server = _server_of(str(python), variables)
    assert server.stdin and server.stdout

    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        request = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "variables": dict(variables),
            "stdout": stdout.name,
            "stderr": stderr.name,
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


def _server_of(python: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """The server of this interpreter and these variables; it ends with this process."""
    names = [name for name in sorted(variables) if name.startswith(START_VARIABLES)]
    key = (python, *(f"{name}={variables[name]}" for name in names if variables[name]))

    server = _servers.pop(key, None)
    if server is None:
        server = subprocess.Popen(
            [python, "-c", SERVER],
            cwd=os.sep,
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    _servers[key] = server
    if len(_servers) > MOST_SERVERS:
        _servers.pop(next(iter(_servers))).communicate()
    return server
