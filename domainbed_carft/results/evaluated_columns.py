"""Columns of what `carft evaluate OUT` measured: calibration, flips, alignment, the worst class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from domainbed_carft.errors import Problem
from domainbed_carft.results.cells import Cell
from domainbed_carft.results.columns import Column, RowRuns, accuracy_text
from domainbed_carft.results.evaluations import (
    ALIGNED_FROM,
    HIGHEST_ALIGNMENT,
    LOWEST_ALIGNMENT,
    RunFigures,
    SplitFigures,
    figures_path,
    find_figures,
)
from domainbed_carft.results.selection import Selected

# A figure of one run on the environment left out, of all that was measured there; None if there is
# none.
Figure: TypeAlias = Callable[[SplitFigures], float | None]

PERCENT = 100.0
_CACHED_SUMMARIES = 4096


def figures_of(selected: Selected) -> RunFigures | Problem:
    """What was measured of a selected run at its step, or why there is nothing."""
    run = selected.outcome.runs[0]
    folder = Path(run.folder)
    step = int(selected.outcome.step)
    path = figures_path(folder, step)
    changed = path.stat().st_mtime_ns if path.exists() else 0

    figures = _read_figures(folder, step, changed)
    if isinstance(figures, Problem):
        return figures
    if figures.facts.is_of(run.job):
        return figures
    return Problem(message="evaluated was another job", remedy="run carft evaluate on the sweep")


@functools.lru_cache(maxsize=_CACHED_SUMMARIES)
def _read_figures(folder: Path, step: int, changed: int) -> RunFigures | Problem:
    """The same as `find_figures`, read once for all columns; ``changed``: the time of change."""
    return find_figures(folder, step)


def _measure(row: RowRuns, figure: Figure, scale: float) -> Cell:
    """The mean over the trials of a row, of each trial's mean over the environments left out."""
    values: dict[int, list[float]] = {}
    lacking: dict[str, list[str]] = {}
    for selected in row.selected:
        figures = figures_of(selected)
        if isinstance(figures, Problem):
            place = f"{row.environments[selected.target]} trial {selected.trial}"
            lacking.setdefault(str(figures), []).append(place)
            continue
        part = figures.of_environment(selected.target)
        value = figure(part) if part else None
        if value is not None:
            values.setdefault(selected.trial, []).append(scale * value)

    if lacking:
        reasons = [f"{reason}: {', '.join(sorted(places))}" for reason, places in lacking.items()]
        return Cell(missing=tuple(reasons))
    if not values:
        return Cell()

    means = np.array([np.mean(values[trial]) for trial in sorted(values)])
    names = [name for name, cell in zip(row.environments, row.cells, strict=True) if cell.missing]
    return Cell(
        mean=float(means.mean()),
        standard_error=row.error.of(means) if means.size > 1 else None,
        n=means.size,
        missing=(f"incomplete: {', '.join(names)}",) if names else (),
    )


def _score_text(cell: Cell) -> str:
    """A figure with three decimals, its error, and the number of trials."""
    if cell.mean is None:
        return ""
    error = "" if cell.standard_error is None else f" ± {cell.standard_error:.3f}"
    return f"{cell.mean:.3f}{error} ({cell.n})"


def _accuracy_column(name: str, title: str, explanation: str, figure: Figure) -> Column:
    """A column of a share of 1, in percent."""
    return Column(
        name=name,
        title=title,
        unit="%",
        explanation=f"{title}: {explanation}",
        measure=lambda row: _measure(row, figure, PERCENT),
        write=accuracy_text,
    )


def _score_column(name: str, title: str, unit: str, explanation: str, figure: Figure) -> Column:
    """A column of a figure that is no share."""
    return Column(
        name=name,
        title=title,
        unit=unit,
        explanation=f"{title}: {explanation}",
        measure=lambda row: _measure(row, figure, 1.0),
        write=_score_text,
    )


def _measure_flips(row: RowRuns) -> Cell:
    """The gained minus the lost pictures in percent; the label has both."""
    gained = _measure(row, lambda part: part.gained, PERCENT)
    lost = _measure(row, lambda part: part.lost, PERCENT)
    net = _measure(row, lambda part: part.gained - part.lost, PERCENT)
    if gained.mean is None or lost.mean is None:
        return net
    return net._replace(label=f"{gained.mean:.1f} gained, {lost.mean:.1f} lost")


def _scaled(part: SplitFigures, name: str) -> float | None:
    """The figure of this name at the fitted temperature."""
    return getattr(part.scaled, name) if part.scaled else None


_AT_TEMPERATURE = "the same at the temperature fitted on the training environments."
_FROM = f"{ALIGNED_FROM}"

EVALUATED = (
    _accuracy_column(
        "per-class",
        "Per class",
        "accuracy, the mean over classes.",
        lambda part: part.mean_per_class,
    ),
    _accuracy_column(
        "worst-class",
        "Worst class",
        "accuracy of the worst class.",
        lambda part: part.worst_class.accuracy,
    ),
    _accuracy_column(
        "ece", "ECE", "expected calibration error over 15 bins.", lambda part: part.calibration.ece
    ),
    _accuracy_column("ece-scaled", "ECE/T", _AT_TEMPERATURE, lambda part: _scaled(part, "ece")),
    _score_column(
        "nll",
        "NLL",
        "nats",
        "mean negative log-likelihood, nats.",
        lambda part: part.calibration.nll,
    ),
    _score_column(
        "nll-scaled", "NLL/T", "nats", _AT_TEMPERATURE, lambda part: _scaled(part, "nll")
    ),
    _score_column(
        "brier", "Brier", "", "Brier score, from 0 to 2.", lambda part: part.calibration.brier
    ),
    _score_column(
        "brier-scaled", "Brier/T", "", _AT_TEMPERATURE, lambda part: _scaled(part, "brier")
    ),
    _score_column("temperature", "T", "", "the fitted temperature.", lambda part: part.temperature),
    _accuracy_column(
        "zero-shot",
        "Zero-shot",
        "accuracy of the original CLIP.",
        lambda part: part.zero_shot_accuracy,
    ),
    Column(
        name="flips",
        title="Flips",
        unit="%",
        explanation="Flips: pictures that only the run predicts correctly (gained) minus those "
        "that only zero-shot CLIP does (lost).",
        measure=_measure_flips,
        write=accuracy_text,
    ),
    _accuracy_column(
        "gained",
        "Gained",
        "pictures that only the run predicts correctly.",
        lambda part: part.gained,
    ),
    _accuracy_column(
        "lost",
        "Lost",
        "pictures that only zero-shot CLIP predicts correctly.",
        lambda part: part.lost,
    ),
    _accuracy_column(
        "aligned",
        "Aligned",
        f"accuracy of pictures with an alignment score from {_FROM} to {HIGHEST_ALIGNMENT}.",
        lambda part: part.alignment.aligned,
    ),
    _accuracy_column(
        "unaligned",
        "Unaligned",
        f"accuracy of pictures with an alignment score from {LOWEST_ALIGNMENT} to {_FROM}.",
        lambda part: part.alignment.unaligned,
    ),
)
