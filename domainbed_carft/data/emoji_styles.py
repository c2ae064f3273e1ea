"""The drawing styles of the embedded images: who drew them, and whether `tiny` has seen them.

Styles of one family are by one team, and drawn after each other: they are not independent.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

SEEN = "seen"  # images of this style were in the pre-training of `tiny`
FAMILY_SEEN = "family seen"  # images of another style of its family were
NEVER_SEEN = "never seen"


@dataclass(frozen=True)
class DrawingStyle:
    """One drawing style.

    ``label`` is SEEN, FAMILY_SEEN or NEVER_SEEN. ``images``: how many of the 429 held-out things
    are in the package in this style. ``package``, ``version`` and ``integrity`` are
    of npm: the last is the digest of the package's archive.
    """

    name: str
    label: str
    family: str
    images: int
    artists: str
    licence: str
    licence_url: str
    package: str
    version: str
    integrity: str
    source: str


@functools.cache
def styles() -> tuple[DrawingStyle, ...]:
    """All styles: the seen ones, those of a seen family, and those never seen, each sorted."""
    table = files("domainbed_carft") / "assets" / "emoji_styles.json"
    return tuple(DrawingStyle(**facts) for facts in json.loads(table.read_text(encoding="utf-8")))


def names(label: str) -> list[str]:
    """The names of the styles with this label, sorted."""
    return [style.name for style in styles() if style.label == label]


def get(name: str) -> DrawingStyle:
    """The style called ``name``."""
    return next(style for style in styles() if style.name == name)


def folder(label: str) -> str:
    """The folder in the archive of all styles with this label."""
    return label.replace(" ", "_")
