"""The legend of a page: one for all figures that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from domainbed_carft.report.canvas import RC_PARAMS, Figure, add_legend, new_canvas, save_figure
from domainbed_carft.report.styles import Style, Styles

_KEY_SIZE = (0.5, 0.2)  # inches


@dataclass(frozen=True)
class Key:
    """An algorithm, and its line and mark as a data URI of an SVG."""

    algorithm: str
    uri: str


@dataclass(frozen=True)
class Legend:
    """The keys of all algorithms, and the same as a figure to download."""

    keys: Sequence[Key]
    figure: Figure


@matplotlib.rc_context(RC_PARAMS)
def make_legend(styles: Styles, name: str) -> Legend:
    """The legend of the algorithms; ``name``: of its figure's files."""
    lines = {algorithm: _line(style) for algorithm, style in styles.items()}
    canvas = new_canvas(0.1, [*styles])
    add_legend(canvas, lines)
    alt = f"Legend: line and mark of {', '.join(styles)}."
    data = pd.DataFrame(
        [(algorithm, style.colour, style.marker) for algorithm, style in styles.items()],
        columns=["algorithm", "colour", "marker"],
    )
    return Legend(
        keys=[Key(algorithm, _key_figure(style).uri) for algorithm, style in styles.items()],
        figure=save_figure(canvas, "Legend", name, alt, data),
    )


def _line(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, lw=1.8, ms=6, linestyle=style.dash, **style.mark)


def _key_figure(style: Style) -> Figure:
    """A picture of one line with its mark in the middle, on no ground."""
    canvas = Canvas(figsize=_KEY_SIZE)
    canvas.patch.set_visible(False)
    line = _line(style)
    line.set_data([0.02, 0.5, 0.98], [0.5, 0.5, 0.5])
    line.set_markevery([1])
    canvas.add_artist(line)
    return save_figure(canvas, "", "", "", pd.DataFrame())
