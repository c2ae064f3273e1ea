"""Paired differences between the rows of tables, with intervals and p-values.

`compare` makes every comparison: the tables of ``--against`` and the headline of a report.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.results import selection
from domainbed_carft.results.cells import sample_error
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.columns import IN_DOMAIN
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.selection import SelectedRun

ACCURACY = "accuracy"
ENVIRONMENT = "environment"
PAIR = "pair"
TRIAL = "trial"
UNITS = (ENVIRONMENT, PAIR)

LEVEL = 95  # % of intervals
MIN_PAIRS = 5
# With fewer units no two-sided p-value by sign flips is below 5%.
MIN_PAIRS_FOR_FIVE_PERCENT = 6

# If n differences have more than RANDOM_FLIPS sign patterns, this many are drawn at random.
RANDOM_FLIPS = 99_999
MAX_EXACT_UNITS = 16
SEED = 0

_TIE = 1e-9  # rounding error in points of the mean difference of equal accuracies

_UNIT_TITLES = {
    ENVIRONMENT: "unit: environment, its mean over trials",
    PAIR: "unit: pair, so intervals and p-values are optimistic",
    TRIAL: "unit: trial, its mean over environments",
}
_MEASURE_TITLES = {ACCURACY: "", IN_DOMAIN: "in-domain accuracy"}

# (dataset, target, trial)
PairKey = tuple[str, int, int]
# Row -> pair -> its accuracy in percent
Accuracies = Mapping[str, Mapping[PairKey, float]]
Floats = npt.NDArray[np.float64]

CAPTION = (
    "Minus: accuracy of the row's algorithm minus accuracy of the algorithm in the title, in "
    "points, over every (dataset, held-out environment, trial) that both have. s.e.: standard "
    f"error of the mean (divisor n - 1); interval: {LEVEL}% by Student's t, both over the n "
    "differences. p: two-sided, by flipping the signs of the n differences, exact up to "
    f"{MAX_EXACT_UNITS} and otherwise by {RANDOM_FLIPS:,} random flips; Holm: corrected for the "
    "number of rows; smallest p: the lowest p that n differences can reach.",
    "Unit environment: one difference for each held-out environment, its mean over trials (one for "
    "a family, such as EmojiUnseen's three EmojiOne styles). Unit pair: one for each environment "
    "and trial; trials of an environment share test images, so these p-values are too small and "
    "these intervals too narrow. Unit trial: used if one model covers all environments of a trial, "
    "because no environment was held out or several were held out together.",
    "All units have the same weight. In Avg all datasets have the same weight, so that over "
    "several datasets the mean difference is not the difference of Avg. Held-out environments "
    "share training domains, so their differences are not independent, and their intervals are too "
    "narrow as well.",
)


@dataclass(frozen=True)
class Comparison:
    """The difference between two rows, by one selection rule in one group of runs.

    Differences, errors and intervals are in points.

    Attributes:
        setting: title of the group of runs.
        selection: name of the selection rule.
        measure: ACCURACY (on the target) or IN_DOMAIN (on the training environments).
        unit: unit of the ``n`` differences: ENVIRONMENT, PAIR or TRIAL.
        algorithm: name of the row.
        against: name of the row that is subtracted.
        pairs: number of pairs that both rows have.
        n: number of units.
        mean_difference: mean over units.
        standard_error: with divisor n - 1; None for a single unit.
        low, high: interval of the mean by Student's t; None for a single unit.
        wins, losses, ties: number of units with a positive, negative and zero difference.
        p: p-value by sign flips; None with fewer than MIN_PAIRS pairs.
        p_holm: ``p`` corrected for the number of compared rows.
        smallest_p: smallest p-value that n units can reach.
        environments: number of environments.
        trials: number of trials.
        average_difference: mean in which each dataset has the same weight, as in Avg.
    """

    setting: str
    selection: str
    measure: str
    unit: str
    algorithm: str
    against: str
    pairs: int
    n: int
    mean_difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    wins: int
    losses: int
    ties: int
    p: float | None
    p_holm: float | None
    smallest_p: float
    environments: int
    trials: int
    average_difference: float

    @property
    def is_clear(self) -> bool:
        """True if the interval does not contain 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def interval_text(self, digits: int) -> str:
        """Format the interval with ``digits`` decimals, or the reason why there is none."""
        if self.low is None:
            return f"none (one {self.unit})"
        return f"{self.low:+.{digits}f} to {self.high:+.{digits}f}"


