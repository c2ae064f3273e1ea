"""The hyperparameters that each method of selection ranks highest, ready to train with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from domainbed_carft.jobs.records import Run
from domainbed_carft.jobs.setting import overrides
from domainbed_carft.results import labels as environments
from domainbed_carft.results import selection
from domainbed_carft.results.settings import Group

# What a run has found out and recorded; given again, another data set would be refused.
_FILLED_IN = ("prompts_digest", "clip_digest", "data_edition")


def best(groups: Iterable[Group], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """An entry for each (data set, algorithm, target, trial) and method, of each group."""
    for group in groups:
        labels = environments.labels(group.runs)
        for method in methods:
            left_out = selection.METHODS[method].leaves_out
            for one in sorted(selection.select(group.runs, method), key=lambda s: s[:4]):
                if not left_out and one.target:
                    continue  # jobs that leave nothing out select the same for each column
                chosen = one.outcome
                yield {
                    "setting": group.title,
                    "selection": method,
                    "dataset": one.dataset,
                    "algorithm": one.algorithm,
                    "test_env": one.target if left_out else None,
                    "environment": labels[one.dataset][one.target] if left_out else None,
                    "trial_seed": one.trial,
                    "hparams_seed": chosen.choice,
                    "step": int(chosen.step),
                    "validation_accuracy": chosen.validation,
                    "accuracy": chosen.accuracy if left_out else None,
                    "hparams": dict(chosen.runs[0].recorded),
                    "argument": _argument(chosen.runs[0]),
                    "folders": [run.folder for run in chosen.runs],
                }


def _argument(run: Run) -> str:
    """``--hparams`` with its value, quoted for a shell."""
    drop = {*_FILLED_IN} - overrides(run.job.args).keys()
    kept = {name: value for name, value in run.recorded.items() if name not in drop}
    return f"--hparams {shlex.quote(json.dumps(kept, sort_keys=True))}"
