"""What `carft evaluate` measured of the selected runs, added up picture by picture per algorithm.

The sums are over the runs' summaries, so neither weights nor rows of pictures are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.evaluated_columns import figures_of
from domainbed_carft.results.evaluations import (
    Calibration,
    Flips,
    ReliabilityBins,
    RunFigures,
    SplitFigures,
    expected_calibration_error,
)
from domainbed_carft.results.selection import Selected


@dataclass(frozen=True)
class PooledEvaluation:
    """The pictures of one algorithm's evaluated runs, as one set.

    ``n_evaluated`` of ``n_selected`` runs were evaluated. ``raw``: the reliability of the
    probabilities as they are; ``scaled``: at each run's fitted temperature, None unless every run
    has one. ``flips``: number of an environment -> of its pictures. ``alignment_pictures``,
    ``alignment_correct``: in the bins of `AlignmentFigures`. ``thresholds``: all alignment
    scores that divide pictures in and out of pre-training, ascending.
    """

    n_evaluated: int
    n_selected: int
    raw: ReliabilityBins
    scaled: ReliabilityBins | None
    flips: Mapping[int, Flips]
    alignment_pictures: Sequence[int]
    alignment_correct: Sequence[int]
    thresholds: Sequence[float]

    @property
    def ece(self) -> float:
        """The expected calibration error of the probabilities as they are, a share of 1."""
        return expected_calibration_error(self.raw)

    @property
    def scaled_ece(self) -> float | None:
        """The expected calibration error at the fitted temperatures, a share of 1."""
        return expected_calibration_error(self.scaled) if self.scaled else None


def pool_evaluations(runs: Sequence[Run], method: str) -> dict[str, PooledEvaluation]:
    """Algorithm -> the evaluation of the runs that the method selects; only of those with any.

    ``runs``: of one group, on one data set.
    """
    selected_runs: dict[str, list[Selected]] = {}
    for selected in selection.select(runs, method):
        selected_runs.setdefault(selected.row, []).append(selected)

    pooled = {algorithm: _pool(cells) for algorithm, cells in selected_runs.items()}
    return {algorithm: evaluation for algorithm, evaluation in pooled.items() if evaluation}


def _pool(cells: Sequence[Selected]) -> PooledEvaluation | None:
    """The evaluation of one algorithm; None if no run has one."""
    parts = []
    folders = set()
    for selected in cells:
        figures = figures_of(selected)
        part = figures.of_environment(selected.target) if isinstance(figures, RunFigures) else None
        if part:
            parts.append((selected.target, part))
            folders.add(selected.outcome.run.folder)
    if not parts:
        return None

    splits = [part for _, part in parts]
    scaled = [part.scaled for part in splits if part.scaled]
    return PooledEvaluation(
        n_evaluated=len(folders),
        n_selected=len({selected.outcome.run.folder for selected in cells}),
        raw=_sum_of_bins([part.calibration for part in splits]),
        scaled=_sum_of_bins(scaled) if len(scaled) == len(splits) else None,
        flips={
            target: _sum_of_flips([part for number, part in parts if number == target])
            for target in sorted({number for number, _ in parts})
        },
        alignment_pictures=_sum_of_lists([part.alignment.bin_pictures for part in splits]),
        alignment_correct=_sum_of_lists([part.alignment.bin_correct for part in splits]),
        thresholds=sorted({part.alignment.threshold for part in splits}),
    )


def _sum_of_bins(calibrations: Sequence[Calibration]) -> ReliabilityBins:
    bins = [calibration.reliability for calibration in calibrations]
    return ReliabilityBins(
        pictures=_sum_of_lists([part.pictures for part in bins]),
        correct=_sum_of_lists([part.correct for part in bins]),
        confidence=np.sum([part.confidence for part in bins], axis=0).tolist(),
    )


def _sum_of_flips(splits: Sequence[SplitFigures]) -> Flips:
    flips = [part.flips for part in splits]
    return Flips(
        gained=sum(part.gained for part in flips),
        lost=sum(part.lost for part in flips),
        both_right=sum(part.both_right for part in flips),
        both_wrong=sum(part.both_wrong for part in flips),
    )


def _sum_of_lists(counts: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of pictures, bin by bin."""
    return [sum(of_bin) for of_bin in zip(*counts, strict=True)]
