"""The data of a report's figures: pandas frames of the selected runs.

In-domain accuracy is the mean over the out-splits of the training environments, whose images are
augmented as in DomainBed. Out-of-domain accuracy is the accuracy on the target's in-split, which
DomainBed reports. Both are in percent.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import CHOOSE
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.results import selection
from domainbed_carft.results.cells import DOMAINBED, ErrorKind
from domainbed_carft.results.columns import Column, find_run_metrics
from domainbed_carft.results.evaluations import RunMetrics, SplitMetrics
from domainbed_carft.results.selection import SelectedRun
from domainbed_carft.results.tables import Table

RUN = ["dataset", "algorithm", "target", "trial"]
NO_TARGET = -1  # for runs without a target
ACCURACIES = ["out_of_domain", "in_domain"]
# Drift of the context distribution, recorded by CLIP algorithms: in nats, and as a share.
DRIFT = ["loss_kl", "context_agreement"]

BEFORE_SCALING = "before scaling"
AT_TEMPERATURE = "at the fitted temperature"


# Accuracies


def accuracies(table: Table, column: Column) -> pd.DataFrame:
    """Return the accuracies of a table's column, without empty cells.

    Returns:
        One row per cell with the columns ``algorithm``, ``accuracy``, ``error`` (nan if there is
        none), ``n`` and ``incomplete``.
    """
    cells_by_row = {row: cells[column] for row, cells in table.rows.items()}
    rows = [
        [row, cell.mean, cell.standard_error, cell.n, not cell.is_complete]
        for row, cell in cells_by_row.items()
        if cell.mean is not None
    ]
    columns = ["algorithm", "accuracy", "error", "n", "incomplete"]
    return pd.DataFrame(rows, columns=columns).astype({"accuracy": float, "error": float})


def checkpoints(selected_runs: Sequence[SelectedRun]) -> pd.DataFrame:
    """Return the accuracies and drifts of all checkpoints of the selected runs.

    Returns:
        One row per checkpoint, sorted by RUN and step, with the columns RUN, ``step``,
        ``in_domain``, ``out_of_domain``, ``selected`` (True for the selected checkpoint) and DRIFT
        (the agreement in percent; nan if not recorded). Runs without a target have the target
        NO_TARGET and a nan as ``out_of_domain``.
    """
    rows: dict[tuple[object, ...], tuple[object, ...]] = {}
    for selected in selected_runs:
        run = selected.run
        target = selected.target if run.test_envs else NO_TARGET
        in_domain = selection.in_domain_accuracies(run)
        in_splits, _ = selection.accuracies(run)
        out_of_domain = in_splits[:, target] if run.test_envs else np.full(len(in_domain), np.nan)
        drift = _drift_by_step(run)

        for step, in_accuracy, out_accuracy in zip(run.steps, in_domain, out_of_domain):
            key = (selected.dataset, selected.row, target, selected.trial, step)
            kl, agreement = drift.get(step, [math.nan, math.nan])
            percents = (100 * in_accuracy, 100 * out_accuracy)
            rows[key] = (*key, *percents, step == selected.outcome.step, kl, 100 * agreement)

    columns = [*RUN, "step", "in_domain", "out_of_domain", "selected", *DRIFT]
    frame = pd.DataFrame(rows.values(), columns=columns).astype({"selected": bool})
    return frame.sort_values([*RUN, "step"], ignore_index=True)


def _drift_by_step(run: RecordedRun) -> dict[float, list[float]]:
    """Return step -> the recorded values of DRIFT."""
    return {
        float(record["step"]): [_finite_or_nan(record.get(name)) for name in DRIFT]
        for record in records.read_run_records(run)
    }


def _finite_or_nan(value: Any) -> float:
    if type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    return math.nan


def average_over_targets(frame: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Average over the targets of each trial, as the tables do.

    Steps at which a trial lacks some of its targets are dropped, because a line would jump there.

    Args:
        frame: rows of `checkpoints` of one dataset, with or without the column ``step``.
        values: columns to average.

    Returns:
        One row per algorithm, trial and, if ``frame`` has the column, step.
    """
    trial = ["algorithm", "trial"]
    keys = [*trial, "step"] if "step" in frame else trial
    by_step = frame.groupby(keys, sort=True)[list(values)]
    counts = by_step.count()
    max_counts = counts.groupby(trial).transform("max")
    return by_step.mean()[(counts == max_counts) & (counts > 0)].dropna(how="all").reset_index()


def average_over_trials_by_step(
    frame: pd.DataFrame, values: Sequence[str], error: ErrorKind = DOMAINBED
) -> pd.DataFrame:
    """Average over the trials at each step.

    Returns:
        One row per value, algorithm and step, with the columns ``panel`` (the name of the value),
        ``algorithm``, ``step``, ``mean`` and ``error`` (0 for a single trial).
    """
    lines = []
    for value in values:
        measured_rows = frame.dropna(subset=[value])
        for (algorithm, step), rows in measured_rows.groupby(["algorithm", "step"]):
            trials = rows[value].to_numpy()
            error_of_mean = error.compute(trials) if len(trials) > 1 else 0.0
            lines.append((value, algorithm, step, trials.mean(), error_of_mean))
    return pd.DataFrame(lines, columns=["panel", "algorithm", "step", "mean", "error"])


