"""Ways to run the jobs of a sweep.

Interface of upstream file domainbed/command_launchers.py at b93c22a: REGISTRY maps a name to a
function of a list of command strings. A launcher may return the jobs that failed; one that does
not wait for its jobs returns nothing.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from domainbed_carft import text
from domainbed_carft.jobs.folder import JobFolder

Launcher = Callable[[list[str]], Any]


def local_launcher(commands: list[str]) -> list[str]:
    """Run the commands one after another, continue after a failure, report failures at the end."""
    failed = [failure for command in commands if (failure := _run(command))]
    if failed:
        print(f"sweep: {len(failed)} of {len(commands)} jobs failed:", file=sys.stderr)
    for failure in failed:
        print(f"- {text.shown(failure)}", file=sys.stderr)
    return failed


def dummy_launcher(commands: list[str]) -> None:
    """Print the commands and run none of them."""
    for command in commands:
        print(f"Dummy launcher: {command}")


def _run(command: str) -> str | None:
    """Run one command without a shell; if it fails, return how, and the job's last words."""
    arguments = shlex.split(command)
    place = arguments.index("--output_dir") + 1 if "--output_dir" in arguments[:-1] else None
    if arguments[0] == "python":
        # The commands say so for upstream's sake; the jobs need what this interpreter can import.
        arguments[0] = sys.executable
    try:
        status = subprocess.run(arguments, check=False).returncode
    except OSError as error:
        return f"exit status 127: {command}: {error}"
    if not status:
        return None
    words = place and JobFolder(arguments[place]).last_words()
    where = arguments[place] if place else command
    return f"exit status {status}: {where}: {words or 'no message in err.txt'}"


REGISTRY: dict[str, Launcher] = {"local": local_launcher, "dummy": dummy_launcher}


def runs_here(name: str) -> bool:
    """Whether the jobs of a launcher run on this machine, so that the data has to be here."""
    return name == "local" or getattr(REGISTRY.get(name), "runs_here", False)


def problems(name: str, output_dir: str) -> list[str]:
    """Return the problems of an unknown launcher `name`, or those that the launcher reports."""
    if name not in REGISTRY:
        return [text.unknown("launcher", name, REGISTRY)]
    ask = getattr(REGISTRY[name], "problems", None)
    return list(ask(output_dir)) if ask else []
