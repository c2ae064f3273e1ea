"""Launchers: functions that run the jobs of a sweep.

Interface of upstream file domainbed/command_launchers.py at b93c22a: REGISTRY maps a name to a
function of a list of command strings, which can return the failed jobs.

`local` is upstream's launcher: it runs any command, shares its output stream, and does not retry.
The package's launchers (`carft sweep`, and `multi_gpu` here) run each job in a separate session,
with a lock and retries. Both use the fork server, and the cores of `machine.job_variables`.
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

from domainbed_carft import escaping, machine, suggestions
from domainbed_carft.jobs.fork_server import ForkServer
from domainbed_carft.jobs.job_folder import ERRORS, read_last_line

Launcher = Callable[[list[str]], Any]


def local_launcher(commands: list[str]) -> list[str]:
    """Run the commands one after another; continue after failures and report them at the end.

    Args:
        commands: command lines, quoted for a shell.

    Returns:
        A description of each failed command.
    """
    core_share = machine.job_variables(machine.cores(), bool(machine.gpus()), os.environ)
    environment = {**os.environ, **core_share}
    with ForkServer(detached=False) as fork_server:
        runs = (_run(command, environment, fork_server) for command in commands)
        failed = [failure for failure in runs if failure]

    if failed:
        print(f"sweep: {len(failed)} of {len(commands)} jobs failed:", file=sys.stderr)
    escaping.print_lines(*(f"- {failure}" for failure in failed), stream=sys.stderr)
    return failed


def dummy_launcher(commands: list[str]) -> None:
    """Print the commands instead of running them."""
    for command in commands:
        print(f"Dummy launcher: {command}")


def _run(command: str, environment: dict[str, str], fork_server: ForkServer) -> str | None:
    """Run one command without a shell; if it fails, return its exit status and last error line."""
    arguments = shlex.split(command)
    if arguments[0] == "python":
        # Upstream's commands begin with `python`; the jobs need the packages of this interpreter.
        arguments[0] = sys.executable
    try:
        status = _run_process(arguments, environment, fork_server)
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


def _run_process(arguments: list[str], environment: dict[str, str], fork_server: ForkServer) -> int:
    """Run a command and return its exit status."""
    process = fork_server.start(arguments, environment) or subprocess.Popen(
        arguments, env=environment
    )
    try:
        return process.wait()
    except BaseException:  # the job received Ctrl-C as well: give it time to end
        time.sleep(0.25)
        process.send_signal(signal.SIGKILL)
        raise


REGISTRY: dict[str, Launcher] = {"local": local_launcher, "dummy": dummy_launcher}


def runs_here(name: str) -> bool:
    """Return True if a launcher's jobs run on this machine, so that they need the data here."""
    return name == "local" or getattr(REGISTRY.get(name), "runs_here", False)


def problems(name: str, output_dir: str) -> list[str]:
    """Return the problems of a launcher: an unknown name, or problems that the launcher reports."""
    if name not in REGISTRY:
        return [suggestions.unknown("launcher", name, REGISTRY)]
    problems_of_launcher = getattr(REGISTRY[name], "problems", None)
    return list(problems_of_launcher(output_dir)) if problems_of_launcher else []