def average_over_trials(frame: pd.DataFrame, error: ErrorKind = DOMAINBED) -> pd.DataFrame:
    """Average the accuracies of `average_over_targets` over the trials.

    Returns:
        One row per algorithm with the columns ``algorithm``, ``in_domain``, ``in_domain_error``
        (nan for a single trial), ``out_of_domain``, ``out_of_domain_error`` and ``trials``.
    """
    means = []
    for algorithm, rows in frame.dropna(subset=ACCURACIES).groupby("algorithm"):
        row: dict[str, object] = {"algorithm": algorithm}
        for name in ("in_domain", "out_of_domain"):
            trials = rows[name].to_numpy()
            row[name] = trials.mean()
            row[f"{name}_error"] = error.compute(trials) if len(trials) > 1 else math.nan
        means.append({**row, "trials": len(rows)})

    columns = ["algorithm", "in_domain", "in_domain_error"]
    columns += ["out_of_domain", "out_of_domain_error", "trials"]
    return pd.DataFrame(means, columns=columns)


def choices(
    runs: Sequence[RecordedRun], method: str, first_stage: Sequence[RecordedRun] = ()
) -> pd.DataFrame:
    """Return the choices of hyperparameters in each trial that has several.

    Args:
        runs: the runs of the search, or of the second stage of a search in two stages.
        method: selection method.
        first_stage: runs of the first stage, if there are two stages.

    Returns:
        One row per choice with the columns RUN, ``choice``, ``validation`` and ``out_of_domain``
        (accuracies in [0, 1] at the selected checkpoint) and ``selected`` (True for the choice
        that was selected for its target and trial).
    """
    rule = selection.METHODS[method]
    repeated_values = {
        (run.row, target, run.job.choice.values) for run in runs for target in run.test_envs
    }
    rows = []
    for candidates in selection.candidates_by_target([*runs, *first_stage]):
        outcomes = selection.rank_outcomes(candidates, rule)
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


# Measurements of `carft evaluate`


class TargetEvaluation(NamedTuple):
    """The evaluation of a selected run on its target."""

    algorithm: str
    target: int
    folder: str
    figures: SplitMetrics


def target_evaluations(selected_runs: Sequence[SelectedRun]) -> list[TargetEvaluation]:
    """Return the evaluations of the selected runs that were evaluated."""
    evaluations = []
    for selected in selected_runs:
        figures = find_run_metrics(selected)
        if not isinstance(figures, RunMetrics):
            continue
        target_figures = figures.get_environment(selected.target)
        if target_figures:
            evaluation = TargetEvaluation(
                selected.row, selected.target, selected.run.folder, target_figures
            )
            evaluations.append(evaluation)
    return evaluations


def evaluated_names(
    selected_runs: Sequence[SelectedRun], evaluations: Sequence[TargetEvaluation]
) -> dict[str, str]:
    """Return algorithm -> its name, followed by the number of evaluated runs unless all were."""
    names = {}
    for algorithm in dict.fromkeys(evaluation.algorithm for evaluation in evaluations):
        folders = {entry.folder for entry in evaluations if entry.algorithm == algorithm}
        n_evaluated = len(folders)
        n_selected = len({run.run.folder for run in selected_runs if run.row == algorithm})
        names[algorithm] = algorithm
        if n_evaluated < n_selected:
            names[algorithm] += f" ({n_evaluated} of {n_selected} runs)"
    return names


def reliability(evaluations: Sequence[TargetEvaluation]) -> pd.DataFrame:
    """Count images by confidence, pooled over all evaluations of an algorithm.

    Returns:
        One row per algorithm, series and bin, with the columns ``algorithm``, ``series``
        (BEFORE_SCALING, and AT_TEMPERATURE if all runs of the algorithm have a temperature),
        ``bin``, ``images``, ``correct`` and ``confidence`` (summed over the images).
    """
    unscaled = {evaluation.algorithm for evaluation in evaluations if not evaluation.figures.scaled}
    rows = []
    for evaluation in evaluations:
        series = {BEFORE_SCALING: evaluation.figures.calibration}
        if evaluation.figures.scaled and evaluation.algorithm not in unscaled:
            series[AT_TEMPERATURE] = evaluation.figures.scaled
        for label, calibration in series.items():
            bins = calibration.reliability
            counts = zip(bins.images, bins.correct, bins.confidence)
            rows += [
                (evaluation.algorithm, label, number, *bin) for number, bin in enumerate(counts)
            ]

    columns = ["algorithm", "series", "bin", "images", "correct", "confidence"]
    return _sum_by(pd.DataFrame(rows, columns=columns), by=["algorithm", "series", "bin"])


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error in percent of one series of `reliability`."""
    return 100 * float((bins["correct"] - bins["confidence"]).abs().sum() / bins["images"].sum())


def flips(evaluations: Sequence[TargetEvaluation], environments: Sequence[str]) -> pd.DataFrame:
    """Count the images that zero-shot CLIP, the runs, both or neither predict correctly.

    Args:
        evaluations: evaluations on the targets.
        environments: labels of the dataset's environments.

    Returns:
        One row per environment and algorithm, with the columns ``environment``, ``algorithm``,
        ``gained``, ``lost``, ``both_right`` and ``both_wrong``.
    """
    rows = [
        {
            "environment": environments[evaluation.target],
            "algorithm": evaluation.algorithm,
            **dataclasses.asdict(evaluation.figures.flips),
        }
        for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.target)
    ]
    return _sum_by(pd.DataFrame(rows), by=["environment", "algorithm"])


def rows_by(frame: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Return value of a column -> its rows, in the order of first occurrence."""
    return {str(value): rows for value, rows in frame.groupby(column, sort=False)}


def _sum_by(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sum over rows with equal values of the columns ``by``, in the order of first occurrence."""
    return frame.groupby(by, sort=False, as_index=False).sum()
