"""Ways to run the jobs of a sweep: for ``carft sweep``, and for DomainBed's own ``sweep``.

A launcher is a function of a list of commands, as ``domainbed.scripts.sweep`` makes them
(domainbed/command_launchers.py at b93c22a).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import local, options, pool, settings, slurm
from domainbed_carft.launchers.options import OPTIONS
from domainbed_carft.launchers.protocol import FailedJob, Launcher
from domainbed_carft.machine import cores

__all__ = ["LAUNCHERS", "OPTIONS", "FailedJob", "Launcher", "cores", "make", "problems"]

_KINDS: dict[str, Any] = {
    "dummy": local.Dummy,
    "local": local.Local,
    "pool": pool.Pool,
    "slurm": slurm.Slurm,
}


def make(name: str, given: Mapping[str, Any] | None = None, verbose: bool = False) -> Launcher:
    """The launcher `name` with these options, over those of the file that `settings` finds.

    Args:
        given: option to value, or to the text that a flag has.
        verbose: print a line whenever a job ends.

    Raises:
        CarftError: naming all that is wrong, and what would be right.
    """
    chosen = settings.found_for(name) if name in OPTIONS else {}
    chosen.update({key: value for key, value in (given or {}).items() if value is not None})
    checked = options.build(name, chosen)
    made: Any = _OfJobs(_KINDS[name](checked, verbose))
    return made


class _OfJobs:
    """DELETE at the merge: gives a launcher of command texts the jobs that the sweep has."""

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher
        self.problems: Any = getattr(launcher, "problems", lambda sweeps: [])

    def __call__(self, jobs: Any, environment: Any = None) -> Any:
        return self._launcher(
            [one if isinstance(one, str) else _text(one, environment) for one in jobs]
        )


def _text(job: Any, environment: Any) -> str:
    variables = environment(job) if environment else {}
    return " ".join([*(f"{n}={shlex.quote(v)}" for n, v in variables.items()), job.line])


def problems(launcher: Launcher, sweeps: Iterable[Path]) -> list[str]:
    """Why a launcher could not run jobs below these folders here and now, before it is called."""
    look = getattr(launcher, "problems", None)
    return list(look(sweeps)) if look else []


class Registered:
    """A launcher for DomainBed's registry, which takes its options from the file alone.

    It looks for them when it is asked or called, so that a wrong one stops no other use of the
    registry. ``runs_here``: its jobs run on this machine, so the data has to be here; our harness
    asks for it, and for ``problems``, before it makes the jobs' folders.
    """

    def __init__(self, name: str, runs_here: bool) -> None:
        self._name, self.runs_here = name, runs_here

    def __call__(self, commands: Sequence[str]) -> list[FailedJob] | None:
        return make(self._name, verbose=True)(commands)

    def problems(self, sweep: str) -> list[str]:
        """Why it could not run jobs below the folder ``sweep``."""
        try:
            return problems(make(self._name), [Path(sweep)])
        except CarftError as error:
            return [f"{error}."]


# What DomainBed's registry gets beside its own `local` and `dummy`.
LAUNCHERS: dict[str, Launcher] = {
    "pool": Registered("pool", runs_here=True),
    "slurm": Registered("slurm", runs_here=False),
}
