"""Figures of bars and curves: reproducible bytes, the same style for an algorithm in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.ticker import MaxNLocator

from domainbed_carft.report import frames
from domainbed_carft.report.canvas import (
    RC_PARAMS,
    Figure,
    add_legend,
    name_places,
    new_canvas,
    save_figure,
)
from domainbed_carft.report.styles import INK, Style, Styles
from domainbed_carft.results.cells import DOMAINBED, Cell, ErrorKind
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


@dataclass(frozen=True)
class Axis:
    """What lines run over: the axis's title, whether it is logarithmic, and what is marked on it.

    ``marks``: place -> name; without any the places of whole numbers are chosen.
    """

    title: str
    is_logarithmic: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)


STEPS = Axis("training step")


@matplotlib.rc_context(RC_PARAMS)
def curves(
    title: str,
    name: str,
    rows: pd.DataFrame,
    panels: Panels,
    styles: Styles,
    over: Axis = STEPS,
    error: ErrorKind = DOMAINBED,
) -> Figure | None:
    """A panel a column of ``frames.checkpoints``, a line an algorithm; None if all is empty.

    ``over``: what the column ``step`` is; ``error``: what the bands are.
    """
    lines_of = {column: dict(frames.over_trials(rows, column, error)) for column in panels}
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

    all_axes[-1].set_xlabel(printable(over.title))
    _scale(all_axes[-1], over)
    add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(panels[column][0] for column in lines_of)
    alt = f"Lines over {over.title} of {headings}: {title}, for {', '.join(algorithms)}."
    return save_figure(canvas, title, name, alt)


def _scale(axes: Any, over: Axis) -> None:
    """Scale the horizontal axis, and mark its values."""
    if over.is_logarithmic:
        axes.set_xscale("log")
    axes.minorticks_off()

    if over.marks:
        name_places(axes, list(over.marks), list(over.marks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_line(axes: Any, line: pd.DataFrame, style: Style) -> Any:
    """A line of the means and a band of their errors; returns the handle for a legend."""
    low = line["mean"] - line["error"]
    high = line["mean"] + line["error"]
    axes.fill_between(line.index, low, high, color=style.colour, alpha=0.18, linewidth=0)

    if len(line) == 1:  # such as zero-shot CLIP: a lone mark would look like a defect
        axes.axhline(line["mean"].iloc[0], color=style.colour, lw=1.2, linestyle=style.dash)
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
