"""Shared by all scripts: errors without a traceback, and pipes that close early."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

from domainbed_carft import text
from domainbed_carft.errors import CarftError, TransientError


class UnknownNameError(CarftError, NotImplementedError):
    """An unknown algorithm or dataset. Callers written for upstream catch the latter type."""


def print_error(script: str, error: CarftError) -> int:
    """Print an error without a traceback; return 1 if retrying may help, else 2."""
    lines = map(text.printable, str(error).splitlines())
    print(f"{script}: " + "\n".join(lines), file=sys.stderr)
    return 1 if isinstance(error, TransientError) else 2


def exit_status(script: str, run: Callable[[], int | None]) -> int:
    """Run a script; return its exit status, 0 to 2, after printing a CarftError."""
    try:
        return run() or 0
    except CarftError as error:
        return print_error(script, error)


@contextlib.contextmanager
def printed_at_once() -> Iterator[io.StringIO]:
    """Print the block's output at its end; a closed pipe, as of `head` or a pager, is no error."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield printed

    try:
        print(printed.getvalue(), end="", flush=True)
    except BrokenPipeError:  # else Python would flush the stream at exit, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
