"""Which weights of a run stand for it: of the selected checkpoint where kept. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import selection
from domainbed_carft.results.selection import Selected


class Weights(NamedTuple):
    """``which`` of WEIGHTS, the step that they are of, and the step that was selected."""

    run: Run
    which: str
    step: float
    selected: float

    @property
    def remark(self) -> str:
        """What they are, and whether they are those of the table."""
        text = f"{self.run.algorithm}: {WEIGHTS[self.which]}, of step {self.step:g}"
        if self.step == self.selected:
            return f"{text}, which was selected"
        return f"{text}; the weights of step {self.selected:g}, which was selected, were not kept"


def of(one: Selected) -> Weights | None:
    """The weights of what was selected; None where neither file is there."""
    run = one.outcome.runs[0]
    steps = {"last": max(run.steps), "best": _best_step(run, one.target)}
    there = [which for which in WEIGHTS if os.path.exists(os.path.join(run.folder, WEIGHTS[which]))]
    if not there:
        return None
    right = [which for which in there if steps[which] == one.outcome.step]
    which = (right or there)[0]
    return Weights(run, which, steps[which], one.outcome.step)


def _best_step(run: Run, target: int) -> float:
    """Where ``model_best.pkl`` was saved: the first highest mean of the training out-splits."""
    outs = selection.accuracies(run)[1]
    training = [i for i in range(run.n_environments) if i not in run.test_envs]
    means = np.ascontiguousarray(outs[:, training]).mean(axis=1)
    return run.steps[int(np.nan_to_num(means, nan=-np.inf).argmax())]


def pairs(
    selected: Sequence[Selected], names: Sequence[str], dataset: str, target: int
) -> tuple[list[Weights], str]:
    """The weights of both algorithms in the first trial that has both, else why there are none."""
    mine = [s for s in selected if s.dataset == dataset and s.target == target]
    by_algorithm = {name: {s.trial: s for s in mine if s.algorithm == name} for name in names}
    trials = sorted(set.intersection(*(set(found) for found in by_algorithm.values())))
    if not trials:
        return [], f"No trial has both {' and '.join(names)}: their jobs are missing, see below."
    for trial in trials:
        found = [of(by_algorithm[name][trial]) for name in names]
        whole = [weights for weights in found if weights is not None]
        if len(whole) == len(names):
            return whole, ""
    without = [
        by_algorithm[name][trials[0]].outcome.runs[0].folder
        for name in names
        if of(by_algorithm[name][trials[0]]) is None
    ]
    return [], (
        f"No weights: neither {' nor '.join(WEIGHTS.values())} in {' and '.join(without)}. Jobs "
        "keep them unless they run with --skip_model_save or --keep_weights none; train these "
        "again without."
    )


def originals(selected: Sequence[Selected], dataset: str, target: int, trial: int) -> list[Weights]:
    """The runs of this place with the encoder of an original CLIP, whose weights are there."""
    place = (dataset, target, trial)
    return [
        found
        for name in ("CLIPZeroShot", "CLIPLinearProbe")
        for one in selected
        if one.algorithm == name and (one.dataset, one.target, one.trial) == place
        if (found := of(one)) is not None
    ]
