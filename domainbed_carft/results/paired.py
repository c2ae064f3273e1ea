"""Two algorithms compared over each (data set, target, trial) that both have, with its splits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.results import selection, tables
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
    """``a`` minus ``b`` in points, a row for JSON and CSV for each group with pairs and method.

    ``low`` and ``high`` are None for a single target or family. Raises CarftError, naming the
    available algorithms, if no group has any, or if ``a`` is ``b``.
    """
    found = []
    for group, method in itertools.product(groups, methods):
        both: dict[str, dict[tuple[str, int, int], float]] = {a: {}, b: {}}
        for dataset, algorithm, target, trial, outcome in selection.select(group.runs, method):
            both.setdefault(algorithm, {})[dataset, target, trial] = 100 * outcome.accuracy
        first, second = both[a], both[b]
        pairs = sorted(first.keys() & second.keys())
        if a == b or not pairs:
            continue
        values = np.array([first[pair] - second[pair] for pair in pairs])  # equal: exactly 0
        targets = {pair[:2] for pair in pairs}
        of_pairs = [(pair[0], benchmarks.independent_unit(*pair[:2])) for pair in pairs]
        units = list(dict.fromkeys(of_pairs))
        cluster = [units.index(unit) for unit in of_pairs]
        sums, counts = np.bincount(cluster, values), np.bincount(cluster)
        low, high = interval_of_mean(sums, counts)
        found.append(
            {
                "setting": group.title,
                "selection": method,
                "a": a,
                "b": b,
                "mean_difference": float(values.mean()),
                "low": low,
                "high": high,
                "targets": len(targets),
                "pairs": len(pairs),
                "wins": int((values > 0).sum()),
                "losses": int((values < 0).sum()),
                "ties": int((values == 0).sum()),
            }
        )
    if not found:
        names = [run.algorithm for group in groups for run in group.runs]
        declared = [name for group in groups for name in group.declared]
        algorithms = tables.algorithms(names, declared)
        raise CarftError(
            f"{a} and {b} share no (data set, environment, trial) under the same settings by "
            f"{', '.join(methods)}; expected two different algorithms of {', '.join(algorithms)}"
        )
    return found


def interval_of_mean(
    sums: npt.NDArray[Any], counts: npt.NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Bootstrap percentiles of the mean, from clusters' sums and counts; None for a single one."""
    if len(sums) < 2:
        return None, None
    draw = np.random.default_rng(SEED)
    drawn = draw.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
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


def grid(found: Sequence[Mapping[str, Any]], a: str, b: str) -> Grid:
    """A row a group and method."""
    rows = []
    for one in found:
        low, high = one["low"], one["high"]
        single = "target" if one["targets"] == 1 else "family"
        interval = f"none (one {single})" if low is None else f"{low:+.2f} to {high:+.2f}"
        label = "; ".join(filter(None, [selection.METHODS[one["selection"]].title, one["setting"]]))
        counts = [str(one[name]) for name in ("wins", "losses", "ties", "pairs", "targets")]
        rows.append([label, f"{one['mean_difference']:+.2f}", interval, *counts])
    header = ["Selection", "Mean", f"{LEVEL}% interval", "Wins", "Losses", "Ties", "Pairs"]
    return Grid(f"{a} minus {b}", [*header, "Targets"], rows, [])
