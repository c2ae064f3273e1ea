"""Figures of dots and curves, without legends: the page has one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    padded,
    save_figure,
)
from domainbed_carft.report.styles import ZERO_SHOT, Style, Styles
from domainbed_carft.results.cells import DOMAINBED, Cell, ErrorKind, format_accuracy
from domainbed_carft.results.tables import Table
from domainbed_carft.text import printable

_ROW_HEIGHT = 0.22  # inches from one dot to the next
_MARKERS_ON_LINE = 10

# Of pairs of axes: a column of the frame -> its title, and what its values are multiplied by.
Panels = Mapping[str, tuple[str, int]]
Limits = Mapping[str, tuple[float, float]]  # a column -> the ends of its axis
ACCURACY: Panels = {
    "out_of_domain": ("out-of-domain accuracy (%)", 100),
    "in_domain": ("in-domain accuracy (%)", 100),
}
DRIFT: Panels = {
    "loss_kl": ("KL to the original (nats)", 1),
    "context_agreement": ("same most likely context (%)", 100),
}


def dots(table: Table, styles: Styles, name: Callable[..., str]) -> list[Figure]:
    """A figure for each environment: a dot an algorithm, in percent, with the error.

    All have the same axis, which begins and ends near the dots. ``name(dataset, part, ...)`` makes
    a figure's name.
    """
    groups = {}
    for number, label in enumerate(table.columns):
        group = [(row.algorithm, row.cells[number]) for row in table.rows]
        group = [(algorithm, cell) for algorithm, cell in group if cell.mean is not None]
        if group:
            groups[label] = group

    limits = _limits([cell for group in groups.values() for _, cell in group])
    return [
        _dots(label, name(table.dataset, "accuracy", label), group, limits, styles)
        for label, group in groups.items()
    ]


def dots_of_averages(table: Table, styles: Styles, name: Callable[..., str]) -> Figure | None:
    """A dot for the average of each algorithm, as in `dots`; None if none has one."""
    group = [(row.algorithm, Cell(row.average)) for row in table.rows if row.average is not None]
    if not group:
        return None
    title = "Average over environments"
    limits = _limits([cell for _, cell in group])
    return _dots(title, name(table.dataset, "accuracy", "average"), group, limits, styles)


def _limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """The ends of an axis that has all means, with their errors."""
    values = [(cell.mean or 0.0, cell.standard_error or 0.0) for cell in cells]
    if not values:
        return 0.0, 100.0
    low = min(mean - error for mean, error in values)
    high = max(mean + error for mean, error in values)
    return padded(low, high)


@matplotlib.rc_context(RC_PARAMS)
def _dots(
    title: str,
    name: str,
    group: Sequence[tuple[str, Cell]],
    limits: tuple[float, float],
    styles: Styles,
) -> Figure:
    """One figure; ``group``: (algorithm, cell with a mean) from top to bottom."""
    canvas = new_canvas(0.7 + _ROW_HEIGHT * len(group))
    axes = canvas.subplots()
    for place, (algorithm, cell) in enumerate(group):
        mean = cell.mean or 0.0
        if algorithm == ZERO_SHOT:
            axes.axvline(mean, color=styles[algorithm].colour, lw=1.2, ls=(0, (4, 2)))
        axes.errorbar(
            mean,
            place,
            xerr=cell.standard_error,
            ms=6.8,
            ecolor=styles[algorithm].colour,
            elinewidth=1.4,
            **styles[algorithm].mark,
        )
        text = format_accuracy(cell.mean, cell.standard_error)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)

    axes.set_yticks(range(len(group)), [printable(algorithm) for algorithm, _ in group])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(group) - 0.4, -0.6), xlim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")

    data = pd.DataFrame(
        [(algorithm, cell.mean, cell.standard_error, cell.n) for algorithm, cell in group],
        columns=["algorithm", "accuracy", "error", "n"],
    )
    alt = f"Dots of the accuracy, {title}, as in the table above, for {len(group)} algorithms."
    return save_figure(canvas, title, name, alt, data)


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
    limits: Limits | None = None,
    has_legend: bool = False,
) -> Figure | None:
    """A panel a column of ``frames.checkpoints``, a line an algorithm; None if all is empty.

    ``over``: what the column ``step`` is; ``error``: what the bands are; ``limits``: of vertical
    axes that several figures share; ``has_legend``: of its own, for lines that the page's legend
    lacks. An algorithm with one step, as zero-shot CLIP has, is a horizontal line.
    """
    lines_of = {column: dict(frames.over_trials(rows, column, error)) for column in panels}
    lines_of = {column: lines for column, lines in lines_of.items() if lines}
    algorithms = [name for name in styles if any(name in lines for lines in lines_of.values())]
    if not algorithms:
        return None

    canvas = new_canvas(0.8 + 1.75 * len(lines_of), algorithms if has_legend else ())
    all_axes = canvas.subplots(len(lines_of), 1, sharex=True, squeeze=False)[:, 0]
    drawn_lines = []
    handles = {}
    for axes, (column, lines) in zip(all_axes, lines_of.items()):
        heading, scale = panels[column]
        axes.set_title(heading)
        for algorithm in reversed(algorithms):  # the first algorithm lies on top
            if algorithm in lines:
                line = scale * lines[algorithm]
                handles[algorithm] = _draw_line(axes, line, styles[algorithm])
                drawn_lines.append(line.assign(panel=heading, algorithm=algorithm))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim((limits or {}).get(column))

    all_axes[-1].set_xlabel(printable(over.title))
    _scale(all_axes[-1], over)
    if has_legend:
        add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(panels[column][0] for column in lines_of)
    alt = f"Lines over {over.title} of {headings}: {title}, for {', '.join(algorithms)}."
    data = pd.concat(reversed(drawn_lines)).rename_axis(over.title).reset_index()
    columns = ["panel", "algorithm", over.title, "mean", "error"]
    return save_figure(canvas, title, name, alt, data[columns])


def shared_limits(
    frames_of_rows: Iterable[pd.DataFrame], panels: Panels, error: ErrorKind = DOMAINBED
) -> Limits:
    """The limits of the vertical axes that hold the lines of all figures, and their bands."""
    limits = {}
    for column, (_, scale) in panels.items():
        lines = [
            scale * line
            for rows in frames_of_rows
            for _, line in frames.over_trials(rows, column, error)
        ]
        if lines:
            low = min((line["mean"] - line["error"]).min() for line in lines)
            high = max((line["mean"] + line["error"]).max() for line in lines)
            limits[column] = padded(low, high)
    return limits


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
    """A line of the means and a band of their errors; of a single mean a horizontal line.

    Returns what stands for it in a legend.
    """
    low = line["mean"] - line["error"]
    high = line["mean"] + line["error"]
    if len(line) == 1:
        axes.axhspan(low.iloc[0], high.iloc[0], color=style.colour, alpha=0.12, linewidth=0)
        mean = line["mean"].iloc[0]
        return axes.axhline(mean, color=style.colour, lw=1.8, linestyle=style.dash)

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
