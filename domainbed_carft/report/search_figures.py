"""Figures of a search: a dot for every choice of hyperparameters, trial and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed_carft.jobs.job import Choice
from domainbed_carft.report.canvas import (
    RC_PARAMS,
    Figure,
    add_legend,
    name_places,
    new_canvas,
    save_figure,
)
from domainbed_carft.report.styles import INK, PAPER, Style
from domainbed_carft.text import printable

_HEIGHT = 4.4  # inches
_PANELS = {
    "out_of_domain": "out-of-domain accuracy (%)",
    "validation": "validation accuracy (%)",
}
_SPREAD = 0.5  # of the distance between two choices, over which the trials are spread
_MEAN_WIDTH = 0.7


@matplotlib.rc_context(RC_PARAMS)
def choices(title: str, name: str, rows: pd.DataFrame, style: Style) -> Figure:
    """The accuracies of all choices of one algorithm; what selection chose is filled.

    ``rows``: of ``frames.choices``.
    """
    ordered = sorted(set(rows["choice"]))
    labels = _labels(ordered)
    names = labels.names
    legend = ["chosen", "not chosen", "mean"]
    canvas = new_canvas(_HEIGHT, legend)
    all_axes = canvas.subplots(len(_PANELS), 1, sharex=True)

    positions = rows["choice"].map(ordered.index) + _offsets(rows["trial"])
    for axes, (column, heading) in zip(all_axes, _PANELS.items()):
        axes.set_title(heading)
        _draw_dots(axes, positions, 100 * rows[column], rows["selected"], style)
        for position, choice in enumerate(ordered):
            mean = 100 * rows.loc[rows["choice"] == choice, column].mean()
            half = _MEAN_WIDTH / 2
            axes.plot([position - half, position + half], [mean, mean], color=INK, lw=1.4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="x", visible=False)

    name_places(all_axes[-1], range(len(names)), names)
    all_axes[-1].set(xlabel=printable(labels.axis), xlim=(-0.6, len(names) - 0.4))
    add_legend(canvas, dict(zip(legend, _handles(style))), handlelength=1.2)

    alt = (
        f"Dots of out-of-domain and validation accuracy for each choice of {labels.axis}: {title}, "
        f"{len(names)} choices, {len(rows)} runs."
    )
    data = rows[["target", "trial", "choice", *_PANELS, "selected"]]
    return save_figure(canvas, title, name, alt, data)


class _Labels(NamedTuple):
    """The names of choices, and of the axis that they stand along."""

    axis: str
    names: Sequence[str]


def _labels(ordered: Sequence[Choice]) -> _Labels:
    """Of one searched hyperparameter the values alone, of random draws the seeds."""
    hparams = {name for choice in ordered for name in choice.searched_values}
    if not hparams:
        return _Labels("draw (hparams seed)", [str(choice.hparams_seed) for choice in ordered])
    if len(hparams) == 1 and not any(choice.hparams_seed for choice in ordered):
        (hparam,) = hparams
        # A job that the manifest does not list has none.
        names = [str(choice.searched_values.get(hparam, "default")) for choice in ordered]
        return _Labels(hparam, names)
    return _Labels("hyperparameters", [str(choice) for choice in ordered])


def _offsets(trials: pd.Series[int]) -> Any:
    """How far each trial's dots stand from the middle, so that they do not hide each other."""
    numbers = sorted(set(trials))
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(numbers)) if len(numbers) > 1 else [0.0]
    return trials.map(dict(zip(numbers, offsets)))


def _draw_dots(axes: Any, positions: Any, values: Any, is_selected: Any, style: Style) -> None:
    """Hollow dots of what was not chosen, below filled ones of what was."""
    for chosen in (False, True):
        is_drawn = is_selected == chosen
        face = style.colour if chosen else PAPER
        axes.plot(
            positions[is_drawn],
            values[is_drawn],
            ls="",
            marker="o",
            ms=4.5,
            mfc=face,
            mec=style.colour,
            mew=0.9,
            zorder=3 + chosen,
        )


def _handles(style: Style) -> list[Line2D]:
    dots = [
        Line2D([], [], ls="", marker="o", ms=5, mfc=face, mec=style.colour)
        for face in (style.colour, PAPER)
    ]
    return [*dots, Line2D([], [], color=INK, lw=1.4)]
