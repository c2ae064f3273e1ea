"""One algorithm against every other on a suite: differences between trained runs, paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from domainbed_carft.results import order
from domainbed_carft.results.against_one import LEVEL, standard_error
from domainbed_carft.results.cells import student_interval
from domainbed_carft.results.settings import Group
from domainbed_carft.results.suite_runs import selected_records


@dataclass(frozen=True)
class SuitePair:
    """``algorithm`` minus ``against`` on a suite, in points, over pairs of runs.

    The runs of a pair share data set, environment left out and trial; each is measured by its mean
    accuracy over the suite's sets that it was not trained on. ``standard_error``: with divisor
    n - 1; ``low``, ``high``: the 95% interval by Student's t; None for a single pair.
    """

    algorithm: str
    against: str
    pairs: int
    mean_difference: float
    standard_error: float | None
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def mean_accuracies(groups: Iterable[Group], suite: str) -> dict[str, float]:
    """Algorithm -> mean over its runs of the accuracy that a `SuitePair` compares, in %."""
    return {
        algorithm: float(np.mean([*percent.values()]))
        for group in groups
        for algorithm, percent in _percent_by_run(group, suite).items()
    }


def compare(groups: Iterable[Group], suite: str, algorithm: str) -> list[SuitePair]:
    """``algorithm`` minus every other one of a group that shares a pair of runs with it."""
    entries = []
    for group in groups:
        percent = _percent_by_run(group, suite)
        minuend = percent.pop(algorithm, {})
        for against in order.ordered_algorithms(percent, group.declared):
            subtrahend = percent[against]
            shared = sorted(minuend.keys() & subtrahend.keys())
            differences = [minuend[pair] - subtrahend[pair] for pair in shared]
            if differences:
                entries.append(_entry(algorithm, against, differences))
    return entries


def _percent_by_run(group: Group, suite: str) -> dict[str, dict[tuple[str, int, int], float]]:
    """Algorithm -> (data set, target, trial) -> the run's mean accuracy over the sets, in %."""
    percent: dict[str, dict[tuple[str, int, int], float]] = {}
    for selected, record in selected_records(group, warnings=[]):
        if record["suite"] == suite and record["wise_ft_alpha"] is None:
            accuracies = [scores["accuracy"] for scores in record["sets"].values()]
            run = (selected.dataset, selected.target, selected.trial)
            percent.setdefault(selected.algorithm, {})[run] = 100 * float(np.mean(accuracies))
    return percent


def _entry(algorithm: str, against: str, differences: Sequence[float]) -> SuitePair:
    low, high = student_interval(differences, LEVEL)
    return SuitePair(
        algorithm=algorithm,
        against=against,
        pairs=len(differences),
        mean_difference=float(np.mean(differences)),
        standard_error=standard_error(differences),
        low=low,
        high=high,
    )
