"""Words and figures for people: counts, tables, near misses, foreign text made safe."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# Control characters, what else ends a line, turns its direction or has no width, and halves of
# characters, which is also what Python makes of a file's name that is not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)

# How other tools call what is meant -> our name, which is proposed where it is valid.
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

_NO_ENTRY = ("", "-", "?")  # of a cell of a table where there is nothing to say
# Below this ratio of difflib two names have hardly more in common than a few letters.
_NEAR = 0.6


def printable(text: str) -> str:
    r"""``text`` from a file or a folder, safe to print: a newline becomes ``\n``, and so on."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def quantity(count: int, singular: str, plural: str = "") -> str:
    """The number and what it counts: 1 job, 3,840 jobs; the ``plural`` adds an s if it is ""."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def limit_lines(lines: Sequence[str], limit: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    excess = len(lines) - limit
    if excess <= 0:
        return list(lines)
    return [*lines[:limit], f"  ... and {excess:,} more"]


def shorten(value: object, limit: int = 10) -> str:
    """The value as Python writes it; of a longer list the first entries, and how many follow."""
    if not isinstance(value, (list, tuple)) or len(value) <= limit:
        return repr(value)
    return f"[{', '.join(map(repr, value[:limit]))} and {len(value) - limit:,} more]"


def trim_differences(before: object, now: object, limit: int = 10) -> tuple[str, str]:
    """Two values that differ, each `shortened`; of longer lists only the entries that differ."""
    if isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > limit:
        pairs = list(itertools.zip_longest(before, now, fillvalue=None))
        before = [old for old, new in pairs if old != new and old is not None]
        now = [new for old, new in pairs if old != new and new is not None]
    return shorten(before, limit), shorten(now, limit)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table, figures to the right; columns without any entry are left out."""
    from tabulate import tabulate

    columns = [
        index for index in range(len(head)) if any(row[index] not in _NO_ENTRY for row in rows)
    ]
    body = [[printable(row[index]) for index in columns] for row in rows]
    alignments = [
        "right" if all(cell[:1].isdigit() or cell in _NO_ENTRY for cell in column) else "left"
        for column in zip(*body)
    ]

    # The head as a row: tabulate pads its own by two.
    rows = [[head[index] for index in columns], *body]
    lines = tabulate(rows, tablefmt="plain", colalign=alignments, disable_numparse=True)
    return "\n".join(line.rstrip() for line in lines.splitlines())


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that no ``kind`` is called ``name``: the valid names that are near, then all."""
    valid_names = list(valid)
    hint = "."
    if close := near_matches(name, valid_names):
        hint = f"; did you mean {' or '.join(close)}?"
    elif _SYNONYMS.get(_plain(name)) == "steps":
        hint = f"; {_STEPS_ADVICE}."

    listing = ", ".join(repr(valid) if "," in valid else valid for valid in valid_names)
    return f"no {kind} is called {name!r}{hint} Valid: {listing or 'none'}"


def near_matches(
    name: str, valid: Iterable[str], most: int = 3, cutoff: float = _NEAR
) -> list[str]:
    """The valid names that ``name`` may stand for: a synonym, else at most ``most`` spelt alike."""
    valid_names = list(valid)
    synonym = _SYNONYMS.get(_plain(name))
    if synonym in valid_names:
        return [synonym]
    if synonym == "steps":  # nothing that is spelt like epochs is meant
        return []

    names_by_folded = {candidate.casefold(): candidate for candidate in valid_names}
    close = difflib.get_close_matches(name.casefold(), names_by_folded, n=most, cutoff=cutoff)
    return [names_by_folded[folded] for folded in close]


def _plain(name: str) -> str:
    """A name in one spelling: ``Learning-Rate`` is ``learning_rate``."""
    return name.casefold().replace("-", "_").strip("_")


# A bar of tqdm without the time left and the rate.
NO_ESTIMATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

# Where standard error is no terminal, a task says how far it is once in so many seconds.
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
    """How far a task is, on standard error: tqdm's bar on a terminal, else a line a minute.

    ``unit``: what is counted, in the singular; ``done``: how many were done before. Nothing is
    shown for ``delay`` seconds. Without an estimate the bar has no time left and no rate.

    A job copies its standard error to err.txt, whose last line is taken for the job's error. So
    there the bar goes to the terminal alone, and there are no lines.
    """
    from tqdm import tqdm

    stream = sys.stderr
    is_copied = stream is not None and not isinstance(stream, io.TextIOBase)
    if is_copied:
        stream = sys.__stderr__
    is_terminal = stream is not None and stream.isatty()

    tqdm.monitor_interval = 0  # its thread would be in the way of forks
    bar = functools.partial(
        tqdm, items, description, total, unit=unit, initial=done, delay=delay, smoothing=0
    )
    if is_terminal:
        return bar(file=stream, bar_format=None if has_estimate else NO_ESTIMATE)

    units = unit + ("es" if unit.endswith(("s", "ch")) else "s")
    share = f"{{n_fmt}} of {{total_fmt}} {units} ({{percentage:.0f}}%)"
    return bar(
        file=_Lines(stream),
        disable=stream is None or is_copied,
        bar_format=f"{{desc}}: {share}{{postfix}}, after {{elapsed}}",
        mininterval=LINE_SECONDS,
        miniters=0,  # each look may print a line
        position=0,  # no line is below another
    )


class _Lines:
    """A stream to which tqdm writes lines, each of its own."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Print a line, without the carriage return by which tqdm replaces the last one."""
        if self._stream is not None and text.strip():
            _print_line(text.strip(), self._stream)

    def flush(self) -> None:
        """Do nothing: each line is written at once."""


def log(line: str) -> None:
    """Print a line on standard error, unless that is a terminal, which has a bar instead."""
    if sys.stderr is not None and not sys.stderr.isatty():
        _print_line(line, sys.stderr)


def _print_line(line: str, stream: TextIO) -> None:
    # A reader that is gone, or a full disk, ends no task.
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{printable(line)}\n")  # in one piece: threads print at the same time
        stream.flush()


def templates(autoescape: bool) -> Any:
    """The jinja2.Environment of ``assets``, with ``autoescape`` for HTML; unknown names raise."""
    import jinja2  # for what is written by a template only: it takes a while to load

    return jinja2.Environment(
        loader=jinja2.PackageLoader("domainbed_carft", "assets"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
