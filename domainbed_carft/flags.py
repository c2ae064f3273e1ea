"""A parser of command lines whose flags are accepted with hyphens and with underscores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


class FlagParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that accepts ``--data-dir`` for ``--data_dir``, and vice versa.

    Its help prints one spelling. Values are unchanged, also after ``=``.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words of a command line, by default of this process's."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([*map(self._respell, words)], namespace)

    def _respell(self, word: str) -> str:
        """Return a word with the flag's own spelling if it is a flag in the other spelling."""
        flag, separator, value = word.partition("=")
        name = flag.removeprefix("--")
        if name == flag or flag in self._option_string_actions:
            return word

        for spelling in (name.replace("-", "_"), name.replace("_", "-")):
            if f"--{spelling}" in self._option_string_actions:
                return f"--{spelling}{separator}{value}"
        return word
