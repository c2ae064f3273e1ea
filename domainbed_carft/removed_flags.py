"""Flags of earlier versions, which argparse refuses with what to use instead."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


class _RemovedFlag(argparse.Action):
    """Ends the command with status 2; ``const`` says what to do instead."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} was removed: {self.const}")


def refuse(parser: argparse.ArgumentParser, remedies: Mapping[str, str]) -> None:
    """Have a parser refuse these flags, each with its remedy; its help does not list them."""
    for flag, remedy in remedies.items():
        parser.add_argument(
            flag,
            action=_RemovedFlag,
            nargs="?",
            const=remedy,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
