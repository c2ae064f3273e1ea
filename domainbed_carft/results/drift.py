"""Hyperparameters that changed while a sweep ran, as after an update of a package's defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from domainbed_carft.jobs.records import Run

_SHOWN = 5


def notes(runs: Iterable[Run]) -> Iterator[str]:
    """A sentence for each choice of hyperparameters that is not the same in runs of one group.

    hparams_seed 0 is the defaults, in every trial; the others are drawn for each trial anew.
    """
    found: dict[tuple[Any, ...], dict[str, None]] = {}
    for run in runs:
        trial = run.trial if run.choice else None
        key = (run.dataset, run.algorithm, run.choice, trial)
        found.setdefault(key, {})[run.hparams] = None
    several = [(key, list(texts)) for key, texts in found.items() if len(texts) > 1]
    for (dataset, algorithm, choice, trial), texts in several[:_SHOWN]:
        of_trial = "" if trial is None else f" of trial {trial}"
        yield (
            f"{algorithm} on {dataset}, hparams_seed {choice}{of_trial}: the hyperparameters "
            f"differ between runs, in {differences(texts)}."
        )
    if len(several) > _SHOWN:
        yield f"... and so do {len(several) - _SHOWN} more choices of hyperparameters."


def differences(texts: Iterable[str]) -> str:
    """In which hyperparameters the JSON objects differ, and how; "" if they do not."""
    hparams = [json.loads(text) for text in texts]
    names = sorted({name for one in hparams for name in one})
    values = {
        name: dict.fromkeys(json.dumps(one.get(name), sort_keys=True) for one in hparams)
        for name in names
    }
    told = [f"{name} ({', '.join(found)})" for name, found in values.items() if len(found) > 1]
    return "; ".join(told[:_SHOWN]) + (", and more" if len(told) > _SHOWN else "")
