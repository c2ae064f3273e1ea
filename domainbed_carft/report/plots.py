"""The figures of a report, drawn from data frames: dots, lines, and scatter plots.

Draw them inside the context `figure_style`. Accuracies in the frames are in percent.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.jobs.algorithms import INK, PAPER, SHIPPED, Method, Style
from domainbed_carft.jobs.job import Choice
from domainbed_carft.report import frames
from domainbed_carft.results.cells import DOMAINBED, PARTIAL, ErrorKind, format_accuracy
from domainbed_carft.results.rows import JointRow
from domainbed_carft.text import printable

ZERO_SHOT = "CLIPZeroShot"
MUTED = "#57606a"

Styles = Mapping[str, Style]
# Column of a frame -> the limits of its axis
Limits = Mapping[str, tuple[float, float]]

# Column of a frame -> the label of its axis
AXES = {
    "out_of_domain": "out-of-domain accuracy (%)",
    "in_domain": "in-domain accuracy, augmented images (%)",
    "validation": "validation accuracy (%)",
    "loss_kl": "KL to the original (nats)",
    "context_agreement": "same most likely context (%)",
    "in_distribution": "accuracy in distribution (%)",
    "mean_of_shifts": "mean accuracy of the shifts (%)",
}

# For algorithms that declare no style, in turn
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
_SPREAD_OF_TRIALS = 0.5  # share of the distance between two choices
_MEAN_SPAN = np.array([-0.35, 0.35])  # ends of the line at a choice's mean


# Common parts of the figures


def figure_style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the report's style."""
    return matplotlib.rc_context(fname=str(ASSETS / "report" / "figures.mplstyle"))


def get_styles(
    algorithms: Sequence[str], own_methods: Mapping[str, Method] = {}
) -> dict[str, Style]:
    """Return algorithm -> its style, or the next fallback style if it has none."""
    styles = {
        name: method.style
        for name, method in own_methods.items()
        if method.style and _can_draw(method.style)
    }
    styles |= {name: method.style for name, method in SHIPPED.items() if method.style}
    fallbacks = itertools.cycle(_FALLBACK_STYLES)
    return {name: styles.get(name) or next(fallbacks) for name in algorithms}


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


def padded_limits(low: float, high: float, min_span: float = 1.0) -> tuple[float, float]:
    """Return limits with a margin around ``low`` and ``high``, at least ``min_span`` apart."""
    margin = max(0.06 * (high - low), (min_span - (high - low)) / 2)
    return low - margin, high + margin


def save_figure(canvas: Canvas, title: str, name: str, alt: str, data: pd.DataFrame) -> Figure:
    """Save the canvas as SVG and PNG, without dates and versions, and ``data`` as CSV."""
    raster = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing glyphs and long names
        canvas.draw_without_rendering()
        canvas.set_layout_engine(None)  # otherwise the layout is computed again for each file
        svg = _render_svg(canvas)
        canvas.savefig(raster, format="png", dpi=_DPI, metadata={"Software": None})
    return Figure(title, name, alt, svg, raster.getvalue(), data_as_csv(data))


def _render_svg(canvas: Canvas) -> str:
    """Render the canvas as SVG, without the document type, which contains a URL."""
    vector = io.StringIO()
    canvas.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    svg = vector.getvalue()
    return svg[svg.index("<svg") :]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def data_as_csv(data: pd.DataFrame) -> str:
    """Return the rows as CSV, with six significant digits and printable names."""
    texts = data.select_dtypes(exclude="number").columns
    printed = data.assign(**{name: data[name].map(str).map(printable) for name in texts})
    return str(printed.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


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
    rows = [(algorithm, style.colour, style.marker) for algorithm, style in styles.items()]
    data = pd.DataFrame(rows, columns=["algorithm", "colour", "marker"])
    return save_figure(canvas, "Legend", name, f"Lines and markers of {', '.join(styles)}.", data)


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
    title: str, name: str, cells: pd.DataFrame, styles: Styles, limits: tuple[float, float]
) -> Figure:
    """Draw a dot with error bars for the accuracy of each algorithm, from top to bottom.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        cells: rows of `frames.accuracies`, one per algorithm.
        styles: algorithm -> style.
        limits: limits of the axis, from `dot_limits`.
    """
    canvas = new_canvas(0.7 + _DOT_ROW * len(cells))
    axes = canvas.subplots()
    for place, cell in enumerate(cells.to_dict("records")):
        style = styles[cell["algorithm"]]
        accuracy = cell["accuracy"]
        if cell["algorithm"] == ZERO_SHOT:
            axes.axvline(accuracy, color=style.colour, lw=1.2, ls=(0, (4, 2)))
        axes.errorbar(
            accuracy,
            place,
            xerr=cell["error"],
            ms=6.8,
            ecolor=style.colour,
            elinewidth=1.4,
            **style.mark,
        )
        text = format_accuracy(accuracy, None if math.isnan(cell["error"]) else cell["error"])
        text += PARTIAL if cell["incomplete"] else ""
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)

    axes.set_yticks(range(len(cells)), [printable(name) for name in cells["algorithm"]])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(cells) - 0.4, -0.6), xlim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy (%)")

    alt = f"Dots of the accuracy, {title}, same as in the table, for {len(cells)} algorithms."
    columns = ["algorithm", "accuracy", "error", "n", "incomplete"]
    return save_figure(canvas, title, name, alt, cells[columns])


