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
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection

RUN = ["dataset", "algorithm", "target", "trial"]
NOTHING = -1  # the target of a run that left nothing out
# Recorded by our algorithms: how far the context distribution has moved.
DRIFT = ("loss_kl", "context_agreement")


def checkpoints(runs: Sequence[Run], method: str) -> pd.DataFrame:
    """A row for each checkpoint of the runs that the method selects, sorted by RUN and step.

    Columns: RUN, ``step``, ``in_domain``, ``out_of_domain``, ``selected`` (the checkpoint that the
    method takes) and, nan where they were not recorded, DRIFT. Runs that left nothing out have the
    target NOTHING, and no ``out_of_domain``.
    """
    rows: dict[tuple[object, ...], tuple[object, ...]] = {}
    for one in selection.select(runs, method):
        run = one.outcome.runs[0]
        target = one.target if run.test_envs else NOTHING
        outside = selection.accuracies(run)[0][:, target]
        outside = outside if run.test_envs else np.full_like(outside, np.nan)
        # What the algorithm measured, which ``run`` does not keep.
        drift = {
            float(record["step"]): [_number(record.get(name)) for name in DRIFT]
            for record in records.of_run(run)
        }
        for step, inside, out in zip(run.steps, selection.in_domain(run), outside):
            key = (one.dataset, one.algorithm, target, one.trial, step)
            moved = drift.get(step, [np.nan] * len(DRIFT))
            rows[key] = (*key, inside, out, step == one.outcome.step, *moved)
    columns = [*RUN, "step", "in_domain", "out_of_domain", "selected", *DRIFT]
    frame = pd.DataFrame(rows.values(), columns=columns).astype({"selected": bool})
    return frame.sort_values([*RUN, "step"], ignore_index=True)


def _number(value: Any) -> float:
    known = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return float(value) if known else np.nan


def over_targets(frame: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Each trial's mean over the targets, if the trial has every target that any algorithm has.

    A value that is missing or NaN for one of the targets has no mean.
    ``frame``: ``checkpoints`` of one data set. Rows are (algorithm, trial), and step if it has one.
    """
    wanted = frame["target"].nunique()
    keys = ["algorithm", "trial"] + ["step"] * ("step" in frame)
    grouped = frame.groupby(keys, sort=True)
    means = grouped[list(values)].mean()
    return means[grouped[list(values)].count() == wanted].dropna(how="all").reset_index()


def over_trials(frame: pd.DataFrame, value: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """(algorithm, frame of ``mean`` and the tables' ``error`` by step) of all that have values."""
    known = frame.dropna(subset=[value])
    for algorithm, rows in known.groupby("algorithm", sort=False):
        grouped = rows.groupby("step")[value]
        line = {"mean": grouped.mean(), "error": grouped.sem(ddof=0)}
        yield str(algorithm), pd.DataFrame(line)
