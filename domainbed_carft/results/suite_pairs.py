"""One algorithm against every other on a suite: differences between trained runs, paired."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from domainbed_carft.results import against_one
from domainbed_carft.results.against_one import Comparison, PairKey
from domainbed_carft.results.collection import Group
from domainbed_carft.results.method_names import TRAINING_DOMAIN
from domainbed_carft.results.suite_runs import selected_records


def mean_accuracies(groups: Iterable[Group], suite: str) -> dict[str, float]:
    """Algorithm -> mean over its runs of the accuracy that `compare` compares, in %."""
    return {
        algorithm: float(np.mean([*percent.values()]))
        for group in groups
        for algorithm, percent in _percent_by_run(group, suite).items()
    }


def compare(groups: Iterable[Group], suite: str, algorithm: str, unit: str) -> list[Comparison]:
    """``algorithm`` minus every other one of a group that shares a pair of runs with it, in points.

    The runs of a pair share data set, environment left out and trial. Each is measured by its mean
    accuracy over the suite's sets that it was not trained on. ``unit``: as of `Comparison`.
    """
    comparisons = []
    for group in groups:
        percent = _percent_by_run(group, suite)
        minuend = percent.pop(algorithm, {})
        for against in group.ordered(percent):
            subtrahend = percent[against]
            shared = sorted(minuend.keys() & subtrahend.keys())
            if shared:
                comparison = against_one.comparison_of(
                    {pair: minuend[pair] - subtrahend[pair] for pair in shared},
                    unit,
                    algorithm=algorithm,
                    against=against,
                    setting=group.title,
                    method=TRAINING_DOMAIN,
                    measure=suite,
                )
                comparisons.append(comparison)
    return comparisons


def _percent_by_run(group: Group, suite: str) -> dict[str, dict[PairKey, float]]:
    """Algorithm -> (data set, target, trial) -> the run's mean accuracy over the sets, in %."""
    percent: dict[str, dict[PairKey, float]] = {}
    for selected, record in selected_records(group, warnings=[]):
        if record["suite"] == suite and record["wise_ft_alpha"] is None:
            accuracies = [scores["accuracy"] for scores in record["sets"].values()]
            run = (selected.dataset, selected.target, selected.trial)
            percent.setdefault(selected.row, {})[run] = 100 * float(np.mean(accuracies))
    return percent
