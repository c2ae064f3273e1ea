"""The curve of WiSE-FT: accuracy out of distribution against accuracy in distribution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed_carft import files

if TYPE_CHECKING:
    import matplotlib.figure

FILES = ("wise_ft.png", "wise_ft.svg")
ENDS = {0.0: " (original CLIP)", 1.0: " (the run)"}  # what the alphas at the ends stand for

LINE_COLOR = "#0072B2"
LABEL_OFFSET = 6  # points between a point of the curve and its label
LABEL_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1))  # right or left, above or below


class AxisLabels(NamedTuple):
    """What the two axes show."""

    in_domain: str
    out_of_domain: str


SPLIT_LABELS = AxisLabels(
    "in-domain accuracy (%): out-splits of the training environments",
    "out-of-domain accuracy (%):\nin-split of the test environment",
)
SUITE_LABELS = AxisLabels("accuracy (%) in distribution", "mean accuracy (%) of the shifts")


class CurvePoint(NamedTuple):
    """An alpha and its two accuracies, as shares of 1."""

    alpha: float
    in_domain: float
    out_of_domain: float


def save(folder: Path, points: Sequence[CurvePoint], title: str, labels: AxisLabels) -> None:
    """Write the figure into the folder, as FILES; the same points give the same bytes."""
    figure = curve_figure(points, title, labels)
    for name in FILES:
        kind = name.rpartition(".")[2]
        metadata = {"Date": None} if kind == "svg" else None
        draw = functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
        files.save(folder / name, draw)


def curve_figure(
    points: Sequence[CurvePoint], title: str, labels: AxisLabels
) -> matplotlib.figure.Figure:
    """The curve through the points of all alphas, with a label each where there is room.

    The labels of both ends come first, and name them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=labels.in_domain, ylabel=labels.out_of_domain)
    places = [(100 * point.in_domain, 100 * point.out_of_domain) for point in points]
    axes.plot(*zip(*places), color=LINE_COLOR, marker="o", markersize=5)
    axes.margins(0.1)
    heading = f"{title}: (1 - α) original + α fine-tuned"
    axes.set_title(heading, fontsize=10, parse_math=False)

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels are placed in the axes as they are now

    # The ends first, so that they get the room.
    order = sorted(range(len(points)), key=lambda i: (points[i].alpha not in ENDS, i))
    label_boxes: list[Any] = []
    for i in order:
        label = f"{points[i].alpha:g}{ENDS.get(points[i].alpha, '')}"
        box = _write_label(axes, label, places[i], taken_boxes=label_boxes)
        if box:
            label_boxes.append(box)
    return figure


def _write_label(
    axes: Any, label: str, place: tuple[float, float], taken_boxes: Sequence[Any]
) -> Any:
    """Write a label beside a point, inside the axes and over none of the ``taken_boxes``.

    Of such places one beside the curve comes before one on it. Returns the label's box; None,
    without a label, where there is no room.
    """
    curve = axes.lines[0].get_path().transformed(axes.transData)
    candidates: list[Any] = []
    for right, up in LABEL_SIDES:
        text = axes.annotate(
            label,
            place,
            textcoords="offset points",
            xytext=(LABEL_OFFSET * right, LABEL_OFFSET * up),
            ha="left" if right > 0 else "right",
            va="bottom" if up > 0 else "top",
            fontsize=8,
        )
        box = text.get_window_extent()
        if _is_inside(box, axes.bbox) and not box.count_overlaps(taken_boxes):
            is_on_curve = curve.intersects_bbox(box, filled=False)
            candidates.append((is_on_curve, text, box))
        else:
            text.remove()

    candidates.sort(key=lambda candidate: candidate[0])
    for _, text, _ in candidates[1:]:
        text.remove()
    return candidates[0][2] if candidates else None


def _is_inside(box: Any, frame: Any) -> bool:
    is_inside_width = frame.x0 <= box.x0 and box.x1 <= frame.x1
    return bool(is_inside_width and frame.y0 <= box.y0 and box.y1 <= frame.y1)
