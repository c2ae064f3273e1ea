"""In-domain against out-of-domain accuracy, a mark a run: where robustness is seen.

Runs that lie higher at the same place from left to right are the more robust ones (Taori et al.,
"Measuring Robustness to Natural Distribution Shifts in Image Classification", 2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from domainbed_carft.report.figures import drawn, style
from domainbed_carft.text import shown


def draw(
    name: str, what: str, rows: pd.DataFrame, looks: Mapping[str, style.Look]
) -> drawn.Drawn | None:
    """Small pale marks are choices of hyperparameters that were not selected, the others were.

    ``rows``: ``in_domain``, ``out_of_domain``, ``algorithm`` and, where there are choices,
    ``selected``. None where there is nothing to draw.
    """
    rows = rows.dropna(subset=["in_domain", "out_of_domain"])
    if rows.empty:
        return None
    counts = rows["algorithm"] if "selected" not in rows else rows[rows["selected"]]["algorithm"]
    present = [algorithm for algorithm in looks if algorithm in set(counts)]

    def onto(figure: Figure) -> None:
        axes = figure.subplots()
        handles = [_marks(axes, rows[rows["algorithm"] == a], looks[a]) for a in present]
        _frame(axes)
        figure.legend(
            handles, [shown(algorithm) for algorithm in present], loc="outside lower center",
            ncols=2, handlelength=1.2,
        )  # fmt: skip

    height = 3.4 + 0.2 * ((len(present) + 1) // 2)
    return drawn.draw(name, _alt(what, rows, present), height, onto)


def _marks(axes: Axes, rows: pd.DataFrame, look: style.Look) -> PathCollection:
    """Those of one algorithm; the selected ones are returned."""
    if "selected" in rows:
        passed = rows[~rows["selected"]]
        axes.scatter(
            100 * passed["in_domain"], 100 * passed["out_of_domain"], s=14, c=look.colour,
            marker=look.marker, alpha=0.3, linewidths=0, zorder=2,
        )  # fmt: skip
        rows = rows[rows["selected"]]
    return axes.scatter(
        100 * rows["in_domain"], 100 * rows["out_of_domain"], s=46, c=look.colour,
        marker=look.marker, edgecolors=style.INK, linewidths=0.8, zorder=3,
    )  # fmt: skip


def _frame(axes: Axes) -> None:
    """As far as the marks reach, with the line of equal accuracies where it comes through."""
    axes.margins(0.08)
    x, y = axes.get_xlim(), axes.get_ylim()
    axes.plot([0, 100], [0, 100], color=style.MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlim=x, ylim=y, xlabel="in-domain accuracy (%)", ylabel="out-of-domain accuracy (%)")


def _alt(what: str, rows: pd.DataFrame, algorithms: list[str]) -> str:
    counted = rows[rows["selected"]] if "selected" in rows else rows
    told = []
    for algorithm in algorithms:
        mine = 100 * counted.loc[counted["algorithm"] == algorithm, ["in_domain", "out_of_domain"]]
        told.append(
            f"{algorithm}: {mine['in_domain'].mean():.1f} in, {mine['out_of_domain'].mean():.1f} "
            f"out, {len(mine)} mark{'s' * (len(mine) != 1)}"
        )
    return (
        f"Marks of in-domain (left to right) against out-of-domain accuracy (upwards), {what}. "
        f"Means in percent: {'; '.join(told)}."
    )
