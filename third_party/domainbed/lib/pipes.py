"""Printing into a pipe that `head` or a pager may close before all is printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def while_read() -> Iterator[None]:
    """Let what is printed after standard output's pipe was closed go nowhere; nothing is raised.

    Nor is anything broken off, so that files which get the same are whole.
    """
    if sys.stdout is None:  # closed from the start, as `>&-` does it: print() knows
        yield
        return
    out = _Output(sys.stdout)
    with contextlib.redirect_stdout(out):  # type: ignore[type-var]
        yield
        out.flush()


class _Output:
    """A stream whose reader may leave."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, message: str) -> int:
        with self._until_closed():
            self._stream.write(message)
        return len(message)

    def flush(self) -> None:
        with self._until_closed():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What the stream still holds would fail again at the end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
