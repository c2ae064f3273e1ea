"""The figures of a report, drawn from the cells of its tables: dots, lines, and scatter plots.

Draw them inside the context `figure_style`.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.escaping import printable
from domainbed_carft.jobs.algorithms import SHIPPED, Method
from domainbed_carft.jobs.job import Choice
from domainbed_carft.report.figure_data import IN_DOMAIN, OUT_OF_DOMAIN, ChoiceOutcome, Lines
from domainbed_carft.results.cells import PARTIAL, Cell, format_accuracy, mean_over_trials
from domainbed_carft.results.formats import escape_csv
from domainbed_carft.results.rows import JointRow
from domainbed_carft.styles import INK, PAPER, Style

ZERO_SHOT = "CLIPZeroShot"
MUTED = "#57606a"

Styles = Mapping[str, Style]
Limits = tuple[float, float]  # of an axis

# Name of a value -> the label of its axis
AXES = {
    OUT_OF_DOMAIN: "out-of-domain accuracy (%)",
    IN_DOMAIN: "in-domain accuracy, augmented images (%)",
    "validation": "validation accuracy (%)",
    "loss_kl": "KL to the original (nats)",
    "context_agreement": "same most likely context (%)",
    "in_distribution": "accuracy in distribution (%)",
    "mean_of_shifts": "mean accuracy of the shifts (%)",
}

# For rows that declare no style, in turn, and then combined by `_iterate_fallback_styles`
_FALLBACK_STYLES = (
    Style(0, "#57606a", "o", (0, (1, 1)), hollow=True),
    Style(0, "#0072B2", "s", (0, (3, 2)), hollow=True),
    Style(0, "#882255", "^", (0, (7, 1)), hollow=True),
    Style(0, "#117733", "D", (0, (4, 1, 1, 1)), hollow=True),
    Style(0, "#332288", "v", (0, (1, 2)), hollow=True),
    Style(0, "#7A5C00", "P", (0, (9, 2, 1, 2)), hollow=True),
    Style(0, "#AA4499", "X", (0, (5, 4)), hollow=True),
)

_WIDTH = 4.0  # inches; at 72 px per inch, one fits on a phone and three on a screen of 1,440 px
_DPI = 180  # of the PNG
_LEGEND_ROW = 0.2  # inches
_DOT_ROW = 0.22  # inches from one dot to the next
_KEY_SIZE = (0.5, 0.2)  # inches
_MAX_LETTERS_ALONG_AXIS = 40  # longer rows of names are rotated
# A legend has two columns if their longest names have no more letters together.
_MAX_LETTERS_IN_LEGEND_ROW = 38
_MAX_MARKERS_ON_LINE = 10
_LOGARITHMIC_RATIO = 8  # of the largest to the smallest value, for a logarithmic axis
_SPREAD_OF_TRIALS = 0.7  # share of the distance between two choices
_MEAN_SPAN = np.array([-0.35, 0.35])  # ends of the line at a choice's mean


# Common parts of the figures


def figure_style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the report's style."""
    return matplotlib.rc_context(fname=str(ASSETS / "report" / "figures.mplstyle"))


def get_styles(
    algorithms: Sequence[str], own_methods: Mapping[str, Method] = {}
) -> dict[str, Style]:
    """Return the styles of rows: an algorithm's own one, otherwise the next fallback style."""
    styles = {
        name: method.style
        for name, method in own_methods.items()
        if method.style and _can_draw(method.style)
    }
    styles |= {name: method.style for name, method in SHIPPED.items() if method.style}
    fallbacks = itertools.cycle(_iterate_fallback_styles())
    return {name: styles.get(name) or next(fallbacks) for name in algorithms}


def _iterate_fallback_styles() -> Iterator[Style]:
    """Yield the fallback styles, then their markers with the colours and dashes of others.

    All 49 combinations of a marker and a colour occur once, and so do those of a marker and a dash.
    """
    count = len(_FALLBACK_STYLES)
    for shift, place in itertools.product(range(count), range(count)):
        yield replace(
            _FALLBACK_STYLES[place],
            colour=_FALLBACK_STYLES[(place + shift) % count].colour,
            dash=_FALLBACK_STYLES[(place + 2 * shift) % count].dash,
        )


