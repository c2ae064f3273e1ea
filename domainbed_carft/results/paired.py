"""Two algorithms compared where both were run: over (data set, target, trial).

Trials share splits between algorithms, so a difference of a pair is less uncertain than two means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from domainbed_carft.errors import CarftError
from domainbed_carft.results import labels as environments
from domainbed_carft.results import selection
from domainbed_carft.results.document import Grid
from domainbed_carft.results.gaps import Gaps
from domainbed_carft.results.settings import Group

RESAMPLES = 10_000
SEED = 0
LEVEL = 95

_Place = tuple[str, int, int]  # data set, target, trial
_Accuracies = dict[_Place, float]

CAPTION = (
    "Differences: accuracy of the first minus that of the second, in points, over the (data set, "
    "environment left out, trial) that both have. Interval: the middle "
    f"{LEVEL}% of the mean in {RESAMPLES:,} bootstrap resamples of the (data set, environment left "
    f"out), each with all its trials (numpy's default_rng, seed {SEED}). With few environments "
    "such an interval is too narrow. Equal accuracies are ties."
)


class Difference(NamedTuple):
    """Of one group by one method, in points; ``low`` and ``high`` are None for a single target.

    ``unpaired``: what has no partner. ``incomplete``: pairs that count, though a run is incomplete.
    """

    setting: str
    method: str
    mean: float
    low: float | None
    high: float | None
    targets: int
    pairs: int
    wins: int
    losses: int
    ties: int
    unpaired: Sequence[str]
    incomplete: Sequence[str]


def compare(groups: Sequence[Group], methods: Sequence[str], a: str, b: str) -> list[Difference]:
    """``a`` minus ``b`` in each group that has pairs, by each method.

    Raises CarftError, naming what there is, where no group has any, or for one and the same.
    """
    if a == b:
        raise CarftError(f"--paired {a} {b} compares an algorithm with itself; expected two")
    found = []
    for group in groups:
        labels = environments.labels(group.runs, group.planned, group.labels)
        gaps = Gaps(group.runs, group.planned)
        for method in methods:
            both: tuple[_Accuracies, _Accuracies] = {}, {}
            for dataset, algorithm, target, trial, outcome in selection.select(group.runs, method):
                if algorithm in (a, b):
                    both[algorithm == b][dataset, target, trial] = 100 * outcome.accuracy
            places = sorted(both[0].keys() | both[1].keys())
            names = {place: _named(place, labels) for place in places}
            pairs = [place for place in places if place in both[0] and place in both[1]]
            if not pairs:
                continue
            lacking = [
                names[dataset, target, trial]
                for dataset, target, trial in pairs
                if any(
                    trial in trials
                    for name in (a, b)
                    for trials in gaps.lacks(
                        dataset, name, target, method, len(labels[dataset])
                    ).values()
                )
            ]
            values = np.array([both[0][pair] - both[1][pair] for pair in pairs])  # equal: exactly 0
            clusters: dict[tuple[str, int], list[float]] = {}
            for pair, value in zip(pairs, values.tolist(), strict=True):
                clusters.setdefault(pair[:2], []).append(value)
            sums = np.array([sum(own) for own in clusters.values()])
            counts = np.array([len(own) for own in clusters.values()])
            found.append(
                Difference(
                    group.title, method, float(values.mean()), *interval_of_mean(sums, counts),
                    len(clusters), len(values),
                    int((values > 0).sum()), int((values < 0).sum()), int((values == 0).sum()),
                    [names[place] for place in places if place not in pairs], lacking,
                )
            )  # fmt: skip
    if not found:
        algorithms = environments.algorithms(r.algorithm for group in groups for r in group.runs)
        raise CarftError(
            f"--paired {a} {b}: no (data set, target, trial) has both under the same settings by "
            f"{', '.join(methods)}; there are: {', '.join(algorithms)}"
        )
    return found


def _named(place: _Place, labels: Mapping[str, Sequence[str]]) -> str:
    dataset, target, trial = place
    return f"{dataset} {labels[dataset][target]} trial {trial}"


def interval_of_mean(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Bootstrap percentiles of the mean of all values, whole clusters being drawn anew.

    ``sums``, ``counts``: of the values of each cluster. None of a single cluster.
    """
    if len(sums) < 2:
        return None, None
    draw = np.random.default_rng(SEED)
    drawn = draw.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def grid(found: Sequence[Difference], a: str, b: str) -> Grid:
    """A row a group and method."""
    rows = []
    notes = []
    for one in found:
        known = one.low is not None and one.high is not None
        interval = f"{one.low:+.2f} to {one.high:+.2f}" if known else "one target: none"
        label = "; ".join(filter(None, [selection.METHODS[one.method].title, one.setting]))
        counts = [str(number) for number in (one.wins, one.losses, one.ties, one.pairs)]
        rows.append([label, f"{one.mean:+.2f}", interval, *counts, str(one.targets)])
        if one.unpaired:
            notes.append(f"{label}: without a partner: {', '.join(one.unpaired)}.")
        if one.incomplete:
            notes.append(f"{label}: incomplete: {', '.join(one.incomplete)}.")
    header = ["Selection", "Mean", f"{LEVEL}% interval", "Wins", "Losses", "Ties", "Pairs"]
    return Grid(f"{a} minus {b}", [*header, "Targets"], rows, notes)


def entries(found: Sequence[Difference], a: str, b: str) -> list[dict[str, Any]]:
    """For JSON and CSV."""
    counts = ("low", "high", "targets", "pairs", "wins", "losses", "ties")
    return [
        {
            "setting": one.setting, "selection": one.method, "a": a, "b": b,
            "mean_difference": one.mean, **{name: getattr(one, name) for name in counts},
            "level": LEVEL / 100, "resamples": RESAMPLES, "seed": SEED,
            "incomplete_pairs": len(one.incomplete), "unpaired": ", ".join(one.unpaired),
            "incomplete": ", ".join(one.incomplete),
        }
        for one in found
    ]  # fmt: skip
