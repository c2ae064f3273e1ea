"""Figures: bars, curves and marks; reproducible bytes, the same look for an algorithm in all."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from domainbed_carft.report import frames
from domainbed_carft.report.looks import INK, PAPER, Looks
from domainbed_carft.results.tables import Cell, Table
from domainbed_carft.text import shown

MUTED, GRID = "#57606a", "#d8dee4"

_WIDTH = 4.0  # inches: at 72 px an inch it fits a phone, and a page of 1,440 px has three
_DPI = 180  # of the PNG
_ROW = 0.2  # inches a bar
_MANY = 6  # algorithms, above which each environment has bars of its own: a page prints 9 inches
_TWO_COLUMNS = 38  # letters of a name in each column of a legend that the width has room for

# Text stays text: any browser and drawing program finds its letters. The salt makes names in the
# file the same each time.
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "carft report",
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif", "font.size": 9.5, "axes.labelsize": 9.5, "axes.titlesize": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 9),
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor"], INK),
    **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], MUTED),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor", "savefig.facecolor"], PAPER),
    "axes.titlelocation": "left", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.handlelength": 2.8, "legend.columnspacing": 1.2,
}  # fmt: skip

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


class Figure(NamedTuple):
    """A figure: its title, the stem of its files' names, what it shows in words, and the files."""

    title: str
    name: str
    alt: str
    svg: str
    png: bytes

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def bars(table: Table, looks: Looks, name: Callable[..., str]) -> list[Figure]:
    """A group of bars an environment, and one of their averages, accuracies in percent.

    ``name(dataset, part, ...)`` makes a figure's name. Of many algorithms each group is a figure.
    """
    groups = []
    for place, label in enumerate([*table.columns, "average"]):
        cells = [[*row.cells, Cell(row.average)][place] for row in table.rows]
        drawn = [
            (row.algorithm, cell) for row, cell in zip(table.rows, cells) if cell.mean is not None
        ]
        groups += [(label, drawn)] if drawn else []
    dataset = table.dataset
    if groups and len(table.rows) <= _MANY:
        return [_bars(dataset, name(dataset, "accuracy"), "by environment", groups, looks)]
    return [
        _bars(f"{dataset}, {one[0]}", name(dataset, "accuracy", one[0]), one[0], [one], looks)
        for one in groups
    ]


