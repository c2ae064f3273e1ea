"""Figures of what `carft evaluate` measured: reliability, flips, and accuracy over alignment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from domainbed_carft.report.canvas import (
    MUTED,
    RC_PARAMS,
    Figure,
    add_legend,
    new_canvas,
    save_figure,
)
from domainbed_carft.report.pooled_evaluations import PooledEvaluation
from domainbed_carft.report.styles import INK, PAPER, Style, Styles
from domainbed_carft.results.evaluations import (
    ALIGNMENT_EDGES,
    ECE_BINS,
    HIGHEST_ALIGNMENT,
    LOWEST_ALIGNMENT,
    Flips,
    ReliabilityBins,
)
from domainbed_carft.text import printable

Evaluations = Mapping[str, PooledEvaluation]

_BAR_HEIGHT = 0.2  # inches from one bar to the next
_GROUP_GAP = 1.6  # bars between two groups, for the title of the second
# Of more algorithms each environment has a figure of its own: a page prints 9 inches.
_MOST_BARS_IN_GROUP = 6
_ROOM_FOR_NUMBERS = 1.35  # of the longest bar
_LIGHT = 0.45  # opacity of lost pictures' bars

BEFORE = "before scaling"
AFTER = "at the fitted temperature"


@matplotlib.rc_context(RC_PARAMS)
def reliability(title: str, name: str, evaluation: PooledEvaluation, style: Style) -> Figure:
    """Accuracy over confidence in ECE_BINS bins, and below how many pictures each bin has.

    ``title``: the algorithm; the figure's title has its expected calibration error, too.
    """
    series = {BEFORE: evaluation.raw}
    if evaluation.scaled:
        series[AFTER] = evaluation.scaled

    canvas = new_canvas(3.9, [*series])
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    handles = {
        label: _draw_reliability(upper, lower, bins, style, is_hollow=label == AFTER)
        for label, bins in series.items()
    }
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
    lower.set(xlabel="confidence (%)", ylabel="pictures (%)")
    lower.set_ylim(bottom=0)
    add_legend(canvas, handles)

    title = f"{_title_with_runs(title, evaluation)}: {_ece_text(evaluation)}"
    alt = f"Lines of accuracy over confidence, {' and '.join(series)}: {title}."
    data = pd.concat(
        pd.DataFrame({"series": label, "bin": range(ECE_BINS), **dataclasses.asdict(bins)})
        for label, bins in series.items()
    )
    return save_figure(canvas, title, name, alt, data)


def _ece_text(evaluation: PooledEvaluation) -> str:
    text = f"ECE {100 * evaluation.ece:.1f}%"
    if evaluation.scaled_ece is None:
        return text
    return f"{text}, at the fitted temperature {100 * evaluation.scaled_ece:.1f}%"


def _title_with_runs(title: str, evaluation: PooledEvaluation) -> str:
    """The title, and how many runs were evaluated unless all were."""
    if evaluation.n_evaluated == evaluation.n_selected:
        return title
    return f"{title} ({evaluation.n_evaluated} of {evaluation.n_selected} runs)"


def _draw_reliability(
    upper: Any, lower: Any, bins: ReliabilityBins, style: Style, is_hollow: bool
) -> Line2D:
    """A line of the bins that have pictures, and steps of how many; returns the line."""
    pictures = np.array(bins.pictures)
    has_pictures = pictures > 0
    confidence = 100 * np.array(bins.confidence)[has_pictures] / pictures[has_pictures]
    accuracy = 100 * np.array(bins.correct)[has_pictures] / pictures[has_pictures]

    dash: Any = (0, (3, 1.5)) if is_hollow else "solid"
    (line,) = upper.plot(
        confidence,
        accuracy,
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

    edges = np.linspace(0, 100, ECE_BINS + 1)
    shares = 100 * pictures / pictures.sum()
    lower.stairs(shares, edges, color=style.colour, lw=1.4, ls=dash, fill=False)
    return line


def flips(
    title: str,
    evaluations: Evaluations,
    environments: Sequence[str],
    styles: Styles,
    name: Callable[..., str],
) -> list[Figure]:
    """Bars of the gained pictures to the right and of the lost ones to the left, in percent.

    ``environments``: their labels, by number; ``name(word, ...)`` makes a figure's name. There is a
    group of bars for each environment; of many algorithms each group is a figure.
    """
    groups = []
    for number, label in enumerate(environments):
        bars = []
        for algorithm, style in styles.items():
            evaluation = evaluations.get(algorithm)
            if evaluation and number in evaluation.flips:
                bar_name = _title_with_runs(algorithm, evaluation)
                bars.append((bar_name, style, evaluation.flips[number]))
        if bars:
            groups.append((label, bars))

    if len(evaluations) <= _MOST_BARS_IN_GROUP:
        return [_flips(title, name("flips"), groups)]
    return [
        _flips(f"{title}, {label}", name("flips", label), [(label, bars)]) for label, bars in groups
    ]


@matplotlib.rc_context(RC_PARAMS)
def _flips(
    title: str, name: str, groups: Sequence[tuple[str, Sequence[tuple[str, Style, Flips]]]]
) -> Figure:
    """One figure; ``groups``: (label, (name of a bar, its style, flips) ...) from top to bottom."""
    n_rows = sum(len(bars) + _GROUP_GAP for _, bars in groups)
    canvas = new_canvas(0.75 + _BAR_HEIGHT * n_rows)
    axes = canvas.subplots()

    height = 0.0
    longest = 0.0
    ticks = {}
    for label, bars in groups:
        axes.text(0, height, printable(label), ha="center", va="center", weight="bold")
        for bar_name, style, counts in bars:
            height += 1
            ticks[height] = printable(bar_name)
            longest = max(longest, _draw_flips(axes, height, counts, style.colour))
        height += _GROUP_GAP

    reach = (longest or 1.0) * _ROOM_FOR_NUMBERS
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(height - 0.7, -0.8), xlim=(-reach, reach))
    axes.xaxis.set_major_formatter(lambda value, position: f"{abs(value):g}")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("lost ← pictures (%) → gained")

    labels = ", ".join(label for label, _ in groups)
    alt = f"Bars of the pictures gained and lost against zero-shot CLIP on {labels}: {title}."
    data = pd.DataFrame(
        {"environment": label, "algorithm": bar_name, **dataclasses.asdict(counts)}
        for label, bars in groups
        for bar_name, _, counts in bars
    )
    return save_figure(canvas, title, name, alt, data)


def _draw_flips(axes: Any, height: float, counts: Flips, colour: str) -> float:
    """The two bars of one algorithm with their numbers; returns the length of the longer one."""
    n_pictures = counts.gained + counts.lost + counts.both_right + counts.both_wrong
    gained_percent = 100 * counts.gained / n_pictures
    lost_percent = 100 * counts.lost / n_pictures
    axes.barh(height, gained_percent, 0.78, color=colour, edgecolor=INK, linewidth=0.6)
    axes.barh(height, -lost_percent, 0.78, color=colour, alpha=_LIGHT, edgecolor=INK, linewidth=0.6)

    axes.text(gained_percent, height, f" {gained_percent:.1f}", va="center", fontsize=9)
    axes.text(-lost_percent, height, f"{lost_percent:.1f} ", va="center", ha="right", fontsize=9)
    return max(gained_percent, lost_percent)


@matplotlib.rc_context(RC_PARAMS)
def over_alignment(title: str, name: str, evaluations: Evaluations, styles: Styles) -> Figure:
    """Accuracy over the alignment score, a line an algorithm, and below the share of pictures.

    The solid upright line is the threshold; between the dotted ones lie the pictures that count as
    in or out of pre-training.
    """
    names = {
        algorithm: _title_with_runs(algorithm, evaluations[algorithm])
        for algorithm in styles
        if algorithm in evaluations
    }
    canvas = new_canvas(3.6, [*names.values()])
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    handles: dict[str, Any] = {}
    for algorithm in reversed([*names]):  # the first algorithm lies on top
        handles[algorithm] = _draw_over_alignment(
            upper, lower, evaluations[algorithm], styles[algorithm]
        )

    thresholds = {score for algorithm in names for score in evaluations[algorithm].thresholds}
    _draw_cuts([upper, lower], sorted(thresholds))
    upper.set(ylim=(-3, 103), ylabel="accuracy (%)")
    lower.set(xlabel="alignment score", ylabel="pictures (%)")
    lower.set_ylim(bottom=0)
    add_legend(canvas, {label: handles[algorithm] for algorithm, label in names.items()})

    marked = " and ".join(f"{score:g}" for score in sorted(thresholds))
    alt = (
        f"Lines of accuracy over the alignment score, with the threshold {marked}: {title}, for "
        f"{', '.join(names)}."
    )
    bins = {"bin_end": [*ALIGNMENT_EDGES, math.inf]}
    data = pd.concat(
        pd.DataFrame(bins).assign(
            algorithm=algorithm,
            pictures=evaluations[algorithm].alignment_pictures,
            correct=evaluations[algorithm].alignment_correct,
        )
        for algorithm in names
    )
    return save_figure(canvas, title, name, alt, data)


def _draw_cuts(all_axes: Sequence[Any], thresholds: Sequence[float]) -> None:
    """Upright lines at the thresholds, and dotted ones at the other cuts if there is room."""
    for axes in all_axes:
        for score in thresholds:
            axes.axvline(score, color=INK, lw=1, zorder=1)

    limits = all_axes[0].get_xlim()
    for axes in all_axes:
        for score in (LOWEST_ALIGNMENT, HIGHEST_ALIGNMENT):
            axes.axvline(score, color=MUTED, lw=1, ls=(0, (1, 2)), zorder=1)
        axes.set_xlim(limits)


def _draw_over_alignment(
    upper: Any, lower: Any, evaluation: PooledEvaluation, style: Style
) -> Line2D:
    """A line of the bins that have pictures, and one of how many; returns the first."""
    width = ALIGNMENT_EDGES[1] - ALIGNMENT_EDGES[0]
    middles = np.array(
        [edge - width / 2 for edge in [*ALIGNMENT_EDGES, ALIGNMENT_EDGES[-1] + width]]
    )
    pictures = np.array(evaluation.alignment_pictures)
    has_pictures = pictures > 0
    accuracy = np.array(evaluation.alignment_correct)[has_pictures] / pictures[has_pictures]

    (line,) = upper.plot(
        middles[has_pictures],
        100 * accuracy,
        color=style.colour,
        lw=1.6,
        ls=style.dash,
        ms=4.5,
        **style.mark,
    )
    shares = 100 * pictures[has_pictures] / pictures.sum()
    lower.plot(middles[has_pictures], shares, color=style.colour, lw=1.4, ls=style.dash)
    return line
