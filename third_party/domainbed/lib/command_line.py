"""Helpers of all scripts: errors without a traceback, and pipes that close early."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

from domainbed_carft import escaping
from domainbed_carft.errors import CarftError, TransientError


class UnknownNameError(CarftError, NotImplementedError):
    """An unknown algorithm or dataset. Code written for upstream catches NotImplementedError."""


def print_error(script: str, error: CarftError) -> int:
    """Print an error without a traceback; return exit status 1 if a retry can help, otherwise 2."""
    print(f"{script}: {error}", file=sys.stderr)
    return 1 if isinstance(error, TransientError) else 2


@escaping.escaped_output()
def exit_status(script: str, run: Callable[[], int | None]) -> int:
    """Run a script, print its CarftError if it raises one, and return the exit status (0 to 2)."""
    try:
        return run() or 0
    except CarftError as error:
        return print_error(script, error)


@contextlib.contextmanager
def printed_at_once() -> Iterator[io.StringIO]:
    """Print the block's output at its end, and ignore a closed pipe (`head`, or a pager)."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield printed

    try:
        print(printed.getvalue(), end="", flush=True)
    except BrokenPipeError:  # otherwise Python flushes the stream at exit, and fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
