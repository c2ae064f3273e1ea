"""The figures of a report, each drawn from a data frame: dots, lines, and marks in a plane.

They are drawn inside `figure_style`. Accuracies in the frames are in percent.
"""

from __future__ import annotations

import base64
import io
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
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.algorithms import INK, PAPER, Style
from domainbed_carft.jobs.job import Choice
from domainbed_carft.report import frames
from domainbed_carft.results.columns import DOMAINBED, PARTIAL, ErrorKind, format_accuracy
from domainbed_carft.results.rows import JointRow
from domainbed_carft.text import printable

ZERO_SHOT = "CLIPZeroShot"
MUTED = "#57606a"

Styles = Mapping[str, Style]
# Column of a frame -> the ends of its axis
Limits = Mapping[str, tuple[float, float]]

# Column of a frame -> the title of its axis
AXES = {
    "out_of_domain": "out-of-domain accuracy (%)",
    "in_domain": "in-domain accuracy, augmented images (%)",
    "validation": "validation accuracy (%)",
    "loss_kl": "KL to the original (nats)",
    "context_agreement": "same most likely context (%)",
    "in_distribution": "accuracy in distribution (%)",
    "mean_of_shifts": "mean accuracy of the shifts (%)",
}

# Of algorithms that declare none, again in turn if there are more
_STYLES_OF_OTHERS = (
    Style(0, "#57606a", "o", (0, (1, 1)), hollow=True),
    Style(0, "#0072B2", "s", (0, (3, 2)), hollow=True),
    Style(0, "#882255", "^", (0, (7, 1)), hollow=True),
    Style(0, "#117733", "D", (0, (4, 1, 1, 1)), hollow=True),
    Style(0, "#332288", "v", (0, (1, 2)), hollow=True),
    Style(0, "#7A5C00", "P", (0, (9, 2, 1, 2)), hollow=True),
    Style(0, "#AA4499", "X", (0, (5, 4)), hollow=True),
)

_WIDTH = 4.0  # inches: at 72 px an inch it fits a phone, and a page of 1,440 px has three
_DPI = 180  # of the PNG
_LEGEND_ROW = 0.2  # inches
_DOT_ROW = 0.22  # inches from one dot to the next
_KEY_SIZE = (0.5, 0.2)  # inches
_LETTERS_ALONG_AXIS = 40  # of names that have more together, each is upright
# A legend has two columns if the longest names of both have no more letters than this.
_LETTERS_IN_LEGEND_ROW = 38
_MARKERS_ON_LINE = 10
_LOGARITHMIC_RATIO = 8  # of numbers from which on their axis is logarithmic
_SPREAD_OF_TRIALS = 0.5  # of the distance between two choices
_MEAN_SPAN = np.array([-0.35, 0.35])  # of the line at a choice's mean


# What all figures share


def figure_style() -> AbstractContextManager[None]:
    """A context in which matplotlib draws in the report's style."""
    return matplotlib.rc_context(fname=str(ASSETS / "report" / "figures.mplstyle"))


def get_styles(algorithms: Sequence[str]) -> dict[str, Style]:
    """Algorithm -> the style that it declares, else the next of the others' in the order given."""
    known = own_methods.known()
    styles = {}
    number = 0
    for name in algorithms:
        declaration = known.get(name)
        if declaration and declaration.style:
            styles[name] = declaration.style
        else:
            styles[name] = _STYLES_OF_OTHERS[number % len(_STYLES_OF_OTHERS)]
            number += 1
    return styles


@dataclass(frozen=True)
class Figure:
    """A figure: its title, the stem of its files' names, what it shows in words, and the files.

    ``csv``: the numbers that are drawn.
    """

    title: str
    name: str
    alt: str
    svg: str
    png: bytes
    csv: str

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return _data_uri(self.svg)

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content of the figure's files."""
        return {
            f"{self.name}.svg": self.svg.encode(),
            f"{self.name}.png": self.png,
            f"{self.name}.csv": self.csv.encode(),
        }