def _can_draw(style: Style) -> bool:
    """Return False for a style that matplotlib rejects, such as one in a damaged record."""
    try:
        draw_legend_keys({"": style})
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Figure:
    """A figure with the contents of its files."""

    title: str
    name: str  # stem of its file names
    alt: str  # description in words
    svg: str
    png: bytes
    csv: str  # the numbers in the figure

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return _data_uri(self.svg)

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content."""
        return {
            f"{self.name}.svg": self.svg.encode(),
            f"{self.name}.png": self.png,
            f"{self.name}.csv": self.csv.encode(),
        }


def new_canvas(height: float, legend: Sequence[str] = (), width: float = _WIDTH) -> Canvas:
    """Create an empty canvas with space for a legend below.

    Args:
        height: inches, without the legend.
        legend: names in the legend.
        width: inches.
    """
    legend_rows = math.ceil(len(legend) / _legend_columns(legend))
    return Canvas(figsize=(width, height + _LEGEND_ROW * legend_rows), layout="constrained")


def add_legend(canvas: Canvas, handles: Mapping[str, Any], **options: Any) -> None:
    """Add a legend below the axes for the handles, by their names."""
    canvas.legend(
        list(handles.values()),
        [printable(name) for name in handles],
        loc="outside lower center",
        ncols=_legend_columns([*handles]),
        **options,
    )


def _legend_columns(names: Sequence[str]) -> int:
    """Return 2 if the names of a legend fit side by side, otherwise 1."""
    half = (len(names) + 1) // 2  # matplotlib fills the first column first
    first_width = max(map(len, names[:half]), default=0)
    second_width = max(map(len, names[half:]), default=0)
    return 2 if first_width + second_width <= _MAX_LETTERS_IN_LEGEND_ROW else 1


def padded_limits(values: Iterable[float]) -> Limits:
    """Return limits around one or more values, at least 1 apart, with a margin."""
    ordered = sorted(values)
    span = ordered[-1] - ordered[0]
    margin = max(0.06 * span, (1 - span) / 2)
    return ordered[0] - margin, ordered[-1] + margin


def error_limits(cells: Iterable[Cell]) -> Limits:
    """Return limits for the means of one or more cells with their errors."""
    ends = ((cell.mean, cell.standard_error or 0) for cell in cells)
    return padded_limits(
        mean + sign * error for mean, error in ends if mean is not None for sign in (-1, 1)
    )


def save_figure(
    canvas: Canvas,
    title: str,
    name: str,
    alt: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
) -> Figure:
    """Save the canvas as SVG and PNG, without dates and versions, and its numbers as CSV."""
    raster = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing glyphs and long names
        canvas.draw_without_rendering()
        canvas.set_layout_engine(None)  # otherwise the layout is computed again for each file
        svg = _render_svg(canvas)
        canvas.savefig(raster, format="png", dpi=_DPI, metadata={"Software": None})
    return Figure(title, name, alt, svg, raster.getvalue(), write_csv(header, rows))


def _render_svg(canvas: Canvas) -> str:
    """Render the canvas as SVG, without the document type, which contains a URL."""
    vector = io.StringIO()
    canvas.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    svg = vector.getvalue()
    return svg[svg.index("<svg") :]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write CSV with six significant digits and escaped names; None and nan become empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(escape_csv, header))
    writer.writerows([_csv_text(value) for value in row] for row in rows)
    return file.getvalue()


def _csv_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value) if isinstance(value, int) else str(escape_csv(str(value)))


def draw_legend_keys(styles: Styles) -> dict[str, str]:
    """Return algorithm -> transparent image of its line and marker, as a data URI."""
    keys = {}
    for algorithm, style in styles.items():
        canvas = Canvas(figsize=_KEY_SIZE)
        canvas.patch.set_visible(False)
        line = _legend_line(style)
        line.set_data([0.02, 0.5, 0.98], [0.5, 0.5, 0.5])
        line.set_markevery([1])
        canvas.add_artist(line)
        keys[algorithm] = _data_uri(_render_svg(canvas))
    return keys


def draw_legend(styles: Styles, name: str) -> Figure:
    """Draw the legend of the figures without a legend, for use in a paper."""
    canvas = new_canvas(0.1, [*styles])
    add_legend(canvas, {algorithm: _legend_line(style) for algorithm, style in styles.items()})
    alt = f"Lines and markers of {', '.join(styles)}."
    rows = [(algorithm, style.colour, style.marker) for algorithm, style in styles.items()]
    return save_figure(canvas, "Legend", name, alt, ["algorithm", "colour", "marker"], rows)


def _legend_line(style: Style) -> Line2D:
    dash: Any = style.dash  # matplotlib's type lists the names
    return Line2D([], [], color=style.colour, lw=1.8, ms=6, linestyle=dash, **style.mark)


def _name_ticks(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Label places along the horizontal axis, with rotated names if there is no space."""
    n_letters = sum(len(name) + 1 for name in names)
    printed = [printable(name) for name in names]
    axes.set_xticks(places, printed, rotation=90 if n_letters > _MAX_LETTERS_ALONG_AXIS else 0)


