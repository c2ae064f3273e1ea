"""What the figures of a report are drawn from: pandas frames of the selected runs.

In-domain accuracy is the mean over the out-splits of the environments trained on, whose images
are augmented as DomainBed evaluates them; out-of-domain accuracy is that on the target's in-split,
which DomainBed reports. Both are in percent.
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
from domainbed_carft.results.columns import AVERAGE, DOMAINBED, ENVIRONMENTS, ErrorKind, figures_of
from domainbed_carft.results.evaluations import RunFigures, SplitFigures
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.tables import Table

RUN = ["dataset", "algorithm", "target", "trial"]
NO_TARGET = -1  # of a run that left nothing out
ACCURACIES = ["out_of_domain", "in_domain"]
# Recorded by our algorithms: how far the context distribution has moved, in nats and as a share.
DRIFT = ["loss_kl", "context_agreement"]

BEFORE_SCALING = "before scaling"
AT_TEMPERATURE = "at the fitted temperature"


# Accuracies


def accuracies(table: Table) -> pd.DataFrame:
    """The accuracies of a table and their averages, of those cells that have a value.

    Columns: ``column`` (ENVIRONMENTS or AVERAGE), ``environment``, ``algorithm``, ``accuracy``,
    ``error`` (nan without one), ``n`` and ``incomplete``.
    """
    rows = [
        [cell.column, cell.of, cell.row, cell.mean, cell.standard_error, cell.n, cell.is_incomplete]
        for cell in table.cells
        if cell.column in (ENVIRONMENTS, AVERAGE) and cell.mean is not None
    ]
    columns = ["column", "environment", "algorithm", "accuracy", "error", "n", "incomplete"]
    return pd.DataFrame(rows, columns=columns).astype({"accuracy": float, "error": float})


def checkpoints(selected_runs: Sequence[Selected]) -> pd.DataFrame:
    """A row for each checkpoint of the selected runs, sorted by RUN and step.

    Columns: RUN, ``step``, ``in_domain``, ``out_of_domain``, ``selected`` (whether the method takes
    this checkpoint) and, nan where they were not recorded, DRIFT, the agreement in percent. Runs
    that left nothing out have the target NO_TARGET, and no ``out_of_domain``.
    """
    rows: dict[tuple[object, ...], tuple[object, ...]] = {}
    for selected in selected_runs:
        run = selected.run
        target = selected.target if run.test_envs else NO_TARGET
        in_domain = selection.in_domain(run)
        in_splits, _ = selection.accuracies(run)
        out_of_domain = in_splits[:, target] if run.test_envs else np.full(len(in_domain), np.nan)
        drift = _drift_by_step(run)

        for step, inside, outside in zip(run.steps, in_domain, out_of_domain):
            key = (selected.dataset, selected.row, target, selected.trial, step)
            is_selected = step == selected.outcome.step
            kl, agreement = drift.get(step, [math.nan, math.nan])
            rows[key] = (*key, 100 * inside, 100 * outside, is_selected, kl, 100 * agreement)

    columns = [*RUN, "step", "in_domain", "out_of_domain", "selected", *DRIFT]
    frame = pd.DataFrame(rows.values(), columns=columns).astype({"selected": bool})
    return frame.sort_values([*RUN, "step"], ignore_index=True)


def _drift_by_step(run: RecordedRun) -> dict[float, list[float]]:
    """Step -> the values of DRIFT, which the algorithm measured and ``run`` does not hold."""
    return {
        float(record["step"]): [_finite_or_nan(record.get(name)) for name in DRIFT]
        for record in records.run_records(run)
    }


def _finite_or_nan(value: Any) -> float:
    is_finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return float(value) if is_finite else math.nan


def average_over_targets(frame: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Each trial's mean over the targets that it has, as in the tables.

    Of a trial's steps those count at which it has all of these targets: a line would jump where one
    ends. ``frame``: ``checkpoints`` of one dataset. Rows are (algorithm, trial), and step if it
    has one.
    """
    trial = ["algorithm", "trial"]
    keys = [*trial, "step"] if "step" in frame else trial
    by_step = frame.groupby(keys, sort=True)[list(values)]
    counts = by_step.count()
    has_all_targets = counts == counts.groupby(trial).transform("max")
    return by_step.mean()[has_all_targets & (counts > 0)].dropna(how="all").reset_index()


def average_over_trials_by_step(
    frame: pd.DataFrame, values: Sequence[str], error: ErrorKind = DOMAINBED
) -> pd.DataFrame:
    """Lines over steps: ``panel`` (a name of ``values``), ``algorithm``, ``step``, mean and error.

    A single trial has an error of 0.
    """
    lines = []
    for value in values:
        measured_rows = frame.dropna(subset=[value])
        for (algorithm, step), rows in measured_rows.groupby(["algorithm", "step"]):
            trials = rows[value].to_numpy()
            error_of_mean = error.of(trials) if len(trials) > 1 else 0.0
            lines.append((value, algorithm, step, trials.mean(), error_of_mean))
    return pd.DataFrame(lines, columns=["panel", "algorithm", "step", "mean", "error"])


