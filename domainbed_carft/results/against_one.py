"""Algorithms against one of them: paired differences, with intervals and p-values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from domainbed_carft.data import benchmarks
from domainbed_carft.results import rows, selection, sign_flips
from domainbed_carft.results.cells import sample_error, student_interval
from domainbed_carft.results.collection import Group
from domainbed_carft.results.document import Grid

ACCURACY = "accuracy"
IN_DOMAIN = "in-domain"
ENVIRONMENT = "environment"
PAIR = "pair"
UNITS = (ENVIRONMENT, PAIR)

LEVEL = 95
FEWEST_PAIRS = 5
# Below so many units no two-sided p-value by sign flips is below 5%.
FEWEST_FOR_FIVE_PERCENT = 6

_TIE = 1e-9  # points, by which a mean of equal accuracies may differ from 0

_UNIT_TITLES = {
    ENVIRONMENT: "unit: environment, its mean over trials",
    PAIR: "unit: pair, so intervals and p-values are optimistic",
}
_MEASURE_TITLES = {ACCURACY: "", IN_DOMAIN: "in-domain accuracy"}

# (data set, target, trial)
PairKey = tuple[str, int, int]

CAPTION = (
    "Minus: accuracy of the row's algorithm minus that of the one in the title, in points, over "
    "every (data set, environment left out, trial) that both have. s.e.: standard error of the "
    f"mean (divisor n - 1); interval: {LEVEL}% by Student's t, both over the n differences. p: "
    "two-sided, by flipping the signs of the n differences, exactly up to "
    f"{sign_flips.MOST_EXACT} and else by {sign_flips.RANDOM_FLIPS:,} random flips; Holm: "
    "corrected for the number of rows; smallest p: what n differences can attain at best.",
    "Unit environment: one difference for each environment left out, its mean over trials (one for "
    "a family, such as EmojiUnseen's three of EmojiOne). Unit pair: one for each trial; trials of "
    "an environment share test pictures, so these p-values are too small and these intervals too "
    "narrow.",
)


@dataclass(frozen=True)
class Comparison:
    """One algorithm minus another, by one selection method in one group of runs.

    ``measure``: ACCURACY, that of the tables, or IN_DOMAIN, that on the environments trained on.
    ``unit``: of the ``n`` differences, ENVIRONMENT or PAIR; ``pairs``, ``environments``: how many
    of these there are.
    Differences, error and interval are in points; error and interval are None for a single
    difference, p-values below FEWEST_PAIRS pairs; ``p_holm`` is corrected for the algorithms of one
    comparison.
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

    def as_dict(self) -> dict[str, Any]:
        """An entry for JSON and CSV."""
        return asdict(self)

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def interval_text(self, digits: int) -> str:
        """The interval with so many digits after the point, or why there is none."""
        if self.low is None:
            return f"none (one {self.unit})"
        return f"{self.low:+.{digits}f} to {self.high:+.{digits}f}"


def compare(
    groups: Sequence[Group],
    methods: Sequence[str],
    against: str,
    *,
    algorithm: str | None = None,
    measures: Sequence[str] = (ACCURACY,),
) -> list[Comparison]:
    """Every other algorithm minus ``against``, for each group, method, measure and unit.

    Algorithms come in the order of the tables. Only those that share a pair with ``against``, and
    with ``algorithm`` only this one.
    """
    comparisons = []
    for group, method, measure in itertools.product(groups, methods, measures):
        differences = differences_by_algorithm(group, method, against, measure)
        if algorithm:
            differences = {name: differences[name] for name in differences if name == algorithm}
        for unit in UNITS:
            of_unit = [
                comparison_of(
                    pairs,
                    unit,
                    algorithm=name,
                    against=against,
                    setting=group.title,
                    method=method,
                    measure=measure,
                )
                for name, pairs in differences.items()
            ]
            comparisons += _with_holm(of_unit)
    return comparisons


def available_algorithms(groups: Sequence[Group]) -> str:
    """The algorithms that have runs, for messages."""
    names = rows.ordered_rows(
        (run.row for group in groups for run in group.runs),
        (name for group in groups for name in group.declared),
    )
    return ", ".join(names)


