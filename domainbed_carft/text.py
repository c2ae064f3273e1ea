"""Text for people: counts, tables, suggestions, progress, and untrusted text made printable."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

# Control characters, line separators, direction marks, zero-width characters, and surrogates,
# which Python also uses for file names that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
# tqdm writes the first before each state of a bar, and the second to return to a bar further up.
_PROGRESS = re.compile("\r|(?:\x1b\\[A)+\\Z")

# Names used by other tools -> the name used here, which is suggested if it is valid.
_SYNONYMS = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "lambda": "kl_weight",
    "lambda_kl": "kl_weight",
    "temperature": "context_scale",
    "tau": "context_scale",
    "epochs": "steps",
    "num_epochs": "steps",
    "iterations": "steps",
    "backbone": "clip_backbone",
    "prompts": "contexts",
    "templates": "contexts",
    "seeds": "trials",
    "car_ft": "CARFT",
}
_STEPS_ADVICE = "set the number of steps: --steps of train, the key steps of a sweep"

_EMPTY_CELLS = ("", "-", "?")
_MAX_LISTED_NAMES = 20  # next to a suggestion
_MIN_SIMILARITY = 0.6  # difflib's ratio; names below it share hardly more than a few letters


def printable(text: str) -> str:
    r"""Escape what is unsafe in one line with text from a file or folder: a newline becomes ``\n``.

    Whatever makes lines calls this function for them: `print_lines`, `table`, `log`, the message of
    a `CarftError`, and the writers of tables, figures and pages.
    """
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def escape_output(output: str) -> str:
    """Escape what is unsafe in one write to a stream, but not line breaks, tabs, progress bars."""
    bar = _PROGRESS.match(output)
    start = bar.end() if bar else 0
    return output[:start] + _UNSAFE.sub(
        lambda match: match[0] if match[0] in "\n\t" else _escape(match), output[start:]
    )


class EscapedStream:
    """A stream that passes text on with `escape_output`, also the text of other libraries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, output: str) -> int:
        """Write text without control characters."""
        self._stream.write(escape_output(output))
        return len(output)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text without control characters."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # avoids endless recursion in a copy, which has no _stream yet
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what the block prints on standard output and standard error, unless they are None."""
    with contextlib.ExitStack() as stack:
        for redirect, stream in (
            (contextlib.redirect_stdout, sys.stdout),
            (contextlib.redirect_stderr, sys.stderr),
        ):
            if stream is not None:
                stack.enter_context(redirect(cast("TextIO", EscapedStream(stream))))
        yield


def print_lines(*lines: str, stream: TextIO | None = None) -> None:
    """Print lines at once, each without control characters, on standard output by default."""
    text = "".join(f"{printable(line)}\n" for line in lines)
    print(text, end="", file=stream, flush=True)


def quantity(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun, such as "1 job" or "3,840 jobs"."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def limit_lines(lines: Sequence[str], limit: int = 20) -> list[str]:
    """Return the first lines, and a line with the number of the others."""
    excess = len(lines) - limit
    if excess <= 0:
        return list(lines)
    return [*lines[:limit], f"  ... and {excess:,} more"]


def shorten(value: object, limit: int = 10) -> str:
    """Return the repr of a value, cut after the first entries of a long list."""
    if not isinstance(value, (list, tuple)) or len(value) <= limit:
        return repr(value)
    return f"[{', '.join(map(repr, value[:limit]))} and {len(value) - limit:,} more]"


def trim_differences(before: object, now: object, limit: int = 10) -> tuple[str, str]:
    """Return the reprs of two values, cut to the entries that differ if they are long lists."""
    if isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > limit:
        pairs = list(itertools.zip_longest(before, now, fillvalue=None))
        before = [old for old, new in pairs if old != new and old is not None]
        now = [new for old, new in pairs if old != new and new is not None]
    return shorten(before, limit), shorten(now, limit)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain table: numbers are aligned right, and empty columns are dropped."""
    from tabulate import tabulate

    columns = [
        index for index in range(len(head)) if any(row[index] not in _EMPTY_CELLS for row in rows)
    ]
    body = [[printable(row[index]) for index in columns] for row in rows]
    alignments = [
        "right" if all(cell[:1].isdigit() or cell in _EMPTY_CELLS for cell in column) else "left"
        for column in zip(*body)
    ]

    # The head is passed as a row, because tabulate pads a head by two spaces.
    rows = [[head[index] for index in columns], *body]
    lines = tabulate(rows, tablefmt="plain", colalign=alignments, disable_numparse=True)
    return "\n".join(line.rstrip() for line in lines.splitlines())


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return a message about an unknown name, with similar names first, then all valid ones.

    A long list of valid names is left out if there are similar names.
    """
    valid_names = list(valid)
    hint = "."
    if close := near_matches(name, valid_names):
        hint = f"; did you mean {' or '.join(close)}?"
        if len(valid_names) > _MAX_LISTED_NAMES:
            return f"no {kind} is called {name!r}{hint}"
    elif _SYNONYMS.get(_normalise(name)) == "steps":
        hint = f"; {_STEPS_ADVICE}."

    listing = ", ".join(repr(valid) if "," in valid else valid for valid in valid_names)
    return f"no {kind} is called {name!r}{hint} Valid: {listing or 'none'}"


def near_matches(
    name: str, valid: Iterable[str], limit: int = 3, cutoff: float = _MIN_SIMILARITY
) -> list[str]:
    """Return the valid names that a user can have meant: a synonym, or similar spellings."""
    valid_names = list(valid)
    synonym = _SYNONYMS.get(_normalise(name))
    if synonym in valid_names:
        return [synonym]
    if synonym == "steps":  # names spelt like "epochs" would be misleading
        return []

    names_by_folded = {candidate.casefold(): candidate for candidate in valid_names}
    close = difflib.get_close_matches(name.casefold(), names_by_folded, n=limit, cutoff=cutoff)
    return [names_by_folded[folded] for folded in close]


def _normalise(name: str) -> str:
    """Normalise a name: ``Learning-Rate`` becomes ``learning_rate``."""
    return name.casefold().replace("-", "_").strip("_")


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
        items: Items to iterate over; without them the caller updates the bar.
        description: Name of the task.
        unit: Noun for one item, in the singular.
        total: Number of items.
        done: Number of items finished earlier.
        delay: Seconds before anything is shown.
        has_estimate: Show the remaining time and the rate.

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


def load_templates(autoescape: bool) -> Any:
    """Return a strict jinja2.Environment of ``assets``, with ``autoescape`` for HTML."""
    import jinja2  # slow to import, and rarely needed

    return jinja2.Environment(
        loader=jinja2.PackageLoader("domainbed_carft", "assets"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
