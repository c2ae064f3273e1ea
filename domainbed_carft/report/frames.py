"""The selected runs of a group as pandas frames; accuracies in [0, 1].

In-domain accuracy is the mean over the out-splits of the environments trained on; out-of-domain
accuracy is that on the target's in-split, which DomainBed reports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import CHOOSE
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.cells import DOMAINBED, ErrorKind

RUN = ["dataset", "algorithm", "target", "trial"]
NO_TARGET = -1  # of a run that left nothing out
# Recorded by our algorithms: how far the context distribution has moved.
DRIFT = ("loss_kl", "context_agreement")


def checkpoints(runs: Sequence[Run], method: str) -> pd.DataFrame:
    """A row for each checkpoint of the runs that the method selects, sorted by RUN and step.

    Columns: RUN, ``step``, ``in_domain``, ``out_of_domain``, ``selected`` (the checkpoint that the
    method takes) and, nan where they were not recorded, DRIFT. Runs that left nothing out have the
    target NO_TARGET, and no ``out_of_domain``.
    """
    rows: dict[tuple[object, ...], tuple[object, ...]] = {}
    for selected in selection.select(runs, method):
        run = selected.outcome.runs[0]
        target = selected.target if run.test_envs else NO_TARGET
        in_domain = selection.in_domain(run)
        in_splits, _ = selection.accuracies(run)
        out_of_domain = in_splits[:, target] if run.test_envs else np.full(len(in_domain), np.nan)
        drift = _drift_by_step(run)

        for step, inside, outside in zip(run.steps, in_domain, out_of_domain):
            key = (selected.dataset, selected.row, target, selected.trial, step)
            is_selected = step == selected.outcome.step
            drift_values = drift.get(step, [np.nan] * len(DRIFT))
            rows[key] = (*key, inside, outside, is_selected, *drift_values)

    columns = [*RUN, "step", "in_domain", "out_of_domain", "selected", *DRIFT]
    frame = pd.DataFrame(rows.values(), columns=columns).astype({"selected": bool})
    return frame.sort_values([*RUN, "step"], ignore_index=True)


def choices(runs: Sequence[Run], method: str, first_stage: Sequence[Run] = ()) -> pd.DataFrame:
    """A row for each choice of hyperparameters that the method had, where it had several.

    ``first_stage``: of a search in two stages, of which ``runs`` are the second.

    Columns: RUN, ``choice``, ``validation`` and ``out_of_domain`` accuracy at the checkpoint that
    the method takes, and ``selected``: whether this one was chosen for its target and trial.
    """
    rule = selection.METHODS[method]
    repeated_values = {
        (run.row, target, run.job.choice.values) for run in runs for target in run.test_envs
    }
    rows = []
    for candidates in selection.candidates_by_target([*runs, *first_stage]):
        outcomes = selection.ranked_outcomes(candidates, rule)
        cell = (candidates.dataset, candidates.row, candidates.target, candidates.trial)
        if len(outcomes) > 1:
            for outcome in outcomes:
                is_selected = outcome is outcomes[0]
                if outcome.run.job.role.stage == CHOOSE and first_stage:
                    repeated = (candidates.row, candidates.target, outcome.choice.values)
                    is_selected = repeated in repeated_values
                accuracies = (outcome.validation, outcome.accuracy)
                rows.append((*cell, outcome.choice, *accuracies, is_selected))

    columns = [*RUN, "choice", "validation", "out_of_domain", "selected"]
    return pd.DataFrame(rows, columns=columns).astype({"selected": bool})


def _drift_by_step(run: Run) -> dict[float, list[float]]:
    """Step -> the values of DRIFT, which the algorithm measured and ``run`` does not hold."""
    return {
        float(record["step"]): [_finite_or_nan(record.get(name)) for name in DRIFT]
        for record in records.run_records(run)
    }


def _finite_or_nan(value: Any) -> float:
    is_finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return float(value) if is_finite else np.nan


def over_targets(frame: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Each trial's mean over the targets, if the trial has every target that any algorithm has.

    A value that is missing or NaN for one of the targets has no mean.
    ``frame``: ``checkpoints`` of one data set. Rows are (algorithm, trial), and step if it has one.
    """
    keys = ["algorithm", "trial"]
    if "step" in frame:
        keys.append("step")

    by_trial = frame.groupby(keys, sort=True)[list(values)]
    has_all_targets = by_trial.count() == frame["target"].nunique()
    return by_trial.mean()[has_all_targets].dropna(how="all").reset_index()


def over_trials(
    frame: pd.DataFrame, value: str, error: ErrorKind = DOMAINBED
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(algorithm, frame of ``mean`` and ``error`` by step) of all that have values.

    A single trial has an error of 0.
    """
    measured_rows = frame.dropna(subset=[value])
    for algorithm, rows in measured_rows.groupby("algorithm", sort=False):
        by_step = rows.groupby("step")[value]
        errors = by_step.agg(lambda values: error.of(values.to_numpy()) if len(values) > 1 else 0.0)
        yield str(algorithm), pd.DataFrame({"mean": by_step.mean(), "error": errors})
