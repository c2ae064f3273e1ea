"""The curve of WiSE-FT: accuracy out of distribution against accuracy in distribution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domainbed_carft import files

if TYPE_CHECKING:
    import matplotlib.figure

FILES = ("wise_ft.png", "wise_ft.svg")
ENDS = {0.0: " (original CLIP)", 1.0: " (the run)"}  # what the alphas at the ends stand for

LINE_COLOR = "#0072B2"
LABEL_OFFSET = 6  # points between an end of the curve and its label
LABEL_MARGIN = 0.15  # of the width and the height of the curve, around it

# Of the axes: in domain, out of domain.
SPLIT_LABELS = (
    "in-domain accuracy (%): out-splits of the training environments",
    "out-of-domain accuracy (%):\nin-split of the test environment",
)
SUITE_LABELS = ("accuracy (%) in distribution", "mean accuracy (%) of the shifts")


class CurvePoint(NamedTuple):
    """An alpha and its two accuracies, as shares of 1."""

    alpha: float
    in_domain: float
    out_of_domain: float


def save(folder: Path, points: Sequence[CurvePoint], title: str, is_on_suite: bool) -> None:
    """Write the figure into the folder, as FILES; the same points give the same bytes."""
    figure = curve_figure(points, title, is_on_suite)
    for name in FILES:
        kind = name.rpartition(".")[2]
        metadata = {"Date": None} if kind == "svg" else None
        draw = functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
        files.save(folder / name, draw)


def curve_figure(
    points: Sequence[CurvePoint], title: str, is_on_suite: bool
) -> matplotlib.figure.Figure:
    """The curve through the points of all alphas; its ends are labelled, below and above."""
    from matplotlib.figure import Figure

    in_domain, out_of_domain = SUITE_LABELS if is_on_suite else SPLIT_LABELS
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=in_domain, ylabel=out_of_domain)
    places = [(100 * point.in_domain, 100 * point.out_of_domain) for point in points]
    axes.plot(*zip(*places), color=LINE_COLOR, marker="o", markersize=5)
    axes.margins(LABEL_MARGIN)
    heading = f"{title}: (1 - α) original + α fine-tuned"
    axes.set_title(heading, fontsize=10, parse_math=False)

    # The first below its point, the last above: they do not meet, wherever the points are.
    ends = {0: ("top", -LABEL_OFFSET), len(points) - 1: ("bottom", LABEL_OFFSET)}
    for number, (alignment, offset) in ends.items():
        alpha = points[number].alpha
        axes.annotate(
            f"{alpha:g}{ENDS.get(alpha, '')}",
            places[number],
            textcoords="offset points",
            xytext=(0, offset),
            ha="center",
            va=alignment,
            fontsize=8,
        )
    return figure
