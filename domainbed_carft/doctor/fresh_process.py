"""Python in a process of its own, which may crash or hang."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft.jobs.folder import last_line
from domainbed_carft.launchers.attempt import describe_end


@dataclass(frozen=True)
class Outcome:
    """How an interpreter ended: ``exit_status`` is None if it was stopped."""

    exit_status: int | None
    description: str
    last_line: str  # of what it printed

    @property
    def has_succeeded(self) -> bool:
        """Whether its exit status is 0."""
        return self.exit_status == 0


def run_python(arguments: Sequence[str], output: Path, patience: float) -> Outcome:
    """Run ``python ARGUMENTS`` for at most ``patience`` seconds; what it prints goes to ``output``.

    Its variables and its current folder are this process's, as when a job is started.
    """
    with output.open("wb") as file:  # a grandchild that hangs would hold a pipe
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            description = f"did not finish within {patience:g} seconds and was stopped"
            return Outcome(None, description, last_line(output))

    printed_last = last_line(output)
    description = f"ended: {describe_end(done.returncode, printed_last)}"
    return Outcome(done.returncode, description, printed_last)