# Dots: the accuracies of one environment


def draw_dots(
    title: str, name: str, cells: Mapping[str, Cell], styles: Styles, limits: Limits
) -> Figure:
    """Draw a dot with error bars for the accuracy of each algorithm, from top to bottom.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        cells: algorithm -> its cell, with a mean.
        styles: algorithm -> style.
        limits: limits of the axis.
    """
    canvas = new_canvas(0.7 + _DOT_ROW * len(cells))
    axes = canvas.subplots()
    means = {row: cell.mean for row, cell in cells.items() if cell.mean is not None}
    for place, (algorithm, mean) in enumerate(means.items()):
        cell = cells[algorithm]
        style = styles[algorithm]
        if algorithm == ZERO_SHOT:
            axes.axvline(mean, color=style.colour, lw=1.2, ls=(0, (4, 2)))
        axes.errorbar(
            mean,
            place,
            xerr=cell.standard_error,
            ms=6.8,
            ecolor=style.colour,
            elinewidth=1.4,
            **style.mark,
        )
        text = format_accuracy(mean, cell.standard_error)
        text += "" if cell.is_complete else PARTIAL
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)

    axes.set_yticks(range(len(cells)), [printable(algorithm) for algorithm in cells])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(cells) - 0.4, -0.6), xlim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")

    alt = f"Dots of the accuracy, {title}, same as in the table, for {len(cells)} algorithms."
    header = ["algorithm", "accuracy", "error", "n", "incomplete"]
    rows = [
        (algorithm, cell.mean, cell.standard_error, cell.n, not cell.is_complete)
        for algorithm, cell in cells.items()
    ]
    return save_figure(canvas, title, name, alt, header, rows)


# Lines: accuracy over steps, or over a hyperparameter


def draw_curves(
    title: str,
    name: str,
    panels: Mapping[str, Lines],
    styles: Styles,
    *,
    over: str = "training step",
    ticks: Mapping[float, str] = {},
    limits: Mapping[str, Limits] = {},
    has_legend: bool = False,
) -> Figure:
    """Draw one panel per value, with a line and an error band for each algorithm.

    An algorithm with a single step, such as zero-shot CLIP, becomes a horizontal line.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        panels: name of a value -> its lines.
        styles: algorithm -> style.
        over: label of the horizontal axis.
        ticks: place on the horizontal axis -> its label; integers by default.
        limits: name of a value -> limits shared with other figures.
        has_legend: add a legend to the figure, for lines that are not in the page's legend.
    """
    drawn = {algorithm for lines in panels.values() for algorithm in lines}
    algorithms = [algorithm for algorithm in styles if algorithm in drawn]

    canvas = new_canvas(0.8 + 1.75 * len(panels), algorithms if has_legend else ())
    all_axes = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles = {}
    for axes, (panel, lines) in zip(all_axes, panels.items()):
        axes.set_title(AXES[panel])
        for algorithm in reversed(algorithms):  # the first algorithm is drawn on top
            if algorithm in lines:
                handles[algorithm] = _draw_line(axes, lines[algorithm], styles[algorithm])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim(limits.get(panel))

    axes = all_axes[-1]
    axes.set_xlabel(printable(over))
    if ticks and 0 < _LOGARITHMIC_RATIO * min(ticks) <= max(ticks):
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if ticks:
        _name_ticks(axes, list(ticks), list(ticks.values()))
    if has_legend:
        add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(AXES[panel] for panel in panels)
    alt = f"Lines over {over} of {headings}: {title}, for {', '.join(algorithms)}."
    rows = [
        (AXES[panel], algorithm, place, cell.mean, cell.standard_error or 0)
        for panel, lines in panels.items()
        for algorithm, line in lines.items()
        for place, cell in line.items()
    ]
    header = ["panel", "algorithm", over, "mean", "error"]
    return save_figure(canvas, title, name, alt, header, rows)