def new_canvas(height: float, legend: Sequence[str] = (), width: float = _WIDTH) -> Canvas:
    """An empty canvas with room for a legend below.

    ``height`` and ``width``: in inches, without the legend; ``legend``: its names.
    """
    legend_rows = math.ceil(len(legend) / _legend_columns(legend))
    return Canvas(figsize=(width, height + _LEGEND_ROW * legend_rows), layout="constrained")


def add_legend(canvas: Canvas, handles: Mapping[str, Any], **options: Any) -> None:
    """Add a legend below the axes; ``handles``: name -> what was drawn for it."""
    canvas.legend(
        list(handles.values()),
        [printable(name) for name in handles],
        loc="outside lower center",
        ncols=_legend_columns([*handles]),
        **options,
    )


def _legend_columns(names: Sequence[str]) -> int:
    """Two if the names of a legend fit side by side. It is filled column after column."""
    half = (len(names) + 1) // 2
    first_width = max(map(len, names[:half]), default=0)
    second_width = max(map(len, names[half:]), default=0)
    return 2 if first_width + second_width <= _LETTERS_IN_LEGEND_ROW else 1


def padded(low: float, high: float, least: float = 1.0) -> tuple[float, float]:
    """Limits of an axis: a little more than from ``low`` to ``high``, and ``least`` apart."""
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def save_figure(canvas: Canvas, title: str, name: str, alt: str, data: pd.DataFrame) -> Figure:
    """The canvas as SVG and PNG, without dates and versions of programs, and ``data`` as CSV."""
    raster = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks, and of long names
        canvas.draw_without_rendering()
        canvas.set_layout_engine(None)  # already laid out; else this is redone for each file
        svg = _render_svg(canvas)
        canvas.savefig(raster, format="png", dpi=_DPI, metadata={"Software": None})
    return Figure(title, name, alt, svg, raster.getvalue(), data_as_csv(data))


