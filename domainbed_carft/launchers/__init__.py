"""Ways to run the jobs of a sweep: for ``carft sweep``, and for DomainBed's own ``sweep``.

A launcher is a function of a list of commands, as ``domainbed.scripts.sweep`` makes them
(domainbed/command_launchers.py at b93c22a).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.launchers import local, options, pool, settings, slurm
from domainbed_carft.launchers.machine import cores
from domainbed_carft.launchers.options import OPTIONS
from domainbed_carft.launchers.protocol import FailedJob, Launcher

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
    launcher: Launcher = _KINDS[name](checked, verbose)
    return launcher


def problems(launcher: Launcher, sweeps: Iterable[Path]) -> list[str]:
    """Why a launcher could not run jobs below these folders here and now, before it is called."""
    look = getattr(launcher, "problems", None)
    return list(look(sweeps)) if look else []


def _pool(commands: Sequence[str]) -> list[FailedJob] | None:
    """Run several jobs at a time on this machine."""
    return make("pool", verbose=True)(commands)


def _slurm(commands: Sequence[str]) -> list[FailedJob] | None:
    """Hand the jobs to SLURM."""
    return make("slurm", verbose=True)(commands)


# So our harness's sweep knows that the data has to be here.
_pool.runs_here = True  # type: ignore[attr-defined]

# What DomainBed's registry gets beside its own `local` and `dummy`. Their options are looked for
# when they are called, so that a wrong one stops no other use of the registry.
LAUNCHERS: dict[str, Launcher] = {"pool": _pool, "slurm": _slurm}
