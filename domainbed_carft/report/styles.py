"""The style of each algorithm, the same in all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ZERO_SHOT = "CLIPZeroShot"
INK = "#1b1f24"
PAPER = "#ffffff"


class Style(NamedTuple):
    """The colour, marker and dash of an algorithm, all different from those of the others.

    Colour is never the only distinction, and bars have names.
    """

    colour: str
    marker: str
    dash: Any
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Keywords for ``Axes.plot``: the marker, and the colours of its face and edge."""
        if self.hollow:
            return {"marker": self.marker, "mfc": PAPER, "mec": self.colour, "mew": 1.3}
        return {"marker": self.marker, "mfc": self.colour, "mec": INK, "mew": 0.7}


# Okabe and Ito's palette, which the colour-blind can tell apart, for CARFT and its baselines, and
# darker colours, mostly Tol's, for the peers. All stand out by 3 to 1 on white.
_STYLES_OF_OURS = {
    "CLIPZeroShot": Style("#808080", "s", (0, (1, 1.2))),
    "CLIPLinearProbe": Style("#009E73", "^", (0, (6, 1.5, 1, 1.5))),
    "CLIPFineTune": Style("#0072B2", "D", (0, (4, 1.5))),
    "CLIPWiSEFT": Style("#AA4499", "X", (0, (2, 1))),
    "CLIPLPFT": Style("#117733", "v", (0, (8, 2))),
    "CLIPL2SP": Style("#332288", "P", (0, (3, 1, 1, 1))),
    "CLIPFeatureDistillation": Style("#7A5C00", "<", (0, (5, 1, 1, 1, 1, 1))),
    "LDIFS": Style("#661100", ">", (0, (1, 2.5))),
    "LipsumFT": Style("#CC6677", "d", (0, (10, 1))),
    "CLIPMIRO": Style(INK, "p", (0, (2, 2))),
    "CLIPood": Style("#3A9AB8", "*", (0, (6, 3))),
    "FLYP": Style("#882255", "h", (0, (8, 1, 2, 1)), hollow=True),
    "CaRot": Style("#B5468F", "H", (0, (1, 1, 4, 1)), hollow=True),
    "CLIPLoRA": Style("#4B6A1B", "8", (0, (7, 1, 3, 1))),
    "CARFT": Style("#D55E00", "o", "solid"),
}
# Algorithms of other packages, again in turn if there are more.
_STYLES_OF_OTHERS = (
    Style("#57606a", "o", (0, (1, 1)), hollow=True),
    Style("#0072B2", "s", (0, (3, 2)), hollow=True),
    Style("#882255", "^", (0, (7, 1)), hollow=True),
    Style("#117733", "D", (0, (4, 1, 1, 1)), hollow=True),
    Style("#332288", "v", (0, (1, 2)), hollow=True),
    Style("#7A5C00", "P", (0, (9, 2, 1, 2)), hollow=True),
    Style("#AA4499", "X", (0, (5, 4)), hollow=True),
)
Styles = Mapping[str, Style]


def styles_of(algorithms: Sequence[str]) -> dict[str, Style]:
    """Algorithm -> its style; ours have a fixed one each, others get theirs in the order given."""
    styles = {}
    number = 0
    for name in algorithms:
        if name in _STYLES_OF_OURS:
            styles[name] = _STYLES_OF_OURS[name]
        else:
            styles[name] = _STYLES_OF_OTHERS[number % len(_STYLES_OF_OTHERS)]
            number += 1
    return styles
