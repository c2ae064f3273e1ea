"""Figures of marks in a plane: one accuracy against another, which shows robustness."""

from __future__ import annotations

import math
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
    padded,
    save_figure,
)
from domainbed_carft.report.figures import Limits
from domainbed_carft.report.styles import ZERO_SHOT, Styles
from domainbed_carft.results.cells import DOMAINBED, ErrorKind

X_LABEL = "in-domain accuracy (%)"
Y_LABEL = "out-of-domain accuracy (%)"
_ACCURACIES = ["in_domain", "out_of_domain"]
# Share of the plane's longer side that the line of equal accuracies must span, to be drawn.
_LEAST_OF_DIAGONAL = 0.3


@matplotlib.rc_context(RC_PARAMS)
def means(
    title: str, name: str, rows: pd.DataFrame, styles: Styles, error: ErrorKind = DOMAINBED
) -> Figure | None:
    """In-domain against out-of-domain accuracy: a mark an algorithm, with the error of both.

    Algorithms that lie higher at the same place from left to right are the more robust ones (Taori
    et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).
    ``rows``: of `frames.over_targets`, a row for each trial. None if there is nothing to draw.
    """
    data = means_of_trials(rows, styles, error)
    if data.empty:
        return None

    canvas = new_canvas(3.4, width=4.6)
    axes = canvas.subplots()
    draw_means(axes, data, styles)
    alt = (
        f"Marks of in-domain against out-of-domain accuracy: {title}, means over trials with their "
        f"errors, for {', '.join(data['algorithm'])}."
    )
    return save_figure(canvas, title, name, alt, data)


def means_of_trials(
    rows: pd.DataFrame, styles: Styles, error: ErrorKind = DOMAINBED
) -> pd.DataFrame:
    """A row an algorithm, in the order of ``styles``: means, errors (nan of one trial), trials.

    Columns: ``algorithm``, ``in_domain``, ``in_domain_error``, ``out_of_domain``,
    ``out_of_domain_error``, in percent, and ``trials``.
    """
    rows = rows.dropna(subset=_ACCURACIES)
    entries = []
    for algorithm in styles:
        values = 100 * rows.loc[rows["algorithm"] == algorithm, _ACCURACIES].to_numpy()
        if len(values):
            errors = [error.of(column) if len(column) > 1 else math.nan for column in values.T]
            inside, outside = values.mean(axis=0)
            entries.append((algorithm, inside, errors[0], outside, errors[1], len(values)))

    columns = ["algorithm", "in_domain", "in_domain_error"]
    columns += ["out_of_domain", "out_of_domain_error", "trials"]
    return pd.DataFrame(entries, columns=columns)


def draw_means(axes: Any, data: pd.DataFrame, styles: Styles) -> dict[str, Any]:
    """Draw the rows of `means_of_trials`; algorithm -> its mark, for a legend.

    A line at the height of zero-shot CLIP shows who is more accurate out of domain.
    """
    handles = {}
    for row in data.iloc[::-1].to_dict("records"):  # the first algorithm lies on top
        style = styles[row["algorithm"]]
        if row["algorithm"] == ZERO_SHOT:
            height = row["out_of_domain"]
            axes.axhline(height, color=style.colour, lw=1, ls=(0, (4, 2)), zorder=1)
        handles[row["algorithm"]] = axes.errorbar(
            row["in_domain"],
            row["out_of_domain"],
            xerr=row["in_domain_error"],
            yerr=row["out_of_domain_error"],
            ls="",
            ms=7.5,
            ecolor=style.colour,
            elinewidth=1.2,
            zorder=3,
            **style.mark,
        )

    axes.margins(0.08)
    _finish_plane(axes)
    return {algorithm: handles[algorithm] for algorithm in data["algorithm"]}


@matplotlib.rc_context(RC_PARAMS)
def marks(
    title: str, name: str, rows: pd.DataFrame, styles: Styles, limits: Limits
) -> Figure | None:
    """In-domain against out-of-domain accuracy, one mark per run, as in `means`.

    ``rows``: the selected ones of ``frames.checkpoints``; ``limits``: of the axes, which several
    figures share, as of `plane_limits`. None if there is nothing to draw.
    """
    rows = rows.dropna(subset=_ACCURACIES)
    algorithms = [algorithm for algorithm in styles if algorithm in {*rows["algorithm"]}]
    if not algorithms:
        return None

    canvas = new_canvas(3.2)
    axes = canvas.subplots()
    for algorithm in reversed(algorithms):  # the first algorithm lies on top
        values = 100 * rows.loc[rows["algorithm"] == algorithm, _ACCURACIES].to_numpy()
        axes.plot(*values.T, ls="", ms=6.8, zorder=3, **styles[algorithm].mark)
    axes.set(xlim=limits["in_domain"], ylim=limits["out_of_domain"])
    _finish_plane(axes)

    alt = (
        f"Marks of in-domain against out-of-domain accuracy: {title}, for {', '.join(algorithms)}."
    )
    data = rows[["algorithm", "trial"]].assign(**{name: 100 * rows[name] for name in _ACCURACIES})
    return save_figure(canvas, title, name, alt, data)


def plane_limits(rows: pd.DataFrame) -> Limits:
    """Limits of the axes of `marks` that hold all ``rows``."""
    return {name: padded(100 * rows[name].min(), 100 * rows[name].max()) for name in _ACCURACIES}


def _finish_plane(axes: Any) -> None:
    """Titles of the axes, and where there is room, the line of equal accuracies with its name."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel=X_LABEL, ylabel=Y_LABEL, xlim=axes.get_xlim(), ylim=axes.get_ylim())

    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    low = max(left, bottom)
    high = min(right, top)
    if high - low >= _LEAST_OF_DIAGONAL * max(right - left, top - bottom):
        axes.plot([low, high], [low, high], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.annotate(
            "equal",
            (high, high),
            (-8, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            color=MUTED,
        )


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
    zero_shot = trained.get(ZERO_SHOT, originals[0] if originals else None)
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

        if zero_shot and algorithm != ZERO_SHOT:
            xs = [zero_shot[0], x]
            ys = [zero_shot[1], y]
            axes.plot(xs, ys, color=colour, lw=1, ls=(0, (1, 2)), zorder=1)

    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from the zero-shot CLIP and WiSE-FT's curves: {title}, for {', '.join(marked)}."
    )
    columns = ["algorithm", "alpha", "in_distribution", "mean_of_shifts"]
    return save_figure(canvas, title, name, alt, pd.DataFrame(points, columns=columns))


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
