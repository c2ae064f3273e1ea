"""What a launcher is, and what it tells of a job that did not succeed."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class FailedJob:
    """A job that did not succeed, with how it ended last and after how many failures."""

    folder: str
    status: int
    attempts: int
    last_words: str

    def __str__(self) -> str:
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return (
            f"{self.folder}: failed {times}, {describe(self.status)}: "
            f"{self.last_words or 'it left no message'}"
        )


class Launcher(Protocol):
    """Starts the jobs of a sweep, given as DomainBed's commands, and may wait for them."""

    def __call__(self, commands: Sequence[str]) -> list[FailedJob] | None:
        """Run the commands; return those that did not succeed, or None without waiting for it."""


def describe(status: int) -> str:
    """An exit status in words, as subprocess gives it: negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
