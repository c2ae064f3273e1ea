"""Figures of the measurements of `carft evaluate`: reliability and flips."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from domainbed_carft.errors import CarftError
from domainbed_carft.escaping import printable
from domainbed_carft.report.plots import (
    MUTED,
    Figure,
    Styles,
    add_legend,
    new_canvas,
    save_figure,
)
from domainbed_carft.results.columns import load_run_metrics
from domainbed_carft.results.metrics import (
    Flips,
    ImageSetMetrics,
    ReliabilityBins,
    expected_calibration_error,
)
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.styles import INK, PAPER, Style

BEFORE_SCALING = "before scaling"
AT_TEMPERATURE = "at the fitted temperature"

# With more algorithms, each environment has its own figure, because a printed page has 9 inches.
MAX_BARS_IN_GROUP = 6

# A selected run and its metrics on its target
EvaluatedRun = tuple[SelectedRun, ImageSetMetrics]

_BAR_HEIGHT = 0.2  # inches from one bar to the next
_GROUP_GAP = 1.6  # bars between two groups, for the title of the second
_LENGTH_WITH_NUMBER = 1.5  # times the longest bar, with the number behind it
_FADED = 0.45  # of the bars of lost images


def read_target_metrics(selected_runs: Sequence[SelectedRun]) -> list[EvaluatedRun]:
    """Return the selected runs that were evaluated, and their metrics on the target, by target."""
    evaluations = []
    for selected in sorted(selected_runs, key=lambda selected: selected.target):
        with contextlib.suppress(CarftError):  # not evaluated
            metrics = load_run_metrics(selected).get_environment(selected.target)
            if metrics:
                evaluations.append((selected, metrics))
    return evaluations


def draw_reliability(
    title: str, name: str, metrics: Sequence[ImageSetMetrics], style: Style
) -> Figure:
    """Draw accuracy over confidence, and below it the share of images per bin.

    At the fitted temperature they are drawn only if all runs have one.

    Args:
        title: name of the algorithm; its expected calibration error is appended.
        name: stem of the figure's file names.
        metrics: metrics of all runs of the algorithm, whose images are pooled.
        style: style of the algorithm.
    """
    series = {BEFORE_SCALING: _pool_bins([entry.calibration.reliability for entry in metrics])}
    scaled = [entry.scaled.reliability for entry in metrics if entry.scaled]
    if len(scaled) == len(metrics):
        series[AT_TEMPERATURE] = _pool_bins(scaled)
    canvas = new_canvas(3.9, [*series])
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    handles = {
        label: _draw_reliability_line(upper, lower, bins, style, is_hollow=label == AT_TEMPERATURE)
        for label, bins in series.items()
    }
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
    lower.set(xlabel="confidence (%)", ylabel="images (%)")
    lower.set_ylim(bottom=0)
    add_legend(canvas, handles)

    errors = [100 * expected_calibration_error(bins) for bins in series.values()]
    title += f": ECE {errors[0]:.1f}%"
    if len(errors) > 1:
        title += f", {AT_TEMPERATURE} {errors[1]:.1f}%"
    alt = f"Lines of accuracy over confidence, {' and '.join(series)}: {title}."
    rows = [
        (label, number, *counts)
        for label, bins in series.items()
        for number, counts in enumerate(zip(bins.images, bins.correct, bins.confidence))
    ]
    header = ["series", "bin", "images", "correct", "confidence"]
    return save_figure(canvas, title, name, alt, header, rows)


def _pool_bins(all_bins: Sequence[ReliabilityBins | None]) -> ReliabilityBins:
    recorded = [bins for bins in all_bins if bins]
    sums = {
        field.name: np.sum([getattr(bins, field.name) for bins in recorded], axis=0).tolist()
        for field in fields(ReliabilityBins)
    }
    return ReliabilityBins(**sums)


def _draw_reliability_line(
    upper: Any, lower: Any, bins: ReliabilityBins, style: Style, is_hollow: bool
) -> Line2D:
    """Draw the accuracies of non-empty bins and the histogram of images; return the line."""
    images = np.array(bins.images)
    is_filled = images > 0
    dash: Any = (0, (3, 1.5)) if is_hollow else "solid"
    (line,) = upper.plot(
        100 * np.array(bins.confidence)[is_filled] / images[is_filled],
        100 * np.array(bins.correct)[is_filled] / images[is_filled],
        color=style.colour,
        lw=1.6,
        ls=dash,
        marker=style.marker,
        ms=5,
        mec=style.colour if is_hollow else INK,
        mfc=PAPER if is_hollow else style.colour,
        mew=0.9,
        zorder=3,
    )

    edges = np.linspace(0, 100, len(images) + 1)
    lower.stairs(
        100 * images / images.sum(), edges, color=style.colour, lw=1.4, ls=dash, fill=False
    )
    return line


def pool_flips(
    evaluations: Sequence[EvaluatedRun], environments: Sequence[str]
) -> dict[str, dict[str, Flips]]:
    """Add up the flips over trials; return environment -> algorithm -> its flips."""
    counts: dict[str, dict[str, list[Flips]]] = {}
    for selected, metrics in evaluations:
        if metrics.flips:
            by_row = counts.setdefault(environments[selected.target], {})
            by_row.setdefault(selected.row, []).append(metrics.flips)
    return {
        environment: {
            row: Flips(*np.sum([astuple(entry) for entry in flips], axis=0).tolist())
            for row, flips in by_row.items()
        }
        for environment, by_row in counts.items()
    }


def draw_flips(
    title: str,
    name: str,
    flips: Mapping[str, Mapping[str, Flips]],
    styles: Styles,
    names: Mapping[str, str],
) -> Figure:
    """Draw bars of gained images to the right and of lost images to the left, in percent.

    Args:
        title: title of the figure.
        name: stem of the figure's file names.
        flips: environment -> algorithm -> its flips; each environment is a group of bars.
        styles: algorithm -> style.
        names: algorithm -> name on the page.
    """
    headings: dict[float, str] = {}
    bars: dict[float, tuple[str, str, Flips]] = {}
    height = 0.0
    for environment, by_algorithm in flips.items():
        headings[height] = environment
        for algorithm in styles:
            if algorithm in by_algorithm:
                height += 1
                bars[height] = (environment, algorithm, by_algorithm[algorithm])
        height += _GROUP_GAP

    canvas = new_canvas(0.75 + _BAR_HEIGHT * height)
    axes = canvas.subplots()
    colours = [styles[algorithm].colour for _, algorithm, _ in bars.values()]
    longest = 0.0
    for kind, sign, alpha in (("gained", 1, 1.0), ("lost", -1, _FADED)):
        percents = np.array(
            [100 * getattr(counts, kind) / sum(astuple(counts)) for _, _, counts in bars.values()]
        )
        longest = max(longest, *percents)
        drawn = axes.barh(
            list(bars), sign * percents, 0.78, color=colours, alpha=alpha, edgecolor=INK, lw=0.6
        )
        axes.bar_label(drawn, [f"{percent:.1f}" for percent in percents], padding=3, fontsize=9)
    for place, environment in headings.items():
        axes.text(0, place, printable(environment), ha="center", va="center", weight="bold")

    reach = (longest or 1.0) * _LENGTH_WITH_NUMBER
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(list(bars), [printable(names[algorithm]) for _, algorithm, _ in bars.values()])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(height - 0.7, -0.8), xlim=(-reach, reach))
    axes.xaxis.set_major_formatter(lambda value, position: f"{abs(value):g}")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("lost ← images (%) → gained")

    alt = (
        "Bars of the images gained and lost compared with zero-shot CLIP on "
        f"{', '.join(flips)}: {title}."
    )
    rows = [
        (environment, names[algorithm], *astuple(counts))
        for environment, algorithm, counts in bars.values()
    ]
    header = ["environment", "algorithm", *(field.name for field in fields(Flips))]
    return save_figure(canvas, title, name, alt, header, rows)