def _render_svg(canvas: Canvas) -> str:
    """The canvas as SVG, without the document type, whose address would look like one to fetch."""
    vector = io.StringIO()
    canvas.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    svg = vector.getvalue()
    return svg[svg.index("<svg") :]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def data_as_csv(data: pd.DataFrame) -> str:
    """The rows of a frame as CSV, numbers with six digits that count, names safe to print."""
    texts = data.select_dtypes(exclude="number").columns
    printed = data.assign(**{name: data[name].map(str).map(printable) for name in texts})
    return str(printed.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def legend_keys(styles: Styles) -> dict[str, str]:
    """Algorithm -> an image of its line and mark on no ground, as a data URI."""
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


def legend(styles: Styles, name: str) -> Figure:
    """The legend of the figures that have none, to put beside them elsewhere."""
    canvas = new_canvas(0.1, [*styles])
    add_legend(canvas, {algorithm: _legend_line(style) for algorithm, style in styles.items()})
    rows = [(algorithm, style.colour, style.marker) for algorithm, style in styles.items()]
    data = pd.DataFrame(rows, columns=["algorithm", "colour", "marker"])
    return save_figure(canvas, "Legend", name, f"Line and mark of {', '.join(styles)}.", data)


def _legend_line(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, lw=1.8, ms=6, linestyle=style.dash, **style.mark)


def _name_places(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Mark places along the horizontal axis by names, upright if there is no room."""
    is_crowded = sum(len(name) + 1 for name in names) > _LETTERS_ALONG_AXIS
    printed = [printable(name) for name in names]
    axes.set_xticks(places, printed, rotation=90 if is_crowded else 0)


# Dots: the accuracies of one environment


def dots(
    title: str, name: str, cells: pd.DataFrame, styles: Styles, limits: tuple[float, float]
) -> Figure:
    """A dot for the accuracy of each algorithm, from top to bottom, with its error.

    ``cells``: of `frames.accuracies`, a row an algorithm. ``limits``: of the axis, as `dot_limits`
    returns them.
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

    alt = f"Dots of the accuracy, {title}, as in the table above, for {len(cells)} algorithms."
    columns = ["algorithm", "accuracy", "error", "n", "incomplete"]
    return save_figure(canvas, title, name, alt, cells[columns])


def dot_limits(cells: pd.DataFrame) -> tuple[float, float]:
    """The ends of an axis that has the accuracies of all ``cells``, with their errors."""
    errors = cells["error"].fillna(0)
    return padded((cells["accuracy"] - errors).min(), (cells["accuracy"] + errors).max())


# Lines: accuracy over steps, or over a hyperparameter


@dataclass(frozen=True)
class HorizontalAxis:
    """What lines run over: the axis's title, whether it is logarithmic, and what is marked on it.

    ``marks``: place -> name; without any the places of whole numbers are chosen.
    """

    title: str
    is_logarithmic: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)


STEPS = HorizontalAxis("training step")


def curves(
    title: str,
    name: str,
    lines: pd.DataFrame,
    styles: Styles,
    *,
    over: HorizontalAxis = STEPS,
    limits: Limits | None = None,
    has_legend: bool = False,
) -> Figure:
    """A panel for each value that is drawn, with a line an algorithm and a band of its error.

    ``lines``: of `frames.average_over_trials_by_step`; ``over``: what its column ``step`` is. ``limits``: of
    vertical axes that several figures share. ``has_legend``: of its own, for lines that the page's
    legend lacks. An algorithm with one step, as zero-shot CLIP has, is a horizontal line.
    """
    panels = list(dict.fromkeys(lines["panel"]))
    algorithms = [algorithm for algorithm in styles if algorithm in set(lines["algorithm"])]

    canvas = new_canvas(0.8 + 1.75 * len(panels), algorithms if has_legend else ())
    all_axes = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles = {}
    for axes, panel in zip(all_axes, panels):
        axes.set_title(AXES[panel])
        of_panel = frames.rows_by(lines[lines["panel"] == panel], "algorithm")
        for algorithm in reversed(algorithms):  # the first algorithm lies on top
            if algorithm in of_panel:
                handles[algorithm] = _draw_line(axes, of_panel[algorithm], styles[algorithm])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim((limits or {}).get(panel))

    all_axes[-1].set_xlabel(printable(over.title))
    _scale(all_axes[-1], over)
    if has_legend:
        add_legend(canvas, {algorithm: handles[algorithm] for algorithm in algorithms})

    headings = " and ".join(AXES[panel] for panel in panels)
    alt = f"Lines over {over.title} of {headings}: {title}, for {', '.join(algorithms)}."
    data = lines.assign(panel=lines["panel"].map(AXES)).rename(columns={"step": over.title})
    return save_figure(canvas, title, name, alt, data)


def line_limits(lines: pd.DataFrame) -> Limits:
    """Panel -> the limits of the vertical axis that hold all of its lines, and their bands."""
    low = (lines["mean"] - lines["error"]).groupby(lines["panel"]).min()
    high = (lines["mean"] + lines["error"]).groupby(lines["panel"]).max()
    return {str(panel): padded(low[panel], high[panel]) for panel in low.index}


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

    axes.fill_between(line["step"], low, high, color=style.colour, alpha=0.18, linewidth=0)
    (handle,) = axes.plot(
        line["step"],
        line["mean"],
        color=style.colour,
        ms=5,
        lw=1.8,
        **style.mark,
        linestyle=style.dash,
        markevery=max(1, len(line) // _MARKERS_ON_LINE),
    )
    return handle


def _scale(axes: Any, over: HorizontalAxis) -> None:
    """Scale the horizontal axis, and mark its values."""
    if over.is_logarithmic:
        axes.set_xscale("log")
    axes.minorticks_off()

    if over.marks:
        _name_places(axes, list(over.marks), list(over.marks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def draw_hparam_curves(
    means: pd.DataFrame,
    rows: Mapping[str, JointRow],
    title: str,
    name: Callable[..., str],
    error: ErrorKind = DOMAINBED,
) -> list[Figure]:
    """A figure for each name that rows differ in: accuracy over its values, a line an algorithm.

    ``means``: of `frames.average_over_targets`, whose algorithms are names of ``rows``. ``name(word, ...)``
    makes a figure's name; ``error``: what the bands are.
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
        figure = curves(
            f"{title}, over {hparam}",
            name(title, "over", hparam),
            frames.average_over_trials_by_step(placed, frames.ACCURACIES, error),
            get_styles(list(dict.fromkeys(line_names.values()))),
            over=_hparam_axis(hparam, values),
            has_legend=True,
        )
        figures.append(figure)
    return figures


def _value(row: JointRow, hparam: str) -> Any:
    """The row's value of a name; a list as text, to be told from others."""
    value = row.values[hparam]
    return str(value) if isinstance(value, (list, dict)) else value


def _hparam_axis(hparam: str, values: Sequence[Any]) -> HorizontalAxis:
    """An axis with a mark at each value, logarithmic for positive numbers that span as much."""
    marks = {
        _place(value, values): f"{value:g}" if _is_number(value) else str(value) for value in values
    }
    is_numeric = all(map(_is_number, values))
    is_spread = is_numeric and 0 < _LOGARITHMIC_RATIO * min(values) <= max(values)
    return HorizontalAxis(hparam, is_logarithmic=is_spread, marks=marks)


def _place(value: Any, values: Sequence[Any]) -> float:
    """Numbers stand at their places; if any value is none, all stand side by side."""
    return float(value if all(map(_is_number, values)) else values.index(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _line_name(row: JointRow, hparam: str) -> str:
    """The algorithm, and the row's values of what else its rows differ in."""
    other_values = [f"{name} {value}" for name, value in row.values.items() if name != hparam]
    return f"{row.algorithm} ({', '.join(other_values)})" if other_values else row.algorithm


# Marks in a plane: one accuracy against another


def robustness(
    title: str, name: str, points: pd.DataFrame, styles: Styles, limits: Limits | None = None
) -> Figure:
    """In-domain against out-of-domain accuracy, a mark a row.

    Algorithms that lie higher at the same place from left to right are the more robust ones (Taori
    et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).
    ``points``: of `frames.average_over_trials`, or without errors a row for each run. ``limits``: of
    axes that several figures share.
    """
    canvas = new_canvas(3.2) if limits else new_canvas(3.4, width=4.6)
    axes = canvas.subplots()
    handles = draw_marks(axes, points, styles, x="in_domain", y="out_of_domain")
    for column, limit in (limits or {}).items():
        axes.set(**{"xlim" if column == "in_domain" else "ylim": limit})

    alt = (
        "Marks of in-domain against out-of-domain accuracy, of which the first is on augmented "
        f"images: {title}, for {', '.join(handles)}."
    )
    return save_figure(canvas, title, name, alt, points)


def draw_marks(
    axes: Any, points: pd.DataFrame, styles: Styles, *, x: str, y: str
) -> dict[str, Any]:
    """Draw a mark for each row of ``points``, and errors if there are any; returns the handles.

    ``x``, ``y``: its columns, beside which the errors have columns of their names and ``_error``. A
    line at the height of a single mark of zero-shot CLIP shows who is more accurate.
    """
    rows_of = frames.rows_by(points, "algorithm")
    algorithms = [algorithm for algorithm in styles if algorithm in rows_of]
    handles = {}
    for algorithm in reversed(algorithms):  # the first algorithm lies on top
        style = styles[algorithm]
        rows = rows_of[algorithm]
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


def suite(title: str, name: str, points: pd.DataFrame, styles: Styles) -> Figure:
    """Accuracy in distribution against the mean of the shifts, as in WiSE-FT's paper.

    ``points``: rows with the columns ``algorithm``, ``alpha`` (nan for a run itself),
    ``in_distribution`` and ``mean_of_shifts``. From the zero-shot CLIP a straight line leads to
    each run, and WiSE-FT's curve if there are its points.
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
        of_algorithm = points[points["algorithm"] == algorithm]
        curve = of_algorithm.dropna(subset="alpha").sort_values("alpha")
        axes.plot(*_coordinates(curve), color=colour, lw=1.4, marker=".", ms=5, zorder=2)

        run = of_algorithm[of_algorithm["alpha"].isna()]
        if len(zero_shot):
            ends = pd.concat([zero_shot, run])
            axes.plot(*_coordinates(ends), color=colour, lw=1, ls=(0, (1, 2)), zorder=1)

    alt = (
        "Marks of accuracy in distribution against the mean of the shifted test sets, with lines "
        f"from the zero-shot CLIP and WiSE-FT's curves: {title}, for {', '.join(handles)}."
    )
    return save_figure(canvas, title, name, alt, points)


def _coordinates(points: pd.DataFrame) -> tuple[pd.Series[float], pd.Series[float]]:
    return points["in_distribution"], points["mean_of_shifts"]


# A search: a dot for every choice of hyperparameters


def choices(title: str, name: str, rows: pd.DataFrame, style: Style) -> Figure:
    """The accuracies of all choices of one algorithm; what selection chose is filled.

    ``rows``: of `frames.choices`.
    """
    ordered = sorted(set(rows["choice"]))
    axis_title, names = _choice_names(ordered)
    dots = {"chosen": True, "not chosen": False}
    canvas = new_canvas(4.4, [*dots, "mean"])
    all_axes = canvas.subplots(2, 1, sharex=True)

    positions = rows["choice"].map(ordered.index) + _offsets(rows["trial"])
    for axes, column in zip(all_axes, ("out_of_domain", "validation")):
        axes.set_title(AXES[column])
        percent = 100 * rows[column]
        for is_chosen in (False, True):  # what was chosen lies on top
            is_drawn = rows["selected"] == is_chosen
            dot = _choice_dot(style, is_chosen)
            axes.plot(positions[is_drawn], percent[is_drawn], zorder=3 + is_chosen, **dot)
        for position, choice in enumerate(ordered):
            mean = percent[rows["choice"] == choice].mean()
            axes.plot(position + _MEAN_SPAN, [mean, mean], color=INK, lw=1.4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(axis="x", visible=False)

    _name_places(all_axes[-1], range(len(names)), names)
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
    """The title of an axis of choices, and the name of each on it.

    Of one searched hyperparameter the values alone, of random draws the seeds.
    """
    hparams = {name for choice in ordered for name in choice.searched_values}
    if not hparams:
        return "draw (hparams seed)", [str(choice.hparams_seed) for choice in ordered]
    if len(hparams) == 1 and not any(choice.hparams_seed for choice in ordered):
        (hparam,) = hparams
        # A job that the manifest does not list has none.
        return hparam, [str(choice.searched_values.get(hparam, "default")) for choice in ordered]
    return "hyperparameters", [str(choice) for choice in ordered]


def _offsets(trials: pd.Series[int]) -> pd.Series[float]:
    """How far each trial's dots stand from the middle, so that they do not hide each other."""
    numbers = sorted(set(trials))
    if len(numbers) == 1:
        return 0.0 * trials
    offsets = np.linspace(-_SPREAD_OF_TRIALS / 2, _SPREAD_OF_TRIALS / 2, len(numbers))
    return trials.map(dict(zip(numbers, offsets)))


def _choice_dot(style: Style, is_chosen: bool) -> dict[str, Any]:
    """Keywords for ``Axes.plot``: a dot that is filled if the choice was chosen."""
    face = style.colour if is_chosen else PAPER
    return {"ls": "", "marker": "o", "ms": 4.5, "mfc": face, "mec": style.colour, "mew": 0.9}