def dot_limits(cells: pd.DataFrame) -> tuple[float, float]:
    """Return limits for the accuracies of all ``cells`` with their errors."""
    errors = cells["error"].fillna(0)
    return padded_limits((cells["accuracy"] - errors).min(), (cells["accuracy"] + errors).max())


# Lines: accuracy over steps, or over a hyperparameter


@dataclass(frozen=True)
class HorizontalAxis:
    """The horizontal axis of a figure with lines."""

    title: str
    is_logarithmic: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)  # place -> label; integers by default


STEPS = HorizontalAxis("training step")


def draw_curves(
    title: str,
    name: str,
    lines: pd.DataFrame,
    styles: Styles,
    *,
    over: HorizontalAxis = STEPS,
    limits: Limits | None = None,
    has_legend: bool = False,
) -> Figure:
    """Draw one panel per value, with a line and an error band for each algorithm.

    An algorithm with a single step, such as zero-shot CLIP, becomes a horizontal line.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        lines: rows of `frames.average_over_trials_by_step`.
        styles: algorithm -> style.
        over: the axis of the column ``step``.
        limits: limits of vertical axes shared with other figures.
        has_legend: add a legend to the figure, for lines that are not in the page's legend.
    """
    panels = list(dict.fromkeys(lines["panel"]))
    algorithms = [algorithm for algorithm in styles if algorithm in set(lines["algorithm"])]

    canvas = new_canvas(0.8 + 1.75 * len(panels), algorithms if has_legend else ())
    all_axes = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles = {}
    for axes, panel in zip(all_axes, panels):
        axes.set_title(AXES[panel])
        panel_lines = frames.rows_by(lines[lines["panel"] == panel], "algorithm")
        for algorithm in reversed(algorithms):  # the first algorithm is drawn on top
            if algorithm in panel_lines:
                handles[algorithm] = _draw_line(axes, panel_lines[algorithm], styles[algorithm])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim((limits or {}).get(panel))

    all_axes[-1].set_xlabel(printable(over.title))
    _scale_axis(all_axes[-1], over)
    if has_legend:
        add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(AXES[panel] for panel in panels)
    alt = f"Lines over {over.title} of {headings}: {title}, for {', '.join(algorithms)}."
    data = lines.assign(panel=lines["panel"].map(AXES)).rename(columns={"step": over.title})
    return save_figure(canvas, title, name, alt, data)


def line_limits(lines: pd.DataFrame) -> Limits:
    """Return panel -> limits for all of its lines and error bands."""
    low = (lines["mean"] - lines["error"]).groupby(lines["panel"]).min()
    high = (lines["mean"] + lines["error"]).groupby(lines["panel"]).max()
    return {str(panel): padded_limits(low[panel], high[panel]) for panel in low.index}


