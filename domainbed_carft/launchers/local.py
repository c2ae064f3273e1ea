"""One job after another on this machine, with all that it has; and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domainbed_carft.launchers.options import NoOptions
from domainbed_carft.launchers.protocol import FailedJob
from domainbed_carft.launchers.shared_queue import SharedQueue


@dataclass(frozen=True)
class Local:
    """Run the jobs one after another; what they print is in their out.txt and err.txt."""

    options: NoOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> list[FailedJob]:
        return SharedQueue("local", commands, self.verbose).run([{}])


@dataclass(frozen=True)
class Dummy:
    """Print the commands and run none of them."""

    options: NoOptions
    verbose: bool = False

    def __call__(self, commands: Sequence[str]) -> None:
        for command in commands:
            print(f"Dummy launcher: {command}")
