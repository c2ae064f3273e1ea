"""The data of a report's figures that are not cells of its tables.

In-domain accuracy is the mean over the out-splits of the training environments, whose images are
augmented as in DomainBed. Out-of-domain accuracy is the accuracy on the target's in-split, which
DomainBed reports. Means over trials are those of `cells.mean_over_trials`, as in the tables.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.jobs.job import CHOOSE, Choice
from domainbed_carft.jobs.records import DRIFT, RecordedRun
from domainbed_carft.results import selection
from domainbed_carft.results.cells import Cell, ErrorKind, mean_over_trials
from domainbed_carft.results.selection import SelectedRun

NO_TARGET = -1  # for runs without a target

# Fields of a checkpoint
IN_DOMAIN = "in_domain"
OUT_OF_DOMAIN = "out_of_domain"
ACCURACIES = (OUT_OF_DOMAIN, IN_DOMAIN)

# Row -> step, or value of a hyperparameter -> its cell
Lines = Mapping[str, Mapping[float, Cell]]


class Checkpoint(NamedTuple):
    """A checkpoint of a selected run; accuracies and agreement in percent, nan if unknown.

    Attributes:
        row: name of the table's row.
        target: number of the target; NO_TARGET if no environment was held out.
        trial: the trial seed.
        step: the training step.
        in_domain: in-domain accuracy.
        out_of_domain: accuracy on the target.
        loss_kl: KL divergence of the context distribution from the original one, in nats.
        context_agreement: share of images with the same most likely context.
        is_selected: True for the checkpoint whose accuracy is in the table.
    """

    row: str
    target: int
    trial: int
    step: float
    in_domain: float
    out_of_domain: float
    loss_kl: float
    context_agreement: float
    is_selected: bool


def read_checkpoints(selected_runs: Sequence[SelectedRun]) -> list[Checkpoint]:
    """Return the checkpoints of selected runs on one dataset, by row, target, trial and step."""
    checkpoints = {}
    for selected in selected_runs:
        run = selected.run
        target = selected.target if run.test_envs else NO_TARGET
        in_domain = selection.in_domain_accuracies(run)
        in_splits, _ = selection.accuracies(run)
        out_of_domain = in_splits[:, target] if run.test_envs else np.full(len(in_domain), np.nan)
        drift = np.reshape(run.drift, (-1, len(DRIFT))).tolist()
        values = zip(run.steps, in_domain, out_of_domain, drift)
        for step, in_accuracy, out_accuracy, (kl, agreement) in values:
            checkpoint = Checkpoint(
                row=selected.row,
                target=target,
                trial=selected.trial,
                step=step,
                in_domain=100 * float(in_accuracy),
                out_of_domain=100 * float(out_accuracy),
                loss_kl=kl,
                context_agreement=100 * agreement,
                is_selected=step == selected.outcome.step,
            )
            checkpoints[checkpoint[:4]] = checkpoint
    return [checkpoints[key] for key in sorted(checkpoints)]


def average_by_step(checkpoints: Sequence[Checkpoint], name: str, error: ErrorKind) -> Lines:
    """Average a value over targets and trials at each step.

    A trial counts at the steps at which it has all of its targets, because a line would jump at the
    others.

    Args:
        checkpoints: the checkpoints, sorted by row.
        name: the field of the checkpoints.
        error: kind of the errors.
    """
    measured = [entry for entry in checkpoints if not math.isnan(getattr(entry, name))]
    targets = {(entry.row, entry.trial, entry.target) for entry in measured}
    n_targets = Counter((row, trial) for row, trial, _ in targets)
    n_measured = Counter((entry.row, entry.trial, entry.step) for entry in measured)
    lines: dict[str, dict[float, Cell]] = {}
    by_step = sorted(measured, key=lambda entry: (entry.row, entry.step))
    for (row, step), group in itertools.groupby(by_step, lambda entry: (entry.row, entry.step)):
        values = [
            (entry.trial, getattr(entry, name))
            for entry in group
            if n_measured[row, entry.trial, step] == n_targets[row, entry.trial]
        ]
        if values:
            lines.setdefault(row, {})[step] = mean_over_trials(values, error=error, scale=1)
    return lines


class ChoiceOutcome(NamedTuple):
    """One choice of hyperparameters in one trial of a search, at its selected checkpoint.

    Attributes:
        row: name of the table's row.
        target: number of the target.
        trial: the trial seed.
        choice: the hyperparameters.
        validation: validation accuracy in [0, 1].
        out_of_domain: accuracy on the target in [0, 1].
        is_selected: True if the choice was selected for its target and trial.
    """

    row: str
    target: int
    trial: int
    choice: Choice
    validation: float
    out_of_domain: float
    is_selected: bool


def list_choices(
    runs: Sequence[RecordedRun], method: str, first_stage: Sequence[RecordedRun] = ()
) -> list[ChoiceOutcome]:
    """Return the choices of hyperparameters in each trial that has several.

    Args:
        runs: the runs of the search, or of the second stage of a search in two stages.
        method: selection method.
        first_stage: runs of the first stage, if there are two stages.
    """
    repeated_values = {
        (run.row, target, run.job.choice.values) for run in runs for target in run.test_envs
    }
    choices = []
    for candidates in selection.candidates_by_target([*runs, *first_stage]):
        outcomes = selection.rank_outcomes(candidates, selection.METHODS[method])
        if len(outcomes) < 2:
            continue
        for outcome in outcomes:
            is_selected = outcome is outcomes[0]
            if outcome.run.job.role.stage == CHOOSE and first_stage:
                values = outcome.choice.values
                is_selected = (candidates.row, candidates.target, values) in repeated_values
            choice = ChoiceOutcome(
                row=candidates.row,
                target=candidates.target,
                trial=candidates.trial,
                choice=outcome.choice,
                validation=outcome.validation,
                out_of_domain=outcome.accuracy,
                is_selected=is_selected,
            )
            choices.append(choice)
    return choices