def _draw_line(axes: Any, line: pd.DataFrame, style: Style) -> Any:
    """Draw the line of the means and its error band; return the handle for the legend."""
    low = line["mean"] - line["error"]
    high = line["mean"] + line["error"]
    if len(line) == 1:
        axes.axhspan(low.iloc[0], high.iloc[0], color=style.colour, alpha=0.12, linewidth=0)
        mean = line["mean"].iloc[0]
        return axes.axhline(mean, color=style.colour, lw=1.8, linestyle=style.dash)

    axes.fill_between(line["step"], low, high, color=style.colour, alpha=0.18, linewidth=0)
    (handle,) = axes.plot(
        line["step"],
        line["mean"],
        color=style.colour,
        ms=5,
        lw=1.8,
        **style.mark,
        linestyle=style.dash,
        markevery=max(1, len(line) // _MAX_MARKERS_ON_LINE),
    )
    return handle


def _scale_axis(axes: Any, over: HorizontalAxis) -> None:
    """Scale the horizontal axis, and set its ticks."""
    if over.is_logarithmic:
        axes.set_xscale("log")
    axes.minorticks_off()

    if over.ticks:
        _name_ticks(axes, list(over.ticks), list(over.ticks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def draw_hparam_curves(
    means: pd.DataFrame,
    rows: Mapping[str, JointRow],
    title: str,
    make_name: Callable[..., str],
    error: ErrorKind = DOMAINBED,
    own_methods: Mapping[str, Method] = {},
) -> list[Figure]:
    """Draw accuracy over the values of each hyperparameter in which the rows differ.

    Args:
        means: rows of `frames.average_over_targets`, with names of ``rows`` as algorithms.
        rows: name -> joint row.
        title: beginning of the figures' titles.
        make_name: function that makes a unique file name from words.
        error: kind of the error bands.
        own_methods: the user's methods.
    """
    drawn_rows = {name: row for name, row in rows.items() if name in set(means["algorithm"])}
    figures = []
    for hparam in dict.fromkeys(key for row in drawn_rows.values() for key in row.values):
        values = list(dict.fromkeys(_value(row, hparam) for row in drawn_rows.values()))
        if len(values) < 2:
            continue

        line_names = {name: _line_name(row, hparam) for name, row in drawn_rows.items()}
        places = {name: _place(_value(row, hparam), values) for name, row in drawn_rows.items()}
        placed = means[means["algorithm"].isin(list(drawn_rows))]
        placed = placed.assign(
            step=placed["algorithm"].map(places), algorithm=placed["algorithm"].map(line_names)
        )
        figure = draw_curves(
            f"{title}, over {hparam}",
            make_name(title, "over", hparam),
            frames.average_over_trials_by_step(placed, frames.ACCURACIES, error),
            get_styles(list(dict.fromkeys(line_names.values())), own_methods),
            over=_hparam_axis(hparam, values),
            has_legend=True,
        )
        figures.append(figure)
    return figures


def _value(row: JointRow, hparam: str) -> Any:
    """Return the row's value of a hyperparameter, a list or dict as hashable text."""
    value = row.values[hparam]
    return str(value) if isinstance(value, (list, dict)) else value


def _hparam_axis(hparam: str, values: Sequence[Any]) -> HorizontalAxis:
    """Make an axis with a tick at each value, logarithmic for a wide range of positive numbers."""
    ticks = {
        _place(value, values): f"{value:g}" if _is_number(value) else str(value) for value in values
    }
    if not all(map(_is_number, values)):
        return HorizontalAxis(hparam, ticks=ticks)
    is_logarithmic = 0 < _LOGARITHMIC_RATIO * min(values) <= max(values)
    return HorizontalAxis(hparam, is_logarithmic, ticks)


def _place(value: Any, values: Sequence[Any]) -> float:
    """Return a number itself, or the index of the value if some values are not numbers."""
    return float(value if all(map(_is_number, values)) else values.index(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _line_name(row: JointRow, hparam: str) -> str:
    """Return the algorithm, followed by its values of the other hyperparameters."""
    other_values = [f"{name} {value}" for name, value in row.values.items() if name != hparam]
    return f"{row.algorithm} ({', '.join(other_values)})" if other_values else row.algorithm


# Scatter plots: one accuracy against another


def draw_robustness(
    title: str, name: str, points: pd.DataFrame, styles: Styles, limits: Limits | None = None
) -> Figure:
    """Draw in-domain against out-of-domain accuracy, one mark per row.

    Of algorithms with equal in-domain accuracy, the higher one is more robust (Taori et al.,
    "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        points: rows of `frames.average_over_trials`, or one row per run without errors.
        styles: algorithm -> style.
        limits: limits of axes shared with other figures.
    """
    canvas = new_canvas(3.2) if limits else new_canvas(3.4, width=4.6)
    axes = canvas.subplots()
    handles = draw_marks(axes, points, styles, x="in_domain", y="out_of_domain")
    for column, limit in (limits or {}).items():
        axes.set(**{"xlim" if column == "in_domain" else "ylim": limit})

    alt = (
        "Marks of in-domain accuracy, measured on augmented images, against out-of-domain "
        f"accuracy: {title}, for {', '.join(handles)}."
    )
    return save_figure(canvas, title, name, alt, points)


def draw_marks(
    axes: Any, points: pd.DataFrame, styles: Styles, *, x: str, y: str
) -> dict[str, Any]:
    """Draw one mark per row, with error bars if there are errors; return the legend's handles.

    A single mark of zero-shot CLIP has a horizontal line for comparison.

    Args:
        axes: matplotlib axes.
        points: rows with the columns ``algorithm``, ``x`` and ``y``, and optionally their errors in
            columns with the suffix ``_error``.
        styles: algorithm -> style.
        x: column of the horizontal axis.
        y: column of the vertical axis.
    """
    rows_by_algorithm = frames.rows_by(points, "algorithm")
    algorithms = [algorithm for algorithm in styles if algorithm in rows_by_algorithm]
    handles = {}
    for algorithm in reversed(algorithms):  # the first algorithm is drawn on top
        style = styles[algorithm]
        rows = rows_by_algorithm[algorithm]
        if algorithm == ZERO_SHOT and len(rows) == 1:
            axes.axhline(rows[y].iloc[0], color=style.colour, lw=1, ls=(0, (4, 2)), zorder=1)
        handles[algorithm] = axes.errorbar(
            rows[x],
            rows[y],
            xerr=rows.get(f"{x}_error"),
            yerr=rows.get(f"{y}_error"),
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
    return {algorithm: handles[algorithm] for algorithm in algorithms}


def draw_suite(title: str, name: str, points: pd.DataFrame, styles: Styles) -> Figure:
    """Draw accuracy in distribution against the mean over the shifts, as in WiSE-FT's paper.

    A straight line connects the zero-shot CLIP model with each run, and a curve connects the
    points of WiSE-FT if there are any.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        points: rows with the columns ``algorithm``, ``alpha`` (nan for a run itself),
            ``in_distribution`` and ``mean_of_shifts``.
        styles: algorithm -> style.
    """
    runs = points[points["alpha"].isna()]
    canvas = new_canvas(3.4, list(dict.fromkeys(runs["algorithm"])))
    axes = canvas.subplots()
    handles = draw_marks(axes, runs, styles, x="in_distribution", y="mean_of_shifts")
    add_legend(canvas, handles, handlelength=1.2)

    originals = points[points["alpha"] == 0]
    zero_shot = pd.concat([runs[runs["algorithm"] == ZERO_SHOT], originals]).head(1)
    for algorithm in handles:
        colour = styles[algorithm].colour
        algorithm_points = points[points["algorithm"] == algorithm]
        curve = algorithm_points.dropna(subset="alpha").sort_values("alpha")
        axes.plot(*_coordinates(curve), color=colour, lw=1.4, marker=".", ms=5, zorder=2)

        run = algorithm_points[algorithm_points["alpha"].isna()]
        if len(zero_shot):
            ends = pd.concat([zero_shot, run])
            axes.plot(*_coordinates(ends), color=colour, lw=1, ls=(0, (1, 2)), zorder=1)

    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from zero-shot CLIP and the curves of WiSE-FT: {title}, for {', '.join(handles)}."
    )
    return save_figure(canvas, title, name, alt, points)


def _coordinates(points: pd.DataFrame) -> tuple[pd.Series[float], pd.Series[float]]:
    return points["in_distribution"], points["mean_of_shifts"]


# A search: a dot for every choice of hyperparameters


def draw_choices(title: str, name: str, rows: pd.DataFrame, style: Style) -> Figure:
    """Draw the accuracies of all choices of one algorithm, with selected choices filled.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        rows: rows of `frames.choices`.
        style: style of the algorithm.
    """
    ordered = sorted(set(rows["choice"]))
    axis_title, names = _choice_names(ordered)
    dots = {"selected": True, "not selected": False}
    canvas = new_canvas(4.4, [*dots, "mean"])
    all_axes = canvas.subplots(2, 1, sharex=True)

    positions = rows["choice"].map(ordered.index) + _offsets(rows["trial"])
    for axes, column in zip(all_axes, ("out_of_domain", "validation")):
        axes.set_title(AXES[column])
        percent = 100 * rows[column]
        for is_selected in (False, True):  # selected choices are drawn on top
            is_drawn = rows["selected"] == is_selected
            dot = _choice_dot(style, is_selected)
            axes.plot(positions[is_drawn], percent[is_drawn], zorder=3 + is_selected, **dot)
        for position, choice in enumerate(ordered):
            mean = percent[rows["choice"] == choice].mean()
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
        f"{len(names)} choices, {len(rows)} runs."
    )
    return save_figure(canvas, title, name, alt, rows.drop(columns=["dataset", "algorithm"]))


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


def _offsets(trials: pd.Series[int]) -> pd.Series[float]:
    """Return the horizontal offset of each trial's dots, which keeps them from overlapping."""
    numbers = sorted(set(trials))
    if len(numbers) == 1:
        return 0.0 * trials
    offsets = np.linspace(-_SPREAD_OF_TRIALS / 2, _SPREAD_OF_TRIALS / 2, len(numbers))
    return trials.map(dict(zip(numbers, offsets)))


def _choice_dot(style: Style, is_selected: bool) -> dict[str, Any]:
    """Return the keywords of ``Axes.plot`` for a dot, filled if the choice was selected."""
    face = style.colour if is_selected else PAPER
    return {"ls": "", "marker": "o", "ms": 4.5, "mfc": face, "mec": style.colour, "mew": 0.9}
