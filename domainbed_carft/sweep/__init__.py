"""Declared sweeps: which jobs there are, in what state they are, and how to get them done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the other commands need not wait for what these import
    from domainbed_carft.sweep.declaration import Declaration as Declaration
    from domainbed_carft.sweep.states import Status as Status

__all__ = ["load", "run"]


def load(file: str | Path) -> Declaration:
    """The sweep that a file declares, or one of ours by its bare name, such as ``demo``."""
    from domainbed_carft.sweep import sources

    return sources.load(file)


def run(
    declaration: Declaration,
    data_dir: str,
    output: str | Path,
    launcher: str = "pool",
    options: Mapping[str, Any] | None = None,
) -> list[Status]:
    """Run what is not done of a sweep, with a bar over all its steps; the jobs that failed.

    ``options`` are those of the launcher. To be called from the main thread, where Ctrl-C arrives.
    """
    from domainbed_carft import launchers
    from domainbed_carft.sweep import launch

    made = launchers.make(launcher, options or {})
    return launch.run(declaration, data_dir, Path(output), made, launcher)