@matplotlib.rc_context(_STYLE)
def _bars(title: str, name: str, what: str, groups: Sequence[Any], looks: Looks) -> Figure:
    canvas = _canvas(0.75 + _ROW * sum(len(cells) + 1.6 for _, cells in groups))
    axes = canvas.subplots()
    height, names = 0.0, {}
    for label, cells in groups:
        axes.text(0, height, f" {shown(label)}", va="center", weight="bold")
        for algorithm, cell in cells:
            height += 1
            names[height] = shown(algorithm)
            error = cell.standard_error if cell.n > 1 else None
            axes.barh(
                height, cell.mean, 0.78, color=looks[algorithm].colour, edgecolor=INK,
                linewidth=0.6, xerr=error,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            end = cell.mean + (error or 0.0)
            axes.text(end + 1.5, height, f"{cell.mean:.1f}", va="center", fontsize=9)
        height += 1.6
    axes.set_yticks(list(names), list(names.values()))
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(height - 0.7, -0.8), xlim=(0, 122), xticks=range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")
    alt = f"Bars of the accuracy, {what}, as in the table above: {title}."
    return _saved(canvas, title, name, alt)


@matplotlib.rc_context(_STYLE)
def curves(
    title: str, name: str, rows: pd.DataFrame, panels: Panels, looks: Looks
) -> Figure | None:
    """A panel a column of ``frames.checkpoints``, a line an algorithm; None if all is empty."""
    lines = {
        column: found for column in panels if (found := dict(frames.over_trials(rows, column)))
    }
    present = [name for name in looks if any(name in found for found in lines.values())]
    if not present:
        return None

    canvas = _canvas(0.8 + 1.75 * len(lines), present)
    every = canvas.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Any] = {}
    for axes, (column, found) in zip(every, lines.items()):
        heading, scale = panels[column]
        axes.set_title(heading)
        for one in present:
            if one in found:
                line, look = scale * found[one], looks[one]
                low, high = line["mean"] - line["error"], line["mean"] + line["error"]
                axes.fill_between(line.index, low, high, color=look.colour, alpha=0.18, linewidth=0)
                (handles[one],) = axes.plot(
                    line.index, line["mean"], color=look.colour, ms=5, lw=1.8, **look.mark,
                    linestyle=look.dash, markevery=max(1, len(line) // 10),
                )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    every[-1].set_xlabel("training step")
    every[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _legend(canvas, {one: handles[one] for one in present})

    drawn = " and ".join(panels[column][0] for column in lines)
    alt = f"Lines over training steps of {drawn}: {title}, for {', '.join(present)}."
    return _saved(canvas, title, name, alt)


@matplotlib.rc_context(_STYLE)
def marks(title: str, name: str, rows: pd.DataFrame, looks: Looks) -> Figure | None:
    """In-domain against out-of-domain accuracy, one mark per run, which shows robustness.

    Runs that lie higher at the same place from left to right are the more robust ones (Taori et
    al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).
    ``rows``: the selected ones of ``frames.checkpoints``. None if there is nothing to draw.
    """
    rows = rows.dropna(subset=["in_domain", "out_of_domain"]).set_index("algorithm")
    places = {
        one: 100 * rows.loc[[one], ["in_domain", "out_of_domain"]].to_numpy().T
        for one in looks
        if one in rows.index
    }
    if not places:
        return None
    canvas, axes = _plane(places, looks, "in-domain accuracy (%)", "out-of-domain accuracy (%)")
    # As far as the marks reach, with the line of equal accuracies.
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    alt = f"Marks of in-domain against out-of-domain accuracy: {title}, for {', '.join(places)}."
    return _saved(canvas, title, name, alt)


@matplotlib.rc_context(_STYLE)
def suite(
    title: str, name: str, points: Sequence[tuple[str, float | None, float, float]], looks: Looks
) -> Figure | None:
    """Accuracy in distribution against the mean of the shifts, as in WiSE-FT's paper.

    ``points``: algorithm, alpha or None, and both in percent. From the zero-shot CLIP a straight
    line leads to each run, and WiSE-FT's curve if there are its points. None without points.
    """
    ends = {algorithm: ([x], [y]) for algorithm, alpha, x, y in points if alpha is None}
    places = {algorithm: ends[algorithm] for algorithm in looks if algorithm in ends}
    if not places:
        return None
    axis = "accuracy in distribution (%)", "mean accuracy of the shifts (%)"
    canvas, axes = _plane(places, looks, *axis)
    originals = [([x], [y]) for _, alpha, x, y in points if alpha == 0]
    start = ends.get("CLIPZeroShot", originals[0] if originals else None)
    for one, (x, y) in places.items():
        colour = looks[one].colour
        curve = sorted(point[1:] for point in points if point[0] == one and point[1] is not None)
        _, *line = zip(*curve) if curve else ((), (), ())
        axes.plot(*line, color=colour, lw=1.4, marker=".", ms=5, zorder=2)
        if start and one != "CLIPZeroShot":
            axes.plot(start[0] + x, start[1] + y, color=colour, lw=1, ls=(0, (1, 2)), zorder=1)
    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from the zero-shot CLIP and WiSE-FT's curves: {title}, for {', '.join(places)}."
    )
    return _saved(canvas, title, name, alt)


def _plane(places: Mapping[str, Any], looks: Looks, x: str, y: str) -> tuple[Canvas, Any]:
    """Axes called ``x`` and ``y``, with each algorithm's marks at its two rows of places."""
    canvas, handles = _canvas(3.4, [*places]), {}
    axes = canvas.subplots()
    for one, values in places.items():
        (handles[one],) = axes.plot(*values, ls="", ms=6.8, zorder=3, **looks[one].mark)
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel=x, ylabel=y)
    _legend(canvas, handles, handlelength=1.2)
    return canvas, axes


def _columns(names: Sequence[str]) -> int:
    """Of a legend: two if its names fit side by side. It is filled column after column."""
    half = (len(names) + 1) // 2
    letters = sum(max(map(len, part), default=0) for part in (names[:half], names[half:]))
    return 2 if letters <= _TWO_COLUMNS else 1


def _canvas(height: float, legend: Sequence[str] = ()) -> Canvas:
    """``height``: in inches, without the legend."""
    rows = -(-len(legend) // _columns(legend))
    return Canvas(figsize=(_WIDTH, height + 0.2 * rows), layout="constrained")


def _legend(canvas: Canvas, handles: Mapping[str, Any], **more: Any) -> None:
    names, columns = [shown(name) for name in handles], _columns([*handles])
    canvas.legend(list(handles.values()), names, loc="outside lower center", ncols=columns, **more)


def _saved(canvas: Canvas, title: str, name: str, alt: str) -> Figure:
    vector, raster = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks, and of long names
        canvas.draw_without_rendering()
        canvas.set_layout_engine(None)  # already laid out; else this is redone for each file
        canvas.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(raster, format="png", dpi=_DPI, metadata={"Software": None})
    svg = vector.getvalue()
    # Without the document type, whose address would look like one to fetch.
    return Figure(title, name, alt, svg[svg.index("<svg") :], raster.getvalue())
