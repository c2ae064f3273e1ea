"""Questions to the user before something is done."""

from __future__ import annotations

import sys


def confirm(yes: bool) -> None:
    """Ask on a terminal, unless ``yes``; leave the program if the answer is no."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if yes or not is_terminal:
        return

    refusal = "Nothing was done."
    try:
        ask("Continue? (y/n) ", refusal)
    except EOFError:  # Ctrl-D
        print(f"\n{refusal}")
        raise SystemExit(0) from None


def ask(question: str, refusal: str) -> None:
    """Ask; unless the answer is yes, print ``refusal`` and leave the program.

    Raises EOFError or RuntimeError if standard input is closed.
    """
    if not input(question).strip().lower().startswith("y"):
        print(refusal)
        raise SystemExit(0)
