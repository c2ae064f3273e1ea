"""One choice of hyperparameters for all targets of a data set, beside a choice for each target."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from domainbed_carft.jobs.job import Choice
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.selection import Outcome, Selected

TITLE = "one setting for all environments"

# (data set, row, trial)
_Trial = tuple[str, str, int]


def select(runs: Iterable[Run], method: str) -> list[Selected]:
    """What ``method`` selects if in each trial all targets of a data set share one choice.

    It is the choice with the highest mean validation accuracy over the targets; of equally good
    ones the last, as for a single target. A choice counts if it has an outcome for every target
    that any choice of the trial has. Checkpoints remain those of each target's own run.
    ``method``: one that leaves environments out. The order is that of `selection.select`.
    """
    rule = selection.METHODS[method]
    outcomes: dict[_Trial, dict[int, dict[Choice, Outcome]]] = {}
    for candidates in selection.candidates_by_target(runs):
        trial = (candidates.dataset, candidates.row, candidates.trial)
        by_choice = {
            outcome.choice: outcome for outcome in selection.ranked_outcomes(candidates, rule)
        }
        if by_choice:
            outcomes.setdefault(trial, {})[candidates.target] = by_choice

    return [
        Selected(dataset, row, target, trial, by_target[target][choice])
        for (dataset, row, trial), by_target in outcomes.items()
        for choice in [_best_choice(by_target)]
        if choice is not None
        for target in by_target
    ]


def _best_choice(by_target: dict[int, dict[Choice, Outcome]]) -> Choice | None:
    """The choice with the highest mean over all targets; None if none has all of them."""
    complete = set.intersection(*(set(by_choice) for by_choice in by_target.values()))
    if not complete:
        return None

    def rank(choice: Choice) -> tuple[float, Choice]:
        validations = [by_choice[choice].validation for by_choice in by_target.values()]
        return float(np.mean(validations)), choice

    return max(complete, key=rank)
