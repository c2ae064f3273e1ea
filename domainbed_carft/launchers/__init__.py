"""Ways to run jobs: for ``carft sweep``, and for DomainBed's own ``sweep``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.errors import collect_problems
from domainbed_carft.launchers import options, pool, slurm
from domainbed_carft.launchers.attempt import JobOutcome, Launcher, run_commands
from domainbed_carft.launchers.options import OPTIONS, PoolOptions

__all__ = ["LAUNCHERS", "OPTIONS", "JobOutcome", "Launcher", "make", "problems"]

_KINDS: dict[str, Callable[[Any], Launcher]] = {
    "dummy": lambda options: pool.dummy,
    "local": lambda options: pool.Pool(PoolOptions(jobs=1, gpus=options.gpus), "local"),
    "pool": pool.Pool,
    "slurm": slurm.Slurm,
}


def make(name: str, caller_options: Mapping[str, Any] | None = None) -> Launcher:
    """The launcher `name`, whose options are the caller's, maybe as text.

    Raises CarftError, naming all problems, and what was expected.
    """
    resolved = options.resolve(name, caller_options or {})  # refuses other names
    return _KINDS[name](resolved)


def problems(launcher: Launcher, sweeps: Iterable[Path]) -> list[str]:
    """Why a launcher could not run jobs below these folders now, checked before it is called."""
    find_problems = getattr(launcher, "problems", None)
    return list(find_problems(sweeps)) if find_problems else []


class Registered:
    """A launcher for DomainBed's registry: a function of command lines, as ``sweep`` makes them.

    (domainbed/command_launchers.py at b93c22a.) It reads its options from the file when it is
    called or checked, so that a wrong one stops no other use of the registry. ``runs_here``: its
    jobs run on this machine, so the data has to be here, which our harness checks before.
    """

    def __init__(self, name: str, runs_here: bool) -> None:
        self._name = name
        self.runs_here = runs_here

    def __call__(self, commands: Sequence[str]) -> list[JobOutcome]:
        """Run the commands; returns the jobs that failed, none if SLURM runs them."""
        not_done = run_commands(self._make(), commands) or []
        return [outcome for outcome in not_done if outcome.result != "held"]

    def problems(self, sweep: str) -> list[str]:
        """Reasons why the launcher could not run jobs below the folder ``sweep``, if any."""
        return collect_problems(self._make) or problems(self._make(), [Path(sweep)])

    def _make(self) -> Launcher:
        return make(self._name, options.read_file(self._name))


# What DomainBed's registry gets beside its own, `multi_gpu` where it has none (upstream has).
LAUNCHERS = {
    "multi_gpu": Registered("pool", runs_here=True),
    "pool": Registered("pool", runs_here=True),
    "slurm": Registered("slurm", runs_here=False),
}
