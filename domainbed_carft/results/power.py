"""How many trials a difference needs to be found, from the spread of the pairs in a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.results import selection
from domainbed_carft.results.against_one import (
    ENVIRONMENT,
    FEWEST_PAIRS,
    PAIR,
    PairKey,
    differences_by_algorithm,
    unit_means,
)
from domainbed_carft.results.cells import sample_deviation
from domainbed_carft.results.collection import Group
from domainbed_carft.results.document import Grid

LEVEL = 0.05
POWER = 0.8

CAPTION = (
    f"Power: how many pairs a two-sided paired t test at {LEVEL:.0%} needs to find a difference of "
    f"this size in {POWER:.0%} of sweeps, if pairs spread normally and as in this sweep (standard "
    "deviation of the differences, divisor n - 1); trials: for so many pairs with this sweep's "
    "environments. Environments: how many would be needed with one difference each, its mean over "
    "this sweep's trials; more trials do not replace them.",
)


@dataclass(frozen=True)
class Power:
    """What a difference of ``difference`` points between two algorithms needs to be found.

    ``spread``: the standard deviation of the ``pairs`` differences in points; ``needed_pairs`` and
    ``needed_trials``: how many find it with POWER. ``environment_spread`` and
    ``needed_environments``: the same of the environments' means, None for a single environment.
    All but the counts is None below FEWEST_PAIRS pairs.
    """

    setting: str
    selection: str
    algorithm: str
    against: str
    difference: float
    pairs: int
    environments: int
    trials: int
    spread: float | None
    needed_pairs: int | None
    needed_trials: int | None
    environment_spread: float | None
    needed_environments: int | None

    def as_dict(self) -> dict[str, Any]:
        """An entry for JSON and CSV."""
        return asdict(self)


def require_difference(difference: float, against: str | None) -> None:
    """Raise CarftError for a difference that is not above 0, or is from nothing."""
    if not 0 < difference < math.inf:
        problem = Problem("--power", difference, "a difference in points > 0, such as 1.0")
        raise CarftError(problem)
    if not against:
        raise CarftError(
            Problem("--power needs an algorithm to differ from", remedy="add --against ALGORITHM")
        )


def powers(
    groups: Sequence[Group], methods: Sequence[str], against: str, difference: float
) -> list[Power]:
    """For each group, method and other algorithm what ``difference`` points need, in their order.

    ``difference``: greater than 0.
    """
    entries = []
    for group, method in itertools.product(groups, methods):
        differences = differences_by_algorithm(group, method, against)
        for algorithm, pairs in differences.items():
            entries.append(_power(group.title, method, algorithm, against, difference, pairs))
    return entries


def needed_count(spread: float, difference: float) -> int:
    """How many differences with this standard deviation find a mean of ``difference``.

    The fewest, at least 2, of which a two-sided paired t test at LEVEL has POWER.
    """
    from scipy.special import ndtri  # scipy.stats takes a second to load

    quantiles = ndtri(1 - LEVEL / 2) + ndtri(POWER)
    normal = (quantiles * spread / difference) ** 2  # with a known standard deviation
    count = max(2, math.floor(normal))
    while power_of_t_test(count, spread, difference) < POWER:
        count += 1
    return count


def power_of_t_test(count: int, spread: float, difference: float) -> float:
    """The chance that a paired t test at LEVEL finds ``difference`` with ``count`` differences."""
    from scipy.special import nctdtr, stdtrit

    if spread == 0:
        return 1.0
    freedom = count - 1
    shift = difference * count**0.5 / spread
    threshold = stdtrit(freedom, 1 - LEVEL / 2)
    missed = nctdtr(freedom, shift, threshold) - nctdtr(freedom, shift, -threshold)
    return float(1 - missed)


def _power(
    setting: str,
    method: str,
    algorithm: str,
    against: str,
    difference: float,
    pairs: dict[PairKey, float],
) -> Power:
    targets = {(dataset, target) for dataset, target, _ in pairs}
    trials = {trial for _, _, trial in pairs}
    spread = environment_spread = None
    needed_pairs = needed_trials = needed_environments = None

    if len(pairs) >= FEWEST_PAIRS:
        spread = sample_deviation(np.array(unit_means(pairs, PAIR)))
        needed_pairs = needed_count(spread, difference)
        needed_trials = math.ceil(needed_pairs / len(targets))

        means = unit_means(pairs, ENVIRONMENT)
        if len(means) > 1:
            environment_spread = sample_deviation(np.array(means))
            needed_environments = needed_count(environment_spread, difference)

    return Power(
        setting=setting,
        selection=method,
        algorithm=algorithm,
        against=against,
        difference=difference,
        pairs=len(pairs),
        environments=len(targets),
        trials=len(trials),
        spread=spread,
        needed_pairs=needed_pairs,
        needed_trials=needed_trials,
        environment_spread=environment_spread,
        needed_environments=needed_environments,
    )


def grids(entries: Sequence[Power]) -> list[Grid]:
    """A table for each group and method: a row an algorithm."""
    by_table: dict[tuple[str, str], list[Power]] = {}
    for entry in entries:
        by_table.setdefault((entry.setting, entry.selection), []).append(entry)
    return [_grid(entries_of_table) for entries_of_table in by_table.values()]


def _grid(entries: Sequence[Power]) -> Grid:
    first = entries[0]
    title = f"To find a difference of {first.difference:g} points from {first.against}"
    method = selection.METHODS[first.selection].title
    header = ["Algorithm", "Spread of pairs", "Pairs needed", "Trials needed", "Trials now"]
    header += ["Spread of environments", "Environments needed", "Environments now"]

    rows = []
    notes = []
    for entry in entries:
        row = [
            entry.algorithm,
            _figure(entry.spread, ".2f"),
            _figure(entry.needed_pairs, ",d"),
            _figure(entry.needed_trials, ",d"),
            str(entry.trials),
            _figure(entry.environment_spread, ".2f"),
            _figure(entry.needed_environments, ",d"),
            str(entry.environments),
        ]
        rows.append(row)
        if entry.spread is None:
            notes.append(
                f"{entry.algorithm} and {entry.against} share {entry.pairs} (data set, environment "
                f"left out, trial), expected at least {FEWEST_PAIRS} for their spread."
            )
    return Grid("; ".join(filter(None, [title, method, first.setting])), header, rows, notes)


def _figure(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"
