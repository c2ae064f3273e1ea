"""Styles of algorithms in figures and tables: rows, colours and markers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INK = "#1b1f24"
PAPER = "#ffffff"


@dataclass(frozen=True)
class Style:
    """Row of an algorithm in tables, and its colour, marker and dash in figures.

    Each algorithm has its own. Colour is never the only distinction.

    Attributes:
        row: sort key of the row in tables.
        colour: colour of lines, markers and bars, for matplotlib.
        marker: marker of points, for matplotlib.
        dash: line style, for matplotlib.
        hollow: True if the marker is not filled.
    """

    row: float
    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for the marker and its colours."""
        if self.hollow:
            return {"marker": self.marker, "mfc": PAPER, "mec": self.colour, "mew": 1.3}
        return {"marker": self.marker, "mfc": self.colour, "mec": INK, "mew": 0.7}


# Of the algorithms of this package, in the order of table rows.
STYLES = {
    "CARFT": Style(1, "#D55E00", "o", "solid"),
    "CLIPFineTune": Style(2, "#0072B2", "D", (0, (4, 1.5))),
    "CLIPLinearProbe": Style(3, "#009E73", "^", (0, (6, 1.5, 1, 1.5))),
    "CLIPZeroShot": Style(4, "#808080", "s", (0, (1, 1.2))),
    "CLIPood": Style(5, "#3A9AB8", "*", (0, (6, 3))),
    "CLIPWiSEFT": Style(6, "#AA4499", "X", (0, (2, 1))),
    "CLIPLPFT": Style(7, "#117733", "v", (0, (8, 2))),
    "CLIPL2SP": Style(8, "#332288", "P", (0, (3, 1, 1, 1))),
    "CLIPFeatureDistillation": Style(9, "#7A5C00", "<", (0, (5, 1, 1, 1, 1, 1))),
    "LDIFS": Style(10, "#661100", ">", (0, (1, 2.5))),
    "LipsumFT": Style(11, "#CC6677", "d", (0, (10, 1))),
    "CLIPMIRO": Style(12, "#1b1f24", "p", (0, (2, 2))),
    "FLYP": Style(13, "#882255", "h", (0, (8, 1, 2, 1)), hollow=True),
    "CaRot": Style(14, "#B5468F", "H", (0, (1, 1, 4, 1)), hollow=True),
    "CLIPLoRA": Style(15, "#4B6A1B", "8", (0, (7, 1, 3, 1))),
    "FDAlign": Style(16, "#6A51A3", "h", (0, (6, 1, 1, 1, 1, 1))),
    "StarFT": Style(17, "#1F6F78", "d", (0, (3, 1, 3, 1, 1, 1)), hollow=True),
}
