"""Confirmations that a command asks the user for."""

from __future__ import annotations

import sys


def confirm(yes: bool) -> None:
    """Ask on a terminal, unless ``yes``; exit the program if the answer is no."""
    if yes or sys.stdin is None or not sys.stdin.isatty():
        return

    refusal = "Nothing was done."
    try:
        ask("Continue? (y/n) ", refusal)
    except EOFError:  # Ctrl-D
        print(f"\n{refusal}")
        raise SystemExit(0) from None


def ask(question: str, refusal: str) -> None:
    """Ask a question; unless the answer is yes, print ``refusal`` and exit the program.

    Raises:
        EOFError, RuntimeError: if standard input is closed.
    """
    if not input(question).strip().lower().startswith("y"):
        print(refusal)
        raise SystemExit(0)