def compare(
    accuracies: Accuracies,
    against: str,
    unit: str,
    *,
    setting: str = "",
    rule: str = selection.TRAINING_DOMAIN,
    measure: str = ACCURACY,
) -> list[Comparison]:
    """Subtract ``against`` from every other row that shares a pair with it, in the given order.

    ``setting``, ``rule`` and ``measure`` describe the accuracies.
    """
    reference = accuracies.get(against, {})
    comparisons = []
    for row, by_pair in accuracies.items():
        shared = sorted(by_pair.keys() & reference.keys())
        if row == against or not shared:
            continue

        differences = {pair: by_pair[pair] - reference[pair] for pair in shared}
        by_unit = _average_by_unit(differences, unit)
        low, high = student_interval(by_unit)

        comparison = Comparison(
            setting=setting,
            selection=rule,
            measure=measure,
            unit=unit,
            algorithm=row,
            against=against,
            pairs=len(shared),
            n=len(by_unit),
            mean_difference=float(np.mean(by_unit)),
            standard_error=sample_error(np.array(by_unit)) if len(by_unit) > 1 else None,
            low=low,
            high=high,
            wins=sum(value > _TIE for value in by_unit),
            losses=sum(value < -_TIE for value in by_unit),
            ties=sum(abs(value) <= _TIE for value in by_unit),
            p=p_value(by_unit) if len(shared) >= MIN_PAIRS else None,
            p_holm=None,
            smallest_p=smallest_p(len(by_unit)),
            environments=len({(dataset, target) for dataset, target, _ in shared}),
            trials=len({trial for _, _, trial in shared}),
            average_difference=_average_over_datasets(differences),
        )
        comparisons.append(comparison)

    corrected = holm({entry.algorithm: entry.p for entry in comparisons if entry.p is not None})
    return [replace(entry, p_holm=corrected.get(entry.algorithm)) for entry in comparisons]


def compare_rows(
    collection: Collection,
    against: str,
    *,
    measures: Sequence[str] = (ACCURACY,),
) -> list[Comparison]:
    """Compare the rows of each group by each rule, measure and unit."""
    comparisons = []
    for group, rule, measure in itertools.product(collection.groups, collection.rules, measures):
        by_row = accuracies_by_row(group.select(rule), measure)
        accuracies = {name: by_row[name] for name in group.order_rows(by_row)}
        # Otherwise one model covers all environments of a trial, which is then the only unit.
        has_model_per_target = selection.RULES[rule].holds_out and not group.source
        for unit in UNITS if has_model_per_target else (TRIAL,):
            comparisons += compare(
                accuracies,
                against,
                unit,
                setting=group.title,
                rule=rule,
                measure=measure,
            )
    return comparisons


def require_comparisons(
    comparisons: Sequence[Comparison], collection: Collection, against: str
) -> None:
    """Raise CarftError with the names of all rows if no row shares a pair with ``against``."""
    if comparisons:
        return

    names = ", ".join(collection.rows)
    message = (
        f"--against {against}: no other algorithm shares a (dataset, environment, trial) with it; "
        f"expected one of {names}"
    )
    if against == "ERM" and "ERM" not in collection.rows:
        message += (
            "; ERM is an algorithm of DomainBed, and plain fine-tuning of CLIP is CLIPFineTune"
        )
    raise CarftError(message)


def accuracies_by_row(
    selections: Iterable[SelectedRun], measure: str = ACCURACY
) -> dict[str, dict[PairKey, float]]:
    """Map each row and pair to its accuracy in percent, on the target or IN_DOMAIN."""
    percent: dict[str, dict[PairKey, float]] = {}
    for selected in selections:
        outcome = selected.outcome
        accuracy = outcome.accuracy
        if measure == IN_DOMAIN:
            accuracy = selection.in_domain_accuracy(outcome)
        pair = (selected.dataset, selected.target, selected.trial)
        percent.setdefault(selected.row, {})[pair] = 100 * accuracy
    return percent


def _average_by_unit(differences: Mapping[PairKey, float], unit: str) -> list[float]:
    """Return each unit's mean over its pairs; environments of one family are one unit."""
    by_unit: dict[tuple[object, ...], list[float]] = {}
    for pair, difference in differences.items():
        dataset, target, trial = pair
        key: tuple[object, ...] = pair
        if unit == ENVIRONMENT:
            key = (dataset, benchmarks.independent_unit(dataset, target))
        elif unit == TRIAL:
            key = (dataset, trial)
        by_unit.setdefault(key, []).append(difference)
    return [float(np.mean(values)) for values in by_unit.values()]


def _average_over_datasets(differences: Mapping[PairKey, float]) -> float:
    """Mean over datasets of each dataset's mean over environments, as in Avg."""
    by_dataset: dict[str, dict[int, list[float]]] = {}
    for (dataset, target, _), difference in differences.items():
        by_dataset.setdefault(dataset, {}).setdefault(target, []).append(difference)
    return float(
        np.mean(
            [
                np.mean([np.mean(trials) for trials in by_target.values()])
                for by_target in by_dataset.values()
            ]
        )
    )


def student_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Interval of the mean at LEVEL percent by Student's t; Nones for a single value."""
    if len(values) < 2:
        return None, None

    from scipy import stats  # takes a second to import

    interval = stats.ttest_1samp(values, 0).confidence_interval(LEVEL / 100)
    return float(interval.low), float(interval.high)


