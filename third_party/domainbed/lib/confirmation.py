"""Asking the user before something is launched or deleted."""

from __future__ import annotations

from domainbed.lib import errors


def ask_for_confirmation() -> None:
    """Leave the program unless the user says yes.

    Raises:
        UsageError: there is nobody to answer.
    """
    try:
        answer = input("Are you sure? (y/n) ")
    except (EOFError, RuntimeError):  # the latter where it was closed from the start
        print()
        raise errors.UsageError(
            ["Nobody could answer, for standard input has ended: give --skip_confirmation."]
        ) from None
    if answer.strip().lower().startswith("y"):
        return
    print("Nevermind!")
    raise SystemExit(0)
