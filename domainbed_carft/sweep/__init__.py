"""Declared sweeps: which jobs there are, in what state they are, and how to get them done.

- `declaration`, `yaml_source`, `schema`, `checks`, `schedules`, `problems`: a file, or DomainBed's
  flags, to a `Declaration`, with everything that is wrong told at once;
- `host`: what there is to name; `data`: what is seen of the data;
- `jobs`, `output`, `recalled`: the jobs, where they lie in an output folder, those launched;
- `states`, `rates`: what each of them is doing;
- `launching`, `clearing`: what is done with them;
- `estimate`, `measure`: what they will cost;
- `commands`, `flags`, `text`: ``carft sweep``.

Nothing here imports torch but `measure`, and `host` when it is asked for names it does not know.
"""

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
    from domainbed_carft.sweep import declaration

    return declaration.load(file)


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
    from domainbed_carft.sweep import launching

    made = launchers.make(launcher, options or {})
    return launching.run(declaration, data_dir, output, made, launcher)
