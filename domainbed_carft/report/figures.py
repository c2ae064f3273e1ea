"""Figures: bars, curves and marks; reproducible bytes, the same style for an algorithm in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from domainbed_carft.report import frames
from domainbed_carft.report.canvas import (
    MUTED,
    RC_PARAMS,
    Figure,
    add_legend,
    new_canvas,
    save_figure,
)
from domainbed_carft.report.styles import INK, Style, Styles
from domainbed_carft.results.cells import Cell
from domainbed_carft.results.tables import Table
from domainbed_carft.text import printable

_BAR_HEIGHT = 0.2  # inches from one bar to the next
_GROUP_GAP = 1.6  # bars between two groups, for the title of the second
# Of more algorithms each environment has a figure of its own: a page prints 9 inches.
_MOST_BARS_IN_GROUP = 6
_MARKERS_ON_LINE = 10

# Of pairs of axes: a column of the frame -> its title, and what its values are multiplied by.
Panels = Mapping[str, tuple[str, int]]
ACCURACY: Panels = {
    "out_of_domain": ("out-of-domain accuracy (%)", 100),
    "in_domain": ("in-domain accuracy (%)", 100),
}
DRIFT: Panels = {
    "loss_kl": ("KL to the original (nats)", 1),
    "context_agreement": ("same most likely context (%)", 100),
}


def bars(table: Table, styles: Styles, name: Callable[..., str]) -> list[Figure]:
    """A group of bars an environment, and one of their averages, accuracies in percent.

    ``name(dataset, part, ...)`` makes a figure's name. Of many algorithms each group is a figure.
    """
    columns = [*table.columns, "average"]
    groups: dict[int, list[tuple[str, Cell]]] = {}
    for row in table.rows:
        for number, cell in enumerate([*row.cells, Cell(row.average)]):
            if cell.mean is not None:
                groups.setdefault(number, []).append((row.algorithm, cell))
    labelled_groups = [(columns[number], groups[number]) for number in sorted(groups)]

    dataset = table.dataset
    title = table.dataset_title
    if labelled_groups and len(table.rows) <= _MOST_BARS_IN_GROUP:
        figure = _bars(
            title=title,
            name=name(dataset, "accuracy"),
            subject="by environment",
            groups=labelled_groups,
            styles=styles,
        )
        return [figure]
    return [
        _bars(
            title=f"{title}, {label}",
            name=name(dataset, "accuracy", label),
            subject=label,
            groups=[(label, cells)],
            styles=styles,
        )
        for label, cells in labelled_groups
    ]


@matplotlib.rc_context(RC_PARAMS)
def _bars(
    title: str,
    name: str,
    subject: str,
    groups: Sequence[tuple[str, Sequence[tuple[str, Cell]]]],
    styles: Styles,
) -> Figure:
    """One figure; ``groups``: (label, (algorithm, cell with a mean) ...) from top to bottom."""
    n_rows = sum(len(cells) + _GROUP_GAP for _, cells in groups)
    canvas = new_canvas(0.75 + _BAR_HEIGHT * n_rows)
    axes = canvas.subplots()

    height = 0.0
    ticks = {}
    for label, cells in groups:
        axes.text(0, height, f" {printable(label)}", va="center", weight="bold")
        for algorithm, cell in cells:
            height += 1
            ticks[height] = printable(algorithm)
            _draw_bar(axes, height, cell, styles[algorithm].colour)
        height += _GROUP_GAP

    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(height - 0.7, -0.8), xlim=(0, 122), xticks=range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")

    alt = f"Bars of the accuracy, {subject}, as in the table above: {title}."
    return save_figure(canvas, title, name, alt)


def _draw_bar(axes: Any, height: float, cell: Cell, colour: str) -> None:
    """A bar of a cell's mean, with its standard error and the mean in figures behind it."""
    mean = cell.mean or 0.0
    error = cell.standard_error if cell.n > 1 else None
    axes.barh(
        height,
        mean,
        0.78,
        color=colour,
        edgecolor=INK,
        linewidth=0.6,
        xerr=error,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )

    end = mean + (error or 0.0)
    axes.text(end + 1.5, height, f"{mean:.1f}", va="center", fontsize=9)


@matplotlib.rc_context(RC_PARAMS)
def curves(
    title: str, name: str, rows: pd.DataFrame, panels: Panels, styles: Styles
) -> Figure | None:
    """A panel a column of ``frames.checkpoints``, a line an algorithm; None if all is empty."""
    lines_of = {column: dict(frames.over_trials(rows, column)) for column in panels}
    lines_of = {column: lines for column, lines in lines_of.items() if lines}
    algorithms = [name for name in styles if any(name in lines for lines in lines_of.values())]
    if not algorithms:
        return None

    canvas = new_canvas(0.8 + 1.75 * len(lines_of), algorithms)
    all_axes = canvas.subplots(len(lines_of), 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Any] = {}
    for axes, (column, lines) in zip(all_axes, lines_of.items()):
        heading, scale = panels[column]
        axes.set_title(heading)
        for algorithm in reversed(algorithms):  # the first algorithm lies on top
            if algorithm in lines:
                line = scale * lines[algorithm]
                handles[algorithm] = _draw_line(axes, line, styles[algorithm])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

    all_axes[-1].set_xlabel("training step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(panels[column][0] for column in lines_of)
    alt = f"Lines over training steps of {headings}: {title}, for {', '.join(algorithms)}."
    return save_figure(canvas, title, name, alt)


def _draw_line(axes: Any, line: pd.DataFrame, style: Style) -> Any:
    """A line of the means and a band of their errors; returns the handle for a legend."""
    low = line["mean"] - line["error"]
    high = line["mean"] + line["error"]
    axes.fill_between(line.index, low, high, color=style.colour, alpha=0.18, linewidth=0)

    (handle,) = axes.plot(
        line.index,
        line["mean"],
        color=style.colour,
        ms=5,
        lw=1.8,
        **style.mark,
        linestyle=style.dash,
        markevery=max(1, len(line) // _MARKERS_ON_LINE),
    )
    return handle


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
