"""The hyperparameters that each method of selection ranks highest, ready to train with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from domainbed_carft.jobs.setting import overrides
from domainbed_carft.results import labels as environments
from domainbed_carft.results import selection
from domainbed_carft.results.selection import Outcome, Selected
from domainbed_carft.results.settings import Group

# What a run has found out and recorded; given again, another data set would be refused.
_FILLED_IN = ("prompts_digest", "clip_digest", "data_edition")


def best(groups: Iterable[Group], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """An entry for each (data set, algorithm, target, trial) and method, of each group."""
    for group in groups:
        labels = environments.labels(group.runs)
        for method in methods:
            seen = set()
            for one in sorted(selection.select(group.runs, method), key=lambda s: s[:4]):
                # Jobs that leave nothing out select the same for each of their columns.
                place = (*one[:2], one.trial)
                if selection.METHODS[method].leaves_out or place not in seen:
                    yield _entry(group.title, method, labels, one)
                seen.add(place)


def _entry(
    setting: str, method: str, labels: dict[str, tuple[str, ...]], one: Selected
) -> dict[str, Any]:
    left_out = selection.METHODS[method].leaves_out
    chosen = one.outcome
    hparams: dict[str, Any] = dict(chosen.runs[0].recorded)
    return {
        "setting": setting,
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
        "hparams": hparams,
        "argument": argument(hparams, chosen),
        "folders": [run.folder for run in chosen.runs],
    }


def argument(hparams: dict[str, Any], chosen: Outcome) -> str:
    """``--hparams`` with its value, quoted for a shell."""
    overridden = overrides(chosen.runs[0].job.args)
    kept = {
        name: value
        for name, value in hparams.items()
        if name not in _FILLED_IN or name in overridden
    }
    return f"--hparams {shlex.quote(json.dumps(kept, sort_keys=True))}"
