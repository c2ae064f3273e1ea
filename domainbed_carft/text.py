"""Words and figures for people: counts, tables, near misses, foreign text made safe."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import io
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import jinja2

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
}
_STEPS_ADVICE = "set the number of steps: --steps of train, the key steps of a sweep"

# Below this ratio of difflib two names have hardly more in common than a few letters.
_NEAR = 0.6


def shown(text: str) -> str:
    r"""``text`` from a file or a folder, safe to print: a newline becomes ``\n``, and so on."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def counted(count: int, one: str, many: str = "") -> str:
    """The number and what it counts: 1 job, 3,840 jobs; ``many`` is ``one`` with an s, if ""."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def limited(lines: Sequence[str], most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"  ... and {more:,} more"] if more > 0 else [])]


def shortened(value: object, most: int = 10) -> str:
    """The value as Python writes it; of a longer list the first entries, and how many follow."""
    if not isinstance(value, (list, tuple)) or len(value) <= most:
        return repr(value)
    return f"[{', '.join(map(repr, value[:most]))} and {len(value) - most:,} more]"


def differences(before: object, now: object, most: int = 10) -> tuple[str, str]:
    """Two values that differ, each `shortened`; of longer lists only the entries that differ."""
    if isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > most:
        pairs = list(itertools.zip_longest(before, now, fillvalue=None))
        before = [old for old, new in pairs if old != new and old is not None]
        now = [new for old, new in pairs if old != new and new is not None]
    return shortened(before, most), shortened(now, most)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table, figures to the right; columns without any entry are left out."""
    from tabulate import tabulate

    kept = [i for i in range(len(head)) if any(row[i] not in ("", "-", "?") for row in rows)]
    body = [[shown(row[i]) for i in kept] for row in rows]
    figures = [all(v[:1].isdigit() or v in ("", "-", "?") for v in column) for column in zip(*body)]
    aligned = ["right" if is_figure else "left" for is_figure in figures]
    # The head as a row: tabulate pads its own by two.
    rows = [[head[i] for i in kept], *body]
    lines = tabulate(rows, tablefmt="plain", colalign=aligned, disable_numparse=True)
    return "\n".join(line.rstrip() for line in lines.splitlines())


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that no ``kind`` is called ``name``: the valid names that are near, then all."""
    names = list(valid)
    meant = "."
    if close := near(name, names):
        meant = f"; did you mean {' or '.join(close)}?"
    elif _SYNONYMS.get(_plain(name)) == "steps":
        meant = f"; {_STEPS_ADVICE}."
    listed = ", ".join(repr(one) if "," in one else one for one in names)
    return f"no {kind} is called {name!r}{meant} Valid: {listed or 'none'}"


def near(name: str, valid: Iterable[str], most: int = 3, cutoff: float = _NEAR) -> list[str]:
    """The valid names that ``name`` may stand for: a synonym, else those spelt alike."""
    names = list(valid)
    synonym = _SYNONYMS.get(_plain(name))
    if synonym in names:
        return [synonym]
    if synonym == "steps":  # nothing that is spelt like epochs is meant
        return []

    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=most, cutoff=cutoff)
    return [folded[one] for one in close]


def _plain(name: str) -> str:
    """A name in one spelling: ``Learning-Rate`` is ``learning_rate``."""
    return name.casefold().replace("-", "_").strip("_")


def confirm(yes: bool) -> None:
    """Ask on a terminal, unless ``yes``; leave the program if the answer is no."""
    asked = not yes and sys.stdin and sys.stdin.isatty()
    if asked and not input("Continue? (y/n) ").strip().lower().startswith("y"):
        print("Nothing was done.")
        raise SystemExit(0)


# Where standard error is no terminal, a task says how far it is once in so many seconds.
LINE_SECONDS = 60.0


def progress(
    items: Iterable[Any] | None = None, *, description: str, unit: str, total: int | None = None,
    done: int = 0, delay: float = 0, interval: float | None = None,
) -> Any:  # fmt: skip
    """How far a task is, on standard error: a bar on a terminal, else a line now and then.

    Iterate over it to get the ``items``, or use it as a context manager with ``update(count)`` and
    ``set_postfix_str(note)``. ``unit``: what is counted, in the singular; ``done``: how many were
    done before. The bar appears after ``delay`` seconds. Lines come every ``interval`` seconds
    (default: LINE_SECONDS); a task with a delay that ends before the first line prints none.

    A job copies its standard error to err.txt, whose last line is taken for the job's error. So
    there the bar goes to the terminal alone, and there are no lines.
    """
    if total is None and items is not None:
        total = len(items)  # type: ignore[arg-type]
    stream = sys.stderr
    is_copied = stream is not None and not isinstance(stream, io.TextIOBase)
    if is_copied:
        stream = sys.__stderr__

    if stream is not None and stream.isatty():
        from tqdm import tqdm  # where there is no terminal, nobody waits for its import

        return tqdm(
            items, description, total, unit=unit, initial=done, delay=delay, smoothing=0,
            file=stream,
        )  # fmt: skip
    return PlainProgress(
        items=items, description=description, unit=unit, total=total, done=done,
        always_prints_end=not delay,
        interval=LINE_SECONDS if interval is None else interval,
        stream=None if is_copied else stream,
    )  # fmt: skip


class PlainProgress:
    """The lines of `progress`, with as much of tqdm's interface as is used; no ``stream``: none."""

    def __init__(
        self, *, items: Iterable[Any] | None, description: str, unit: str, total: int | None,
        done: int, always_prints_end: bool, interval: float, stream: TextIO | None,
    ) -> None:  # fmt: skip
        self.n = done
        self._items = items
        self._description = description
        self._units = unit + ("es" if unit.endswith(("s", "ch")) else "s")
        self._unit = unit
        self._total = total or 0
        self._interval = interval
        self._prints_end = always_prints_end
        self._stream = stream
        self._note = ""
        self._started = time.monotonic()
        self._last_line = self._started

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items or ():
                yield item
                self.update()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._prints_end:
            self._print_line()

    def update(self, count: int = 1) -> None:
        """Count what was done; print a line if the last one is old enough."""
        self.n += count
        if time.monotonic() - self._last_line >= self._interval:
            self._print_line()
            self._prints_end = True

    def set_postfix_str(self, note: str, refresh: bool = True) -> None:
        """What the next line also says."""
        self._note = note

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = datetime.timedelta(seconds=int(self._last_line - self._started))
        share = f" ({100 * self.n / self._total:.0f}%)" if self._total else ""
        note = f", {self._note}" if self._note else ""
        line = (
            f"{self._description}: {self.n:,} of {counted(self._total, self._unit, self._units)}"
            f"{share}{note}, after {seconds}"
        )

        if self._stream is not None:
            _print_line(line, self._stream)


def log(line: str) -> None:
    """Print a line on standard error, unless that is a terminal, which has a bar instead."""
    if sys.stderr is not None and not sys.stderr.isatty():
        _print_line(line, sys.stderr)


def _print_line(line: str, stream: TextIO) -> None:
    # A reader that is gone, or a full disk, ends no task.
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{shown(line)}\n")  # in one piece: threads print at the same time
        stream.flush()


def templates(autoescape: bool) -> jinja2.Environment:
    """The templates in ``assets``, with ``autoescape`` for HTML; an unknown name is an error."""
    import jinja2  # for what is written by a template only: it takes a while to load

    return jinja2.Environment(
        loader=jinja2.PackageLoader("domainbed_carft", "assets"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
