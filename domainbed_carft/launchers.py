"""Ways to run the jobs of a sweep, for DomainBed's ``command_launchers.REGISTRY``.

A launcher is a function of a list of shell commands, as ``domainbed.scripts.sweep`` makes them
(domainbed/command_launchers.py at b93c22a).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def pool(commands: Sequence[str]) -> list[str]:
    """Run several jobs at a time on this machine, a job a core, each with one thread.

    For small models on a CPU: several jobs of one thread each finish sooner than one after another
    with all threads, because much of a small job does not run in parallel. Jobs write their own
    out.txt and err.txt, so what they print is not shown. All jobs run, whatever others end with.

    Returns one line for each job that failed: its exit status, command and last words.
    """
    with ThreadPoolExecutor(max_workers=cores()) as workers:
        endings = list(workers.map(_run, commands))
    failed = [ending for ending in endings if ending is not None]
    for line in failed:
        print(f"pool: {line}", file=sys.stderr)
    return failed


ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)

LAUNCHERS: dict[str, Callable[[Sequence[str]], list[str]]] = {"pool": pool}


def cores() -> int:
    """The cores this process is bound to, which may be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _run(command: str) -> str | None:
    # Read by OpenMP as well as by MKL and OpenBLAS builds of torch and numpy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = shlex.split(command)
    # T3A and DPLCLIP write `NAME=value python -m ...`, which a shell would understand.
    while assigned := ASSIGNMENT.fullmatch(arguments[0]):
        environment[assigned["name"]] = assigned["value"]
        del arguments[0]
    if arguments[0] == "python":  # what sweep writes; the jobs need what this interpreter imports
        arguments[0] = sys.executable
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        done = subprocess.run(
            arguments, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, check=False
        )
        if done.returncode == 0:
            return None
        stderr.seek(0)
        words = [line.strip() for line in stderr if line.strip()]
    return f"exit status {done.returncode}: {command}: {words[-1] if words else 'no message'}"
