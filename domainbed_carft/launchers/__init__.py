"""Launchers, which run jobs for ``carft sweep`` and for DomainBed's own ``sweep``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.errors import collect_problems
from domainbed_carft.launchers import options, pool, slurm
from domainbed_carft.launchers.attempt import JobEnd, Launcher, run_commands
from domainbed_carft.launchers.options import OPTIONS, PoolOptions

__all__ = ["LAUNCHERS", "OPTIONS", "JobEnd", "Launcher", "make", "problems"]

_KINDS: dict[str, Callable[[Any], Launcher]] = {
    "dummy": lambda options: pool.dummy,
    "local": lambda options: pool.Pool(PoolOptions(jobs=1, gpus=options.gpus), "local"),
    "pool": pool.Pool,
    "slurm": slurm.Slurm,
}


def make(name: str | Launcher, caller_options: Mapping[str, Any] | None = None) -> Launcher:
    """Make a launcher.

    Args:
        name: a launcher of `OPTIONS`. A function that runs jobs is returned as it is.
        caller_options: values or their text by option; None stands for the default.

    Raises:
        CarftError: if the name or options are invalid. Lists all problems.
    """
    if not isinstance(name, str):
        return name
    resolved = options.resolve(name, caller_options or {})  # raises for unknown names
    return _KINDS[name](resolved)


def problems(launcher: Launcher, sweeps: Iterable[Path]) -> list[str]:
    """Return the reasons why a launcher cannot run jobs in these folders, without calling it."""
    find_problems = getattr(launcher, "problems", None)
    return list(find_problems(sweeps)) if find_problems else []


class RegisteredLauncher:
    """A launcher for DomainBed's registry, called with command lines.

    (See domainbed/command_launchers.py at b93c22a.) Its options are read from the file only when it
    is called or checked, so that a wrong option breaks no other use of the registry. If jobs run on
    this machine (``runs_here``), the harness checks first that the data is here.
    """

    def __init__(self, name: str, runs_here: bool) -> None:
        self._name = name
        self.runs_here = runs_here

    def __call__(self, commands: Sequence[str]) -> list[JobEnd]:
        """Run the commands, and return the jobs that failed; empty if SLURM runs them."""
        not_done = run_commands(self._make(), commands) or []
        return [end for end in not_done if end.result != "held"]

    def problems(self, sweep: str) -> list[str]:
        """Return the reasons why the launcher cannot run jobs in the folder ``sweep``."""
        return collect_problems(self._make) or problems(self._make(), [Path(sweep)])

    def _make(self) -> Launcher:
        return make(self._name, options.read_file(self._name))


# Added to DomainBed's registry, `multi_gpu` only if the host has no launcher of this name.
LAUNCHERS = {
    "multi_gpu": RegisteredLauncher("pool", runs_here=True),
    "pool": RegisteredLauncher("pool", runs_here=True),
    "slurm": RegisteredLauncher("slurm", runs_here=False),
}
