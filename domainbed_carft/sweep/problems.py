"""Problems of a declared sweep, each with the place it is at, told all at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from domainbed_carft.errors import CarftError

Path = tuple[str | int, ...]  # keys and list indices from the top of the file


class Problem(NamedTuple):
    """What is wrong and what was expected, at ``path``; ``breaks`` if that part says nothing."""

    path: Path
    text: str
    breaks: bool = True


@dataclass(frozen=True)
class Source:
    """Where a declaration is from, so that a problem can say where it lies."""

    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of a path; of the nearest one above it where it is not in the file."""
        prefixes = (path[:n] for n in range(len(path), -1, -1))
        return next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), 1)

    def tell(self, problem: Problem) -> str:
        """``file:line: path: text``."""
        at = f"{self.name}:{self.line(problem.path)}"
        return f"{at}: {spelled(problem.path)}{problem.text}"


class Flags(Source):
    """DomainBed's own flags in place of a file."""

    NAMES: Mapping[str, str] = {"trials": "n_trials", "hparams_seeds": "n_hparams"}

    def tell(self, problem: Problem) -> str:
        """``--flag: text``."""
        first, *rest = problem.path or ("",)
        inner = spelled(tuple(rest)) if first == "hparams" else ""
        return f"--{self.NAMES.get(str(first), first)}: {inner}{problem.text}"


def spelled(path: Path) -> str:
    """``overrides[0].hparams.lr: ``; nothing for the top."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def require(source: Source, problems: Iterable[Problem]) -> None:
    """Raise a CarftError that lists the problems, each once, in the order of the file."""
    ordered = sorted(problems, key=lambda problem: source.line(problem.path))
    distinct = list(dict.fromkeys(source.tell(problem) for problem in ordered))
    raise_for(distinct)


def raise_for(sentences: Iterable[str]) -> None:
    """Raise a CarftError of these sentences, a line each, if there are any."""
    distinct = list(dict.fromkeys(sentences))
    if distinct:
        count = f"{len(distinct)} problem{'s' if len(distinct) > 1 else ''}, nothing was done"
        raise CarftError("\n".join([count, *(f"- {sentence}" for sentence in distinct)]))


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that ``name`` is no ``kind``: the nearest valid names, then all."""
    names = list(valid)
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    nearest = f"did you mean {' or '.join(folded[match] for match in close)}? " if close else ""
    listed = ", ".join(repr(one) if "," in one else one for one in names)
    return f"no {kind} is called {name!r}; {nearest}Valid: {listed}"
