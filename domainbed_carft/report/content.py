"""What the page says, before it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from domainbed_carft.report.figures.drawn import Drawn
from domainbed_carft.results.document import Grid


class Shown(NamedTuple):
    """A figure under its own title."""

    title: str
    drawn: Drawn


class Part(NamedTuple):
    """Figures of one kind, and what is to know of them; ``lacking`` says why there is none."""

    id: str
    title: str
    text: str
    figures: Sequence[Shown]
    lacking: str = ""


class Belief(NamedTuple):
    """What one algorithm makes of a picture; probabilities in [0, 1].

    ``kl``: KL(original || its own) of the context distributions in nats, None without an original.
    """

    algorithm: str
    answer: str
    probability: float
    of_truth: float
    right: bool
    kl: float | None


class Context(NamedTuple):
    """A context, and its probability for each of ``Example.columns``."""

    template: str
    probabilities: Sequence[float]


class Example(NamedTuple):
    """One picture; ``picture`` is a data URI, ``number`` its place in the split."""

    picture: str
    number: int
    truth: str
    beliefs: Sequence[Belief]
    columns: Sequence[str]
    contexts: Sequence[Context]


class Direction(NamedTuple):
    """The pictures that ``right`` gets right and ``wrong`` wrong: how many, and the first few."""

    right: str
    wrong: str
    total: int
    examples: Sequence[Example]


class OfTarget(NamedTuple):
    """One environment left out; ``remarks`` on the weights, ``lacking`` what stands in the way."""

    environment: str
    total: int = 0
    both: int = 0
    neither: int = 0
    directions: Sequence[Direction] = ()
    remarks: Sequence[str] = ()
    lacking: str = ""


class Examples(NamedTuple):
    """Two algorithms on pictures of each environment; ``lacking`` if there are none at all."""

    pair: Sequence[str]
    targets: Sequence[OfTarget]
    lacking: str = ""


class Section(NamedTuple):
    """One data set under one setting; ``others``: the tables by other methods of selection."""

    id: str
    title: str
    table: Grid
    best: Sequence[Sequence[bool]]
    others: Sequence[Grid]
    parts: Sequence[Part]
    examples: Examples | None


class Missing(NamedTuple):
    """What cells of a data set lack; ``cells``: algorithms with their environments.

    ``counts``: whether it is a gap, not only what another method of selection would need.
    """

    where: str
    what: str
    cells: str
    methods: str
    counts: bool


class Digest(NamedTuple):
    """SHA-256 over the records below one folder, how many files, and the command to repeat it."""

    folder: str
    files: int
    sha256: str
    command: str


class Repeat(NamedTuple):
    """All that it takes to make the sweep, and this page, again."""

    command: str
    software: str
    versions: Grid
    settings: Grid
    words: Grid
    digests: Sequence[Digest]
    jobs: Grid
    commands: Sequence[str]


class Content(NamedTuple):
    """The whole page; ``facts``: number and what it counts."""

    title: str
    method: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[str]
    sections: Sequence[Section]
    averages: Sequence[Grid]
    paired: Grid | None
    published: Sequence[Grid]
    overview: Grid | None
    missing: Sequence[Missing]
    complete: str
    faults: Sequence[str]
    notes: Sequence[str]
    caption: Mapping[str, Sequence[str]]
    repeat: Repeat
