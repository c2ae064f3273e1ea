"""The plot of `carft wise-ft`: accuracy on the test environment against that on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

LINE, START, END = "#999999", "#0072B2", "#D55E00"  # of Okabe and Ito's palette


def draw(points: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A point an alpha, of rows as `wise_ft.summarise` makes them, in per cent."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    xs = [100 * point["in_domain"] for point in points]
    ys = [100 * point["out_of_domain"] for point in points]
    axes.plot(xs, ys, color=LINE, marker="o", markersize=5, zorder=1)
    ends = {0.0: ("s", START, "original CLIP (zero-shot)"), 1.0: ("D", END, "the run")}
    for point, x, y in zip(points, xs, ys):
        axes.annotate(
            f"{point['alpha']:g}", (x, y), textcoords="offset points", xytext=(6, 6), fontsize=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # readable over the line
        )  # fmt: skip
        if point["alpha"] in ends:
            mark, colour, label = ends[point["alpha"]]
            axes.scatter([x], [y], marker=mark, color=colour, s=60, label=label, zorder=2)
    axes.margins(0.1)
    axes.set_xlabel("in-domain accuracy (%): out-splits of the training environments")
    axes.set_ylabel("out-of-domain accuracy (%):\nin-split of the test environment")
    axes.set_title(f"{title}: weights (1 - α) original + α fine-tuned", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def save(figure: Figure, kind: str, path: Path) -> None:
    """Write the figure as ``kind``, png or svg; the same points give the same bytes of SVG."""
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(path, format=kind, dpi=150, metadata=metadata)
