"""Progress on standard error: a bar on a terminal, otherwise a line per minute."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from domainbed_carft.escaping import EscapedStream, print_lines, printable

# tqdm's bar without the remaining time and the rate.
NO_ESTIMATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

# Interval between progress lines if standard error is not a terminal.
LINE_SECONDS = 60.0


def progress(
    items: Iterable[Any] | None = None,
    *,
    description: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    delay: float = 0,
    has_estimate: bool = True,
) -> Any:
    """Show progress on standard error: tqdm's bar on a terminal, otherwise a line per minute.

    Args:
        items: items to iterate over; without them the caller updates the bar.
        description: name of the task.
        unit: noun for one item, in the singular.
        total: number of items.
        done: number of items finished earlier.
        delay: seconds before anything is shown.
        has_estimate: show the remaining time and the rate.

    Returns:
        The tqdm object.
    """
    from tqdm import tqdm

    # A job copies its standard error to err.txt, whose last line is taken for the job's error:
    # there the bar goes only to the terminal, and no lines are printed.
    stream = sys.stderr
    is_copied = stream is not None and not isinstance(stream, (io.TextIOBase, EscapedStream))
    if is_copied:
        stream = sys.__stderr__

    tqdm.monitor_interval = 0  # its thread would interfere with forks
    bar = functools.partial(
        tqdm,
        items,
        printable(description),
        total,
        unit=unit,
        initial=done,
        delay=delay,
        smoothing=0,
    )
    if stream is not None and stream.isatty():
        return bar(file=stream, bar_format=None if has_estimate else NO_ESTIMATE)

    units = unit + ("es" if unit.endswith(("s", "ch")) else "s")
    share = f"{{n_fmt}} of {{total_fmt}} {units} ({{percentage:.0f}}%)"
    return bar(
        file=_Lines(stream),
        disable=stream is None or is_copied,
        bar_format=f"{{desc}}: {share}{{postfix}}, after {{elapsed}}",
        mininterval=LINE_SECONDS,
        miniters=0,  # print by time, not by number of items
        position=0,  # otherwise nested bars would move the cursor
    )


class _Lines:
    """A stream that prints each update of tqdm as a separate line."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Print a line without tqdm's carriage return."""
        if self._stream is not None and text.strip():
            _print_line(text.strip(), self._stream)

    def flush(self) -> None:
        """Do nothing, because each line is flushed when it is written."""


def log(line: str) -> None:
    """Print a line on standard error, unless it is a terminal, which shows a bar instead."""
    if sys.stderr is not None and not sys.stderr.isatty():
        _print_line(line, sys.stderr)


def _print_line(line: str, stream: TextIO) -> None:
    # A closed pipe or a full disk must not end the task.
    with contextlib.suppress(OSError, ValueError):
        print_lines(line, stream=stream)