def differences_by_algorithm(
    group: Group, method: str, against: str, measure: str = ACCURACY
) -> dict[str, dict[PairKey, float]]:
    """Algorithm -> pair -> its accuracy minus that of ``against`` in points, sorted by pair.

    Only algorithms that share a pair with ``against``, in the order of the tables.
    """
    percent: dict[str, dict[PairKey, float]] = {}
    for selected in group.selected(method):
        outcome = selected.outcome
        accuracy = outcome.accuracy
        if measure == IN_DOMAIN:
            accuracy = selection.in_domain_at(outcome)
        pair = (selected.dataset, selected.target, selected.trial)
        percent.setdefault(selected.row, {})[pair] = 100 * accuracy

    reference = percent.pop(against, {})
    differences = {}
    for name in group.ordered(percent):
        shared = sorted(percent[name].keys() & reference.keys())
        if shared:
            differences[name] = {pair: percent[name][pair] - reference[pair] for pair in shared}
    return differences


def unit_means(differences: Mapping[PairKey, float], unit: str) -> list[float]:
    """The differences of units: those of the pairs, or the mean of each environment's pairs.

    The environments of a family are one unit.
    """
    if unit == PAIR:
        return list(differences.values())

    by_unit: dict[tuple[str, str], list[float]] = {}
    for (dataset, target, _), difference in differences.items():
        key = (dataset, benchmarks.independent_unit(dataset, target))
        by_unit.setdefault(key, []).append(difference)
    return [float(np.mean(values)) for values in by_unit.values()]


def standard_error(values: Sequence[float]) -> float | None:
    """That of the mean, from the standard deviation with divisor n - 1; None for a single value."""
    return sample_error(np.asarray(values)) if len(values) > 1 else None


def comparison_of(
    differences: Mapping[PairKey, float],
    unit: str,
    *,
    algorithm: str,
    against: str,
    setting: str,
    method: str,
    measure: str,
) -> Comparison:
    """The comparison of one algorithm, from its differences by pair, its p-value not corrected.

    ``method``: of selection.
    """
    values = unit_means(differences, unit)
    low, high = student_interval(values, LEVEL)
    return Comparison(
        setting=setting,
        selection=method,
        measure=measure,
        unit=unit,
        algorithm=algorithm,
        against=against,
        pairs=len(differences),
        n=len(values),
        mean_difference=float(np.mean(values)),
        standard_error=standard_error(values),
        low=low,
        high=high,
        wins=sum(value > _TIE for value in values),
        losses=sum(value < -_TIE for value in values),
        ties=sum(abs(value) <= _TIE for value in values),
        p=sign_flips.p_value(values) if len(differences) >= FEWEST_PAIRS else None,
        p_holm=None,
        smallest_p=sign_flips.smallest_p(len(values)),
        environments=len({(dataset, target) for dataset, target, _ in differences}),
    )


def _with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one unit with corrected p-values."""
    p_values = {entry.algorithm: entry.p for entry in comparisons if entry.p is not None}
    corrected = sign_flips.holm(p_values)
    return [replace(entry, p_holm=corrected.get(entry.algorithm)) for entry in comparisons]


def grids(comparisons: Sequence[Comparison]) -> list[Grid]:
    """A table for each group, method, measure and unit: a row an algorithm."""
    by_table: dict[tuple[str, ...], list[Comparison]] = {}
    for entry in comparisons:
        key = (entry.setting, entry.selection, entry.measure, entry.unit)
        by_table.setdefault(key, []).append(entry)
    return [_grid(entries) for entries in by_table.values()]


def _grid(comparisons: Sequence[Comparison]) -> Grid:
    first = comparisons[0]
    parts = [
        f"Minus {first.against}",
        _MEASURE_TITLES[first.measure],
        _UNIT_TITLES[first.unit],
        selection.METHODS[first.selection].title,
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
    """A p-value with three decimals or two digits that count; "-" without one."""
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Which rows have too few pairs for a p-value, and what so few environments can show."""
    notes = []
    for entry in comparisons:
        if entry.pairs < FEWEST_PAIRS:
            notes.append(
                f"{entry.algorithm} and {entry.against} share {entry.pairs} (data set, environment "
                f"left out, trial), expected at least {FEWEST_PAIRS} for a p-value; run more "
                "trials."
            )

    counts = [entry.n for entry in comparisons if entry.unit == ENVIRONMENT]
    n = min(counts, default=FEWEST_FOR_FIVE_PERCENT)
    if n < FEWEST_FOR_FIVE_PERCENT:
        notes.append(
            f"With n = {n} environments no p-value is below {p_text(sign_flips.smallest_p(n))}: "
            "read the difference and the wins."
        )
    return notes
