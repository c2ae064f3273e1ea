"""The drawing styles of the embedded images: their artists, and whether `tiny` has seen them.

Styles of the same family are by the same team and modelled on each other, so they are not
independent.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files

SEEN = "seen"  # `tiny` was pre-trained on images of this style
FAMILY_SEEN = "family seen"  # `tiny` was pre-trained on another style of the same family
NEVER_SEEN = "never seen"


@dataclass(frozen=True)
class DrawingStyle:
    """One drawing style."""

    name: str
    label: str  # SEEN, FAMILY_SEEN or NEVER_SEEN
    family: str
    images: int  # in the package, out of 429 held-out things
    artists: str
    licence: str
    licence_url: str
    package: str  # on npm
    version: str  # of the npm package
    integrity: str  # digest of the npm package's archive
    source: str  # URL


@functools.cache
def styles() -> tuple[DrawingStyle, ...]:
    """Return all styles: first seen, then of a seen family, then never seen; sorted within each."""
    table = files("domainbed_carft") / "assets" / "emoji_styles.json"
    return tuple(DrawingStyle(**facts) for facts in json.loads(table.read_text(encoding="utf-8")))


def names(label: str) -> list[str]:
    """Return the sorted names of the styles with a label."""
    return [style.name for style in styles() if style.label == label]


def get(name: str) -> DrawingStyle:
    return next(style for style in styles() if style.name == name)


def folder(label: str) -> str:
    """Return the archive's folder of the styles with a label."""
    return label.replace(" ", "_")
