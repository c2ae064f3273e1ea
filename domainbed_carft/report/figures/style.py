"""How figures look: one colour, marker, dash and hatch an algorithm, the same in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

INK = "#1b1f24"
MUTED = "#57606a"
GRID = "#d8dee4"
PAPER = "#ffffff"
# What the same colours are on a dark page.
DARK = {
    INK: "#e6edf3", MUTED: "#9da7b1", GRID: "#333b44", PAPER: "#0f1318",
    "#0072B2": "#2f94dd", "#56B4E9": "#9ad4f7", "#808080": "#9a9a9a",
}  # fmt: skip

WIDTH = 4.0  # inches: at 72 px an inch it fits a phone, and a page of 1,440 px has three


class Look(NamedTuple):
    """Colour is never the only sign: markers, dashes and hatches differ as well."""

    colour: str
    marker: str
    dash: Any
    hatch: str


# Okabe and Ito's palette, which the colour-blind can tell apart; ours are those of it that stand
# out by 3 to 1 on white and, as DARK has them, on the dark page.
_OURS = {
    "CLIPZeroShot": Look("#808080", "s", (0, (1, 1.2)), ""),
    "CLIPLinearProbe": Look("#009E73", "^", (0, (6, 1.5, 1, 1.5)), "..."),
    "CLIPFineTune": Look("#0072B2", "D", (0, (4, 1.5)), "///"),
    "CARFT": Look("#D55E00", "o", "solid", ""),
}
_OTHERS = (
    Look("#E69F00", "v", (0, (3, 1)), "\\\\\\"),
    Look("#56B4E9", "P", (0, (5, 1, 1, 1)), "xxx"),
    Look("#CC79A7", "X", (0, (2, 1)), "---"),
    Look("#F0E442", "*", (0, (8, 2)), "|||"),
    Look("#009E73", "h", (0, (1, 1)), "ooo"),
    Look("#0072B2", "p", (0, (5, 2, 1, 2)), "+++"),
    Look("#808080", "<", (0, (2, 2)), "***"),
)


def looks(algorithms: Sequence[str]) -> dict[str, Look]:
    """Algorithm -> its look; ours have their own, others follow in the order given."""
    others = [name for name in algorithms if name not in _OURS]
    return {
        name: _OURS[name] if name in _OURS else _OTHERS[others.index(name) % len(_OTHERS)]
        for name in algorithms
    }


# Text stays text: any browser and drawing program finds its letters. The salt makes names in the
# file the same each time.
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "carft report",
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
}
