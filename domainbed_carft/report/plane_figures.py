"""Figures of marks in a plane: one accuracy against another, which shows robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from domainbed_carft.report.canvas import (
    MUTED,
    RC_PARAMS,
    Figure,
    add_legend,
    new_canvas,
    save_figure,
)
from domainbed_carft.report.styles import Styles


@matplotlib.rc_context(RC_PARAMS)
def marks(title: str, name: str, rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """In-domain against out-of-domain accuracy, one mark per run, which shows robustness.

    Runs that lie higher at the same place from left to right are the more robust ones (Taori et
    al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).
    ``rows``: the selected ones of ``frames.checkpoints``. None if there is nothing to draw.
    """
    rows = rows.dropna(subset=["in_domain", "out_of_domain"]).set_index("algorithm")
    points = {
        algorithm: 100 * rows.loc[[algorithm], ["in_domain", "out_of_domain"]].to_numpy().T
        for algorithm in styles
        if algorithm in rows.index
    }
    if not points:
        return None

    canvas, axes = _plane(points, styles, "in-domain accuracy (%)", "out-of-domain accuracy (%)")
    # As far as the marks reach, with the line of equal accuracies.
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)

    alt = f"Marks of in-domain against out-of-domain accuracy: {title}, for {', '.join(points)}."
    return save_figure(canvas, title, name, alt)


@matplotlib.rc_context(RC_PARAMS)
def suite(
    title: str, name: str, points: Sequence[tuple[str, float | None, float, float]], styles: Styles
) -> Figure | None:
    """Accuracy in distribution against the mean of the shifts, as in WiSE-FT's paper.

    ``points``: algorithm, alpha or None, and both in percent. From the zero-shot CLIP a straight
    line leads to each run, and WiSE-FT's curve if there are its points. None without points.
    """
    trained = {algorithm: (x, y) for algorithm, alpha, x, y in points if alpha is None}
    marked = {algorithm: trained[algorithm] for algorithm in styles if algorithm in trained}
    if not marked:
        return None

    canvas, axes = _plane(
        {algorithm: ([x], [y]) for algorithm, (x, y) in marked.items()},
        styles,
        "accuracy in distribution (%)",
        "mean accuracy of the shifts (%)",
    )
    originals = [(x, y) for _, alpha, x, y in points if alpha == 0]
    zero_shot = trained.get("CLIPZeroShot", originals[0] if originals else None)
    for algorithm, (x, y) in marked.items():
        colour = styles[algorithm].colour
        curve = sorted(
            (alpha, curve_x, curve_y)
            for curve_algorithm, alpha, curve_x, curve_y in points
            if curve_algorithm == algorithm and alpha is not None
        )
        curve_xs = [curve_x for _, curve_x, _ in curve]
        curve_ys = [curve_y for _, _, curve_y in curve]
        axes.plot(curve_xs, curve_ys, color=colour, lw=1.4, marker=".", ms=5, zorder=2)

        if zero_shot and algorithm != "CLIPZeroShot":
            xs = [zero_shot[0], x]
            ys = [zero_shot[1], y]
            axes.plot(xs, ys, color=colour, lw=1, ls=(0, (1, 2)), zorder=1)

    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from the zero-shot CLIP and WiSE-FT's curves: {title}, for {', '.join(marked)}."
    )
    return save_figure(canvas, title, name, alt)


def _plane(
    points: Mapping[str, Any], styles: Styles, x_label: str, y_label: str
) -> tuple[Canvas, Any]:
    """A canvas and its axes with each algorithm's marks; ``points``: algorithm -> xs and ys."""
    canvas = new_canvas(3.4, [*points])
    axes = canvas.subplots()

    handles = {}
    for algorithm in reversed([*points]):  # the first algorithm lies on top
        xs, ys = points[algorithm]
        (handles[algorithm],) = axes.plot(xs, ys, ls="", ms=6.8, zorder=3, **styles[algorithm].mark)

    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel=x_label, ylabel=y_label)
    add_legend(canvas, {algorithm: handles[algorithm] for algorithm in points}, handlelength=1.2)
    return canvas, axes
