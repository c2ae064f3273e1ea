"""Ways to run the jobs of a sweep.

Interface of upstream file domainbed/command_launchers.py at b93c22a: REGISTRY maps a name to a
function of a list of command strings, which may return the jobs that failed.

`local` is upstream's: any command, whose output is this process's, and a failed one is not retried.
The package's launchers (`carft sweep`, and `multi_gpu` here) run jobs: with locks, attempts and
retries, in sessions of their own. Both share the fork server, and the cores of `machine.job_variables`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from domainbed_carft import machine, text
from domainbed_carft.jobs.folder import ERRORS, read_last_line
from domainbed_carft.jobs.fork_server import ForkServer

Launcher = Callable[[list[str]], Any]


def local_launcher(commands: list[str]) -> list[str]:
    """Run the commands one after another, continue after a failure, report failures at the end."""
    core_share = machine.job_variables(machine.cores(), bool(machine.gpus()), os.environ)
    environment = {**os.environ, **core_share}
    with ForkServer(detached=False) as fork_server:
        runs = (_run(command, environment, fork_server) for command in commands)
        failed = [failure for failure in runs if failure]

    if failed:
        print(f"sweep: {len(failed)} of {len(commands)} jobs failed:", file=sys.stderr)
    for failure in failed:
        print(f"- {text.printable(failure)}", file=sys.stderr)
    return failed


def dummy_launcher(commands: list[str]) -> None:
    """Run none of the commands."""
    for command in commands:
        print(f"Dummy launcher: {command}")


def _run(command: str, environment: dict[str, str], fork_server: ForkServer) -> str | None:
    """Run one command without a shell; if it fails, return how, and the job's last words."""
    arguments = shlex.split(command)
    if arguments[0] == "python":
        # The commands say so for upstream's sake; the jobs need what this interpreter can import.
        arguments[0] = sys.executable
    try:
        status = _status(arguments, environment, fork_server)
    except OSError as error:
        return f"exit status 127: {command}: {error}"
    if not status:
        return None

    label = command
    message = None
    if "--output_dir" in arguments[:-1]:
        label = arguments[arguments.index("--output_dir") + 1]
        message = read_last_line(os.path.join(label, ERRORS))
    return f"exit status {status}: {label}: {message or 'no message in err.txt'}"


def _status(arguments: list[str], environment: dict[str, str], fork_server: ForkServer) -> int:
    """Run the words of a command, and return its exit status."""
    process = fork_server.start(arguments, environment) or subprocess.Popen(
        arguments, env=environment
    )
    try:
        return process.wait()
    except BaseException:  # the job got Ctrl-C, too
        time.sleep(0.25)
        process.send_signal(signal.SIGKILL)
        raise


REGISTRY: dict[str, Launcher] = {"local": local_launcher, "dummy": dummy_launcher}


def runs_here(name: str) -> bool:
    """Whether a launcher's jobs run on this machine, so that the data has to be here."""
    return name == "local" or getattr(REGISTRY.get(name), "runs_here", False)


def problems(name: str, output_dir: str) -> list[str]:
    """Return the problems of an unknown launcher `name`, or those that the launcher reports."""
    if name not in REGISTRY:
        return [text.unknown("launcher", name, REGISTRY)]
    problems_of_launcher = getattr(REGISTRY[name], "problems", None)
    return list(problems_of_launcher(output_dir)) if problems_of_launcher else []
