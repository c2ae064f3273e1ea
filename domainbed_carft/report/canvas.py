"""What all figures share: their style, size, legend, and files with reproducible bytes."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure as Canvas

from domainbed_carft.report.styles import INK, PAPER
from domainbed_carft.text import printable

MUTED = "#57606a"
GRID = "#d8dee4"

_WIDTH = 4.0  # inches: at 72 px an inch it fits a phone, and a page of 1,440 px has three
_DPI = 180  # of the PNG
_LEGEND_ROW = 0.2  # inches
_LETTERS_ALONG_AXIS = 40  # of names that have more together, each is upright
# A legend has two columns if the longest names of both have no more letters than this.
_LETTERS_IN_LEGEND_ROW = 38

# Text stays text: any browser and drawing program finds its letters. The salt makes names in the
# file the same each time.
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "carft report",
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 9),
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor"], INK),
    **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], MUTED),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor", "savefig.facecolor"], PAPER),
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
}


class Figure(NamedTuple):
    """A figure: its title, the stem of its files' names, what it shows in words, and the files.

    ``csv``: the numbers that are drawn.
    """

    title: str
    name: str
    alt: str
    svg: str
    png: bytes
    csv: str = ""

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def _legend_columns(names: Sequence[str]) -> int:
    """Two if the names of a legend fit side by side. It is filled column after column."""
    half = (len(names) + 1) // 2
    first_width = max(map(len, names[:half]), default=0)
    second_width = max(map(len, names[half:]), default=0)
    return 2 if first_width + second_width <= _LETTERS_IN_LEGEND_ROW else 1


def new_canvas(height: float, legend: Sequence[str] = (), width: float = _WIDTH) -> Canvas:
    """An empty canvas with room for a legend below.

    ``height`` and ``width``: in inches, without the legend; ``legend``: its names.
    """
    legend_rows = math.ceil(len(legend) / _legend_columns(legend))
    return Canvas(figsize=(width, height + _LEGEND_ROW * legend_rows), layout="constrained")


def padded(low: float, high: float, least: float = 1.0) -> tuple[float, float]:
    """Limits of an axis: a little more than from ``low`` to ``high``, and ``least`` apart."""
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def add_legend(canvas: Canvas, handles: Mapping[str, Any], **options: Any) -> None:
    """Add a legend below the axes; ``handles``: name -> what was drawn for it."""
    canvas.legend(
        list(handles.values()),
        [printable(name) for name in handles],
        loc="outside lower center",
        ncols=_legend_columns([*handles]),
        **options,
    )


def name_places(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Mark places along the horizontal axis by names, upright if there is no room."""
    is_crowded = sum(len(name) + 1 for name in names) > _LETTERS_ALONG_AXIS
    printed = [printable(name) for name in names]
    axes.set_xticks(places, printed, rotation=90 if is_crowded else 0)


def save_figure(canvas: Canvas, title: str, name: str, alt: str, data: pd.DataFrame) -> Figure:
    """The canvas as SVG and PNG, without dates and versions of programs, and ``data`` as CSV."""
    vector = io.StringIO()
    raster = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks, and of long names
        canvas.draw_without_rendering()
        canvas.set_layout_engine(None)  # already laid out; else this is redone for each file
        canvas.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(raster, format="png", dpi=_DPI, metadata={"Software": None})

    # Without the document type, whose address would look like one to fetch.
    svg = vector.getvalue()
    svg = svg[svg.index("<svg") :]
    return Figure(title, name, alt, svg, raster.getvalue(), data_as_csv(data))


def data_as_csv(data: pd.DataFrame) -> str:
    """The rows of a frame as CSV, numbers with six digits that count, names safe to print."""
    texts = data.select_dtypes(exclude="number").columns
    printed = data.assign(**{name: data[name].map(str).map(printable) for name in texts})
    return str(printed.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
