"""Two algorithms compared over each (data set, target, trial) that both have, with its splits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.results import order, selection
from domainbed_carft.results.document import Grid
from domainbed_carft.results.settings import Group

RESAMPLES = 10_000
SEED = 0
LEVEL = 95

CAPTION = (
    "Differences: accuracy of the first algorithm minus the second, in points, over every (data "
    "set, environment left out, trial) that both have. Interval: the central "
    f"{LEVEL}% of the mean in {RESAMPLES:,} bootstrap resamples of the (data set, environment left "
    f"out), each with all its trials (numpy's default_rng, seed {SEED}); the environments of a "
    "family, such as EmojiUnseen's three of EmojiOne, are resampled as one. With few environments "
    "such an interval is too narrow. Equal accuracies are ties."
)


def compare(
    groups: Sequence[Group], methods: Sequence[str], a: str, b: str
) -> list[dict[str, Any]]:
    """``a`` minus ``b`` in points: an entry for JSON and CSV for each group with pairs and method.

    ``low`` and ``high`` are None for a single target or family. No entries if the two share no
    trial, or are the same.
    """
    comparisons = []
    for group, method in itertools.product(groups, methods):
        differences = _differences(group, method, a, b)
        if a != b and differences:
            comparison = {"setting": group.title, "selection": method, "a": a, "b": b}
            comparisons.append(comparison | _summary(differences))
    return comparisons


def no_shared_trial(groups: Sequence[Group], methods: Sequence[str], a: str, b: str) -> CarftError:
    """The error that ``a`` and ``b`` cannot be compared, which names the available algorithms."""
    names = [run.algorithm for group in groups for run in group.runs]
    declared = [name for group in groups for name in group.declared]
    algorithms = order.ordered_algorithms(names, declared)
    return CarftError(
        f"{a} and {b} share no (data set, environment, trial) under the same settings by "
        f"{', '.join(methods)}; expected two different algorithms of {', '.join(algorithms)}"
    )


def _differences(group: Group, method: str, a: str, b: str) -> dict[tuple[str, int, int], float]:
    """(Data set, target, trial) -> accuracy of ``a`` minus that of ``b`` in points, sorted."""
    percent: dict[str, dict[tuple[str, int, int], float]] = {a: {}, b: {}}
    for dataset, algorithm, target, trial, outcome in selection.select(group.runs, method):
        percent.setdefault(algorithm, {})[dataset, target, trial] = 100 * outcome.accuracy

    pairs = sorted(percent[a].keys() & percent[b].keys())
    return {pair: percent[a][pair] - percent[b][pair] for pair in pairs}  # equal: exactly 0


def _summary(differences: Mapping[tuple[str, int, int], float]) -> dict[str, Any]:
    """The mean difference, its interval, and how many pairs were won, lost and tied."""
    values = np.array([*differences.values()])
    targets = {(dataset, target) for dataset, target, _ in differences}
    units = [
        (dataset, benchmarks.independent_unit(dataset, target))
        for dataset, target, _ in differences
    ]
    distinct_units = list(dict.fromkeys(units))
    cluster = [distinct_units.index(unit) for unit in units]
    low, high = interval_of_mean(np.bincount(cluster, values), np.bincount(cluster))

    return {
        "mean_difference": float(values.mean()),
        "low": low,
        "high": high,
        "targets": len(targets),
        "pairs": len(differences),
        "wins": int((values > 0).sum()),
        "losses": int((values < 0).sum()),
        "ties": int((values == 0).sum()),
    }


def interval_of_mean(
    sums: npt.NDArray[Any], counts: npt.NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Bootstrap percentiles of the mean, from clusters' sums and counts; None for a single one."""
    if len(sums) < 2:
        return None, None

    rng = np.random.default_rng(SEED)
    resamples = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[resamples].sum(axis=1) / counts[resamples].sum(axis=1)

    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def clustered_error(values: Sequence[float], units: Sequence[str]) -> float | None:
    """The standard error of the mean of ``values``, of which those of one unit belong together.

    The cluster-robust estimate with its correction for few units; with each value in a unit of its
    own it is the usual standard error of the mean. None for a single unit.
    """
    names = list(dict.fromkeys(units))
    if len(names) < 2:
        return None

    deviations = np.asarray(values) - np.mean(values)
    sums = np.bincount([names.index(unit) for unit in units], deviations)
    few = len(names) / (len(names) - 1)
    return float(np.sqrt(few * (sums**2).sum()) / len(values))


def sentence(comparison: Mapping[str, Any]) -> str:
    """An entry that `compare` returns, in one sentence."""
    text = f"{comparison['a']} minus {comparison['b']}"
    if comparison["setting"]:
        text += f" ({comparison['setting']})"
    text += f": {comparison['mean_difference']:+.2f} points"
    if comparison["low"] is not None:
        text += f", {LEVEL}% interval {comparison['low']:+.2f} to {comparison['high']:+.2f}"
    return f"{text}, over {comparison['pairs']} pairs."


def grid(comparisons: Sequence[Mapping[str, Any]]) -> Grid:
    """The table of the entries that `compare` returns: a row for each group and method."""
    header = ["Selection", "Mean", f"{LEVEL}% interval"]
    header += ["Wins", "Losses", "Ties", "Pairs", "Targets"]
    rows = []
    for comparison in comparisons:
        method = selection.METHODS[comparison["selection"]].title
        label = "; ".join(filter(None, [method, comparison["setting"]]))

        interval = f"none (one {'target' if comparison['targets'] == 1 else 'family'})"
        if comparison["low"] is not None:
            interval = f"{comparison['low']:+.2f} to {comparison['high']:+.2f}"

        names = ("wins", "losses", "ties", "pairs", "targets")
        counts = [str(comparison[name]) for name in names]
        rows.append([label, f"{comparison['mean_difference']:+.2f}", interval, *counts])

    first = comparisons[0]
    return Grid(f"{first['a']} minus {first['b']}", header, rows, notes=[])
