"""What the page says, before it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.report.figures import Figure
from domainbed_carft.results.document import Grid


class Wanted(NamedTuple):
    """What is asked of ``carft report``; ``examples`` is None for no pictures."""

    folders: Sequence[Path]
    select: str | None = None
    ignored: Sequence[str] = ()
    pair: Sequence[str] | None = None
    examples: int | None = 4
    data_dir: str | None = None


class Answer(NamedTuple):
    """What one algorithm makes of a picture: probabilities in [0, 1].

    ``kl``: KL(original || its own) of the context distributions in nats, None without an original.
    """

    algorithm: str
    answer: str
    probability: float
    of_truth: float
    right: bool
    kl: float | None


class Example(NamedTuple):
    """A picture, as a data URI, and its place in the split; ``contexts``: with a share a column."""

    picture: str
    number: int
    truth: str
    answers: Sequence[Answer]
    columns: Sequence[str]
    contexts: Sequence[tuple[str, Sequence[float]]]


class Target(NamedTuple):
    """Two algorithms on pictures of one environment; ``text`` says why there are none, if so.

    ``directions``: who is right and who is wrong, with examples of it; ``remarks``: on the weights.
    """

    environment: str
    text: str
    remarks: Sequence[str] = ()
    directions: Sequence[tuple[str, Sequence[Example]]] = ()


class Part(NamedTuple):
    """Figures or examples of one kind, for which the template has title and text.

    A figure is None where there was nothing to draw; ``lacking`` says why there are none at all.
    """

    kind: str
    figures: Sequence[Figure | None] = ()
    targets: Sequence[Target] = ()
    lacking: str = ""


class Section(NamedTuple):
    """One data set under one setting; ``others``: its tables by other methods of selection."""

    id: str
    title: str
    table: Grid
    best: Sequence[Sequence[bool]]
    others: Sequence[Grid]
    parts: Sequence[Part]


class Page(NamedTuple):
    """The whole page; ``facts``: number and what it counts; ``digest``: SHA-256 of the records."""

    title: str
    method: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[str]
    sections: Sequence[Section]
    averages: Sequence[Grid]
    paired: Grid | None
    published: Sequence[Grid]
    overview: Grid | None
    captions: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    missing: Grid
    gaps: int
    complete: bool
    faults: Sequence[str]
    command: str
    software: str
    settings: Grid
    digest: str
    jobs: Grid
    commands: Sequence[str]
