"""Whether our runs reproduce a published figure: a verdict, and if there is none, why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.results.cells import Cell, student_interval

LEVEL = 95  # % of the interval of our mean

REPRODUCED = "reproduced"
ABOVE = "above"
BELOW = "below"
NOT_COMPARABLE = "not comparable"

CAPTION = (
    f"Verdict: reproduced, if the published mean, to its last digit, lies in the {LEVEL}% interval "
    "of our mean, by Student's t distribution over our trials; above and below say where our mean "
    "lies otherwise. The spread of the published figure does not count."
)

ORACLE = "oracle"
# What a published checkpoint was chosen on, if it is also a selection method of ours.
_SELECTED_ON_METHODS = ("training-domain",)


@dataclass(frozen=True)
class Verdict:
    """How our mean stands to a published one.

    ``name``: REPRODUCED, ABOVE, BELOW or NOT_COMPARABLE; ``reason``: why it is not comparable, else
    "". ``low`` and ``high``: the interval of our mean in percent, None for fewer than two trials.
    """

    name: str
    reason: str
    low: float | None
    high: float | None


def judge(cell: Cell, method: str, figure: Mapping[str, Any], deviation: str) -> Verdict:
    """The verdict on a cell that has a mean, beside a published figure.

    ``method``: our selection method; ``figure``: a row of published.csv; ``deviation``: a clause on
    what our runs have that the published method has not, "" if nothing.
    """
    low, high = student_interval([100 * accuracy for accuracy in cell.accuracies.values()], LEVEL)
    reason = deviation or _reason_against(cell, method, figure)
    if reason or low is None or high is None or cell.mean is None:
        return Verdict(NOT_COMPARABLE, reason or "one trial has no interval", low, high)

    rounding = _half_of_last_digit(figure["accuracy"])
    if low - rounding <= figure["accuracy"] <= high + rounding:
        name = REPRODUCED
    else:
        name = ABOVE if cell.mean > figure["accuracy"] else BELOW
    return Verdict(name, reason="", low=low, high=high)


def _reason_against(cell: Cell, method: str, figure: Mapping[str, Any]) -> str:
    """Why the two figures must not be compared; "" if nothing is known against it."""
    selected_on = figure["selection"]
    if cell.missing or cell.partial:
        return "ours is incomplete"
    if method == ORACLE:
        return "ours was selected on the target"
    if "target" in selected_on:
        return f"the published one was selected on: {selected_on}"
    if selected_on in _SELECTED_ON_METHODS and selected_on != method:
        return f"ours was selected by {method}, the published one by {selected_on}"
    return ""


def _half_of_last_digit(value: float) -> float:
    """Half a unit of the last digit that a published percentage has: 0.05 for 96.8."""
    _, _, decimals = str(value).partition(".")
    return float(0.5 * 10.0 ** -len(decimals))