def average_over_trials(frame: pd.DataFrame, error: ErrorKind = DOMAINBED) -> pd.DataFrame:
    """A row an algorithm: means of both accuracies, errors (nan of one trial), ``trials``.

    ``frame``: of `average_over_targets`. Columns: ``algorithm``, ``in_domain``, ``in_domain_error``,
    ``out_of_domain``, ``out_of_domain_error`` and ``trials``.
    """
    means = []
    for algorithm, rows in frame.dropna(subset=ACCURACIES).groupby("algorithm"):
        row: dict[str, object] = {"algorithm": algorithm}
        for name in ("in_domain", "out_of_domain"):
            trials = rows[name].to_numpy()
            row[name] = trials.mean()
            row[f"{name}_error"] = error.of(trials) if len(trials) > 1 else math.nan
        means.append({**row, "trials": len(rows)})

    columns = ["algorithm", "in_domain", "in_domain_error"]
    columns += ["out_of_domain", "out_of_domain_error", "trials"]
    return pd.DataFrame(means, columns=columns)


def choices(
    runs: Sequence[RecordedRun], method: str, first_stage: Sequence[RecordedRun] = ()
) -> pd.DataFrame:
    """A row for each choice of hyperparameters that the method had, where it had several.

    ``first_stage``: of a search in two stages, of which ``runs`` are the second.

    Columns: RUN, ``choice``, ``validation`` and ``out_of_domain`` accuracy, in [0, 1], at the
    checkpoint that the method takes, and ``selected``: whether this one was chosen for its target
    and trial.
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


# What `carft evaluate` measured


class TargetEvaluation(NamedTuple):
    """What was measured of a selected run on the environment that it left out."""

    algorithm: str
    target: int
    folder: str
    figures: SplitFigures


def target_evaluations(selected_runs: Sequence[Selected]) -> list[TargetEvaluation]:
    """The evaluations of the selected runs that have one."""
    evaluations = []
    for selected in selected_runs:
        figures = figures_of(selected)
        part = figures.of_environment(selected.target) if isinstance(figures, RunFigures) else None
        if part:
            folder = selected.run.folder
            evaluations.append(TargetEvaluation(selected.row, selected.target, folder, part))
    return evaluations


def evaluated_names(
    selected_runs: Sequence[Selected], evaluations: Sequence[TargetEvaluation]
) -> dict[str, str]:
    """Algorithm -> its name, with how many of its runs were evaluated unless all were."""
    names = {}
    for algorithm in dict.fromkeys(evaluation.algorithm for evaluation in evaluations):
        of_algorithm = [
            evaluation for evaluation in evaluations if evaluation.algorithm == algorithm
        ]
        n_evaluated = len({evaluation.folder for evaluation in of_algorithm})
        n_selected = len({run.run.folder for run in selected_runs if run.row == algorithm})
        names[algorithm] = algorithm
        if n_evaluated < n_selected:
            names[algorithm] += f" ({n_evaluated} of {n_selected} runs)"
    return names


def reliability(evaluations: Sequence[TargetEvaluation]) -> pd.DataFrame:
    """Numbers of images by confidence, all evaluated images of an algorithm as one set.

    Columns: ``algorithm``, ``series`` (BEFORE_SCALING, and AT_TEMPERATURE of those algorithms of
    which every run has a temperature), ``bin``, ``images``, ``correct``, and ``confidence``, the
    sum over the images.
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
    return _summed(pd.DataFrame(rows, columns=columns), by=["algorithm", "series", "bin"])


def calibration_error(bins: pd.DataFrame) -> float:
    """The expected calibration error of one algorithm and series of `reliability`, in percent."""
    return 100 * float((bins["correct"] - bins["confidence"]).abs().sum() / bins["images"].sum())


def flips(evaluations: Sequence[TargetEvaluation], environments: Sequence[str]) -> pd.DataFrame:
    """Numbers of images by whether zero-shot CLIP and the runs predict them correctly.

    ``environments``: their labels, by number. Columns: ``environment``, ``algorithm``, ``gained``,
    ``lost``, ``both_right``, ``both_wrong``.
    """
    rows = [
        {
            "environment": environments[evaluation.target],
            "algorithm": evaluation.algorithm,
            **dataclasses.asdict(evaluation.figures.flips),
        }
        for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.target)
    ]
    return _summed(pd.DataFrame(rows), by=["environment", "algorithm"])


def rows_by(frame: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Value of a column of names -> its rows, in the order of the first ones."""
    return {str(value): rows for value, rows in frame.groupby(column, sort=False)}


def _summed(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The sums over rows that are equal in the columns ``by``, in the order of the first ones."""
    return frame.groupby(by, sort=False, as_index=False).sum()