def _draw_line(axes: Any, line: Mapping[float, Cell], style: Style) -> Any:
    """Draw the line of the means and its error band; return the handle for the legend."""
    means = np.array([cell.mean for cell in line.values()])
    errors = np.array([cell.standard_error or 0 for cell in line.values()])
    low, high = means - errors, means + errors
    if len(line) == 1:
        axes.axhspan(low[0], high[0], color=style.colour, alpha=0.12, linewidth=0)
        return axes.axhline(means[0], color=style.colour, lw=1.8, linestyle=style.dash)

    axes.fill_between(list(line), low, high, color=style.colour, alpha=0.18, linewidth=0)
    (handle,) = axes.plot(
        list(line),
        means,
        color=style.colour,
        ms=5,
        lw=1.8,
        **style.mark,
        linestyle=style.dash,
        markevery=max(1, len(line) // _MAX_MARKERS_ON_LINE),
    )
    return handle


def draw_hparam_curve(
    title: str,
    name: str,
    hparam: str,
    rows: Mapping[str, JointRow],
    cells: Mapping[str, Mapping[str, Cell]],
    own_methods: Mapping[str, Method] = {},
) -> Figure:
    """Draw accuracy over the values of a hyperparameter in which the rows differ.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        hparam: the hyperparameter.
        rows: name of a row -> its algorithm and values.
        cells: name of an accuracy -> name of a row -> its cell, with a mean.
        own_methods: the user's methods.
    """
    places = _place_values([row.values[hparam] for row in rows.values()])
    points = {
        name: (_line_name(row, hparam), places[str(row.values[hparam])])
        for name, row in rows.items()
    }
    panels: dict[str, dict[str, dict[float, Cell]]] = {}
    for panel, cell_by_row in cells.items():
        lines = panels.setdefault(panel, {})
        for row in sorted(cell_by_row, key=lambda row: points[row][1]):
            algorithm, place = points[row]
            lines.setdefault(algorithm, {})[place] = cell_by_row[row]

    names = dict.fromkeys(algorithm for algorithm, _ in points.values())
    styles = get_styles(list(names), own_methods)
    ticks = {place: text for text, place in places.items()}
    return draw_curves(title, name, panels, styles, over=hparam, ticks=ticks, has_legend=True)


def _place_values(values: Sequence[Any]) -> dict[str, float]:
    """Map the text of each value to the number itself, or to its index if one is no number."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return {str(value): float(value) for value in values}
    return {text: float(number) for number, text in enumerate(dict.fromkeys(map(str, values)))}


def _line_name(row: JointRow, hparam: str) -> str:
    """Return the algorithm, followed by its values of the other hyperparameters."""
    other_values = [f"{name} {value}" for name, value in row.values.items() if name != hparam]
    return f"{row.algorithm} ({', '.join(other_values)})" if other_values else row.algorithm


# Scatter plots: one accuracy against another


class Mark(NamedTuple):
    """A mark of an algorithm, at two accuracies in percent.

    Attributes:
        algorithm: name of the row.
        x, y: the accuracies.
        x_error, y_error: their errors; None if unknown.
        trial: trial seed of a single run.
    """

    algorithm: str
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None
    trial: int | None = None


def make_marks(in_domain: Mapping[str, Cell], out_of_domain: Mapping[str, Cell]) -> list[Mark]:
    """Return the marks of the rows that have both accuracies."""
    marks = []
    for row, x in in_domain.items():
        y = out_of_domain.get(row, Cell())
        if x.mean is not None and y.mean is not None:
            marks.append(Mark(row, x.mean, y.mean, x.standard_error, y.standard_error))
    return marks


def draw_robustness(
    title: str,
    name: str,
    marks: Sequence[Mark],
    styles: Styles,
    limits: tuple[Limits, Limits] | None = None,
) -> Figure:
    """Draw in-domain against out-of-domain accuracy.

    Of algorithms with equal in-domain accuracy, the higher one is more robust (Taori et al.,
    "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        marks: in-domain and out-of-domain accuracy of algorithms or runs.
        styles: algorithm -> style.
        limits: limits of both axes, shared with other figures.
    """
    canvas = new_canvas(3.2) if limits else new_canvas(3.4, width=4.6)
    axes = canvas.subplots()
    handles = draw_marks(axes, marks, styles, x=IN_DOMAIN, y=OUT_OF_DOMAIN)
    if limits:
        axes.set(xlim=limits[0], ylim=limits[1])

    alt = (
        "Marks of in-domain accuracy, measured on augmented images, against out-of-domain "
        f"accuracy: {title}, for {', '.join(handles)}."
    )
    header = ["algorithm", IN_DOMAIN, OUT_OF_DOMAIN]
    header += ["in_domain_error", "out_of_domain_error", "trial"]
    return save_figure(canvas, title, name, alt, header, marks)


def draw_marks(
    axes: Any, marks: Sequence[Mark], styles: Styles, *, x: str, y: str
) -> dict[str, Any]:
    """Draw marks with their errors; return algorithm -> handle for the legend.

    A single mark of zero-shot CLIP has a horizontal line for comparison.

    Args:
        axes: matplotlib axes.
        marks: the marks.
        styles: algorithm -> style.
        x: name of the value on the horizontal axis.
        y: name of the value on the vertical axis.
    """
    handles = {}
    for algorithm, style in reversed([*styles.items()]):  # the first algorithm is drawn on top
        rows = [mark for mark in marks if mark.algorithm == algorithm]
        if not rows:
            continue
        if algorithm == ZERO_SHOT and len(rows) == 1:
            axes.axhline(rows[0].y, color=style.colour, lw=1, ls=(0, (4, 2)), zorder=1)
        handles[algorithm] = axes.errorbar(
            [mark.x for mark in rows],
            [mark.y for mark in rows],
            xerr=[mark.x_error or 0 for mark in rows],
            yerr=[mark.y_error or 0 for mark in rows],
            ls="",
            ms=7,
            ecolor=style.colour,
            elinewidth=1.2,
            zorder=3,
            **style.mark,
        )

    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel=AXES[x], ylabel=AXES[y])
    return dict(reversed(handles.items()))


def draw_suite(
    title: str, name: str, points: Sequence[tuple[str, float | None, float, float]], styles: Styles
) -> Figure:
    """Draw accuracy in distribution against the mean over the shifts, as in WiSE-FT's paper.

    A straight line connects the zero-shot CLIP model with each run, and a curve connects the
    points of WiSE-FT if there are any.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        points: algorithm, alpha (None for a run itself), accuracy in distribution, and mean
            accuracy of the shifts.
        styles: algorithm -> style.
    """
    runs = [Mark(algorithm, x, y) for algorithm, alpha, x, y in points if alpha is None]
    canvas = new_canvas(3.4, list(dict.fromkeys(run.algorithm for run in runs)))
    axes = canvas.subplots()
    handles = draw_marks(axes, runs, styles, x="in_distribution", y="mean_of_shifts")
    add_legend(canvas, handles, handlelength=1.2)

    originals = [(run.x, run.y) for run in runs if run.algorithm == ZERO_SHOT]
    originals += [(x, y) for _, alpha, x, y in points if alpha == 0]
    for algorithm in handles:
        colour = styles[algorithm].colour
        curve = sorted(
            (alpha, x, y) for row, alpha, x, y in points if row == algorithm and alpha is not None
        )
        _plot_path(axes, [(x, y) for _, x, y in curve], color=colour, lw=1.4, marker=".", zorder=2)
        ends = [(run.x, run.y) for run in runs if run.algorithm == algorithm]
        if originals:
            path = [originals[0], *ends]
            _plot_path(axes, path, color=colour, lw=1, ls=(0, (1, 2)), zorder=1)

    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from zero-shot CLIP and the curves of WiSE-FT: {title}, for {', '.join(handles)}."
    )
    header = ["algorithm", "alpha", "in_distribution", "mean_of_shifts"]
    return save_figure(canvas, title, name, alt, header, points)


def _plot_path(axes: Any, path: Sequence[tuple[float, float]], **options: Any) -> None:
    axes.plot([x for x, _ in path], [y for _, y in path], ms=5, **options)


# A search: a dot for every choice of hyperparameters


def draw_choices(title: str, name: str, choices: Sequence[ChoiceOutcome], style: Style) -> Figure:
    """Draw the accuracies of all choices of one algorithm, with selected choices filled.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        choices: the choices of the algorithm.
        style: style of the algorithm.
    """
    ordered = sorted({entry.choice for entry in choices})
    axis_title, names = _choice_names(ordered)
    dots = {"selected": True, "not selected": False}
    canvas = new_canvas(4.4, [*dots, "mean"])
    all_axes = canvas.subplots(2, 1, sharex=True)

    # Next to each other, so that the dots of the trials do not overlap
    trials = sorted({entry.trial for entry in choices})
    offsets = dict(zip(trials, _SPREAD_OF_TRIALS * (np.arange(len(trials)) + 0.5) / len(trials)))
    for axes, value in zip(all_axes, (OUT_OF_DOMAIN, "validation")):
        axes.set_title(AXES[value])
        for is_selected in (False, True):  # selected choices are drawn on top
            drawn = [entry for entry in choices if entry.is_selected == is_selected]
            axes.plot(
                [
                    ordered.index(entry.choice) + offsets[entry.trial] - _SPREAD_OF_TRIALS / 2
                    for entry in drawn
                ],
                [100 * getattr(entry, value) for entry in drawn],
                zorder=3 + is_selected,
                **_choice_dot(style, is_selected),
            )
        for position, choice in enumerate(ordered):
            values = [
                (entry.trial, getattr(entry, value)) for entry in choices if entry.choice == choice
            ]
            mean = mean_over_trials(values).mean
            axes.plot(position + _MEAN_SPAN, [mean, mean], color=INK, lw=1.4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="x", visible=False)

    _name_ticks(all_axes[-1], range(len(names)), names)
    all_axes[-1].set(xlabel=printable(axis_title), xlim=(-0.6, len(names) - 0.4))
    handles = {label: Line2D([], [], **_choice_dot(style, dots[label])) for label in dots}
    handles["mean"] = Line2D([], [], color=INK, lw=1.4)
    add_legend(canvas, handles, handlelength=1.2)

    alt = (
        f"Dots of out-of-domain and validation accuracy for each choice of {axis_title}: {title}, "
        f"{len(names)} choices, {len(choices)} runs."
    )
    header = ["target", "trial", "choice", "validation", "out_of_domain", "selected"]
    return save_figure(canvas, title, name, alt, header, [entry[1:] for entry in choices])


def _choice_names(ordered: Sequence[Choice]) -> tuple[str, list[str]]:
    """Return the axis title and a short name for each choice.

    The names are the values of the only searched hyperparameter, or the seeds of random draws.
    """
    hparams = {name for choice in ordered for name in choice.searched_values}
    if not hparams:
        return "draw (hparams seed)", [str(choice.hparams_seed) for choice in ordered]
    if len(hparams) == 1 and not any(choice.hparams_seed for choice in ordered):
        (hparam,) = hparams
        # Jobs that are not in the manifest have no searched values.
        return hparam, [str(choice.searched_values.get(hparam, "default")) for choice in ordered]
    return "hyperparameters", [str(choice) for choice in ordered]


def _choice_dot(style: Style, is_selected: bool) -> dict[str, Any]:
    """Return the keywords of ``Axes.plot`` for a dot, filled if the choice was selected."""
    face = style.colour if is_selected else PAPER
    return {"ls": "", "marker": "o", "ms": 4.5, "mfc": face, "mec": style.colour, "mew": 0.9}