def welch_interval(
    values: Sequence[float], mean: float, squared_error: float, n: int
) -> tuple[float, float] | tuple[None, None]:
    """Interval at LEVEL percent of the mean of ``values`` minus ``mean``, by Welch's t.

    ``squared_error`` is the squared standard error of ``mean``, with divisor n - 1 over ``n``
    values. Nones for a single value.
    """
    if len(values) < 2:
        return None, None

    from scipy.special import stdtrit

    squared_errors = np.array([sample_error(np.asarray(values)) ** 2, squared_error])
    freedoms = np.array([len(values) - 1, n - 1])
    total = squared_errors.sum()
    freedom = total**2 / (squared_errors**2 / freedoms).sum()
    half_width = float(stdtrit(freedom, (1 + LEVEL / 100) / 2) * total**0.5)
    difference = float(np.mean(values)) - mean
    return difference - half_width, difference + half_width


@functools.cache
def smallest_welch_half_width(squared_error: float, n: int) -> float:
    """Smallest half-width of `welch_interval` over all numbers and spreads of its ``values``.

    It is not reached by values without spread: an error of the values adds degrees of freedom.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import stdtrit

    def half_width(share: float) -> float:
        """Return the half-width for many values whose error is this share of the total error."""
        freedom = (n - 1) / (1 - share) ** 2
        quantile = float(stdtrit(freedom, (1 + LEVEL / 100) / 2))
        return quantile * (squared_error / (1 - share)) ** 0.5

    return float(minimize_scalar(half_width, bounds=(0, 0.999), method="bounded").fun)


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the mean of one or more differences, by flipping signs.

    It is the share of the 2^n sign patterns whose sum is at least as far from 0 as the observed
    sum, by ``scipy.stats.permutation_test``. Up to MAX_EXACT_UNITS differences it is exact. With
    more it is estimated from RANDOM_FLIPS random patterns (numpy's default_rng, SEED), and the
    observed pattern is counted as one of them.
    """
    if len(differences) == 1:
        return 1.0

    from scipy import stats

    test = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        _distance_from_zero,
        permutation_type="samples",
        n_resamples=RANDOM_FLIPS,
        vectorized=True,
        alternative="greater",
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


def _distance_from_zero(values: Floats, axis: int) -> Floats:
    """Sums without their sign, rounded so that those of equal accuracies count as ties."""
    return np.round(np.abs(values.sum(axis=axis)), 6)


def smallest_p(n: int) -> float:
    """Smallest p-value that `p_value` can return for n differences."""
    smallest: float = 2.0 ** (1 - n)
    return smallest if n <= MAX_EXACT_UNITS else 1 / (1 + RANDOM_FLIPS)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for the number of tests by Holm's step-down method."""
    corrected: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * value))
        corrected[name] = highest
    return corrected


def grids(comparisons: Sequence[Comparison]) -> list[Grid]:
    """Make a table for each group, rule, measure and unit, with a row for each compared row."""
    by_table: dict[tuple[str, ...], list[Comparison]] = {}
    for entry in comparisons:
        key = (entry.setting, entry.selection, entry.measure, entry.unit, entry.against)
        by_table.setdefault(key, []).append(entry)
    return [_grid(entries) for entries in by_table.values()]


def _grid(comparisons: Sequence[Comparison]) -> Grid:
    first = comparisons[0]
    parts = [
        f"Minus {first.against}",
        _MEASURE_TITLES[first.measure],
        _UNIT_TITLES[first.unit],
        selection.RULES[first.selection].title,
        first.setting,
    ]
    header = ["Algorithm", "Mean", "s.e.", f"{LEVEL}% interval", "Wins", "Losses", "Ties", "n"]
    header += ["p", "Holm", "Smallest p"]
    rows = [_row(entry) for entry in comparisons]
    return Grid("; ".join(filter(None, parts)), header, rows, _notes(comparisons))


def _row(entry: Comparison) -> list[str]:
    error = "-" if entry.standard_error is None else f"{entry.standard_error:.2f}"
    counts = [str(count) for count in (entry.wins, entry.losses, entry.ties, entry.n)]
    p_values = [p_text(p) for p in (entry.p, entry.p_holm, entry.smallest_p)]
    difference = [f"{entry.mean_difference:+.2f}", error, entry.interval_text(digits=2)]
    return [entry.algorithm, *difference, *counts, *p_values]


def p_text(p: float | None) -> str:
    """Format a p-value with three decimals or two significant digits; "-" if it is None."""
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Return notes on rows with too few pairs for a p-value, and on the smallest p-value."""
    first = comparisons[0]
    notes = []
    n_pairs = {entry.algorithm: entry.pairs for entry in comparisons if entry.pairs < MIN_PAIRS}
    if n_pairs and first.unit != ENVIRONMENT:  # more trials do not add environments
        limits = sorted({min(n_pairs.values()), max(n_pairs.values())})
        notes.append(
            f"{', '.join(n_pairs)}: {' to '.join(map(str, limits))} (dataset, held-out "
            f"environment, trial) shared with {first.against}, expected at least {MIN_PAIRS} for a "
            "p-value; run more trials."
        )

    n = min(entry.n for entry in comparisons)
    if n < MIN_PAIRS_FOR_FIVE_PERCENT and first.unit != PAIR:
        notes.append(
            f"With n = {n} {first.unit}s no p-value is below {p_text(smallest_p(n))}: read the "
            "difference and the wins."
        )
    return notes
