"""Words and figures for people: counts, tables, near misses, foreign text made safe."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
