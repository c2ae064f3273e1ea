"""Which hyperparameters a job of ours gets without ``--hparams``, and how a job's differ from them.

Of the algorithms of other packages nothing is known: their defaults are their domainbed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import overrides, seed_hash
from domainbed_carft.results.top import RECORDED_FACTS

# The value of a hyperparameter that a run replaces by what suits its device.
_RESOLVED_BY_RUN = "auto"


def defaults(
    algorithm: str,
    dataset: str,
    hparams_set: Mapping[str, Any] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Hyperparameter -> default of an algorithm of ours on a data set; empty for any other.

    ``hparams_set``: those set by ``--hparams``, of which ``clip_backbone`` changes other defaults;
    ``steps``: that the job trains, if they are set.
    What a run fills in for its record is left out.
    """
    return _values(algorithm, dataset, hparams_set or {}, random_seed=None, steps=steps)


def expected_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a job with these arguments of ``train`` will have, as far as known.

    All of an algorithm of ours, drawn if the hparams seed is not 0, but for those that it resolves
    on its device; of others those that ``--hparams`` sets.
    """
    hparams_set = overrides(args)
    is_drawn = args["hparams_seed"] != 0
    random_seed = seed_hash(args["hparams_seed"], args["trial_seed"]) if is_drawn else None
    values = _values(
        args["algorithm"], args["dataset"], hparams_set, random_seed, steps=args.get("steps")
    )
    values |= hparams_set
    return {name: value for name, value in values.items() if value != _RESOLVED_BY_RUN}


def changed_hparams(
    algorithm: str,
    dataset: str,
    recorded: Mapping[str, Any],
    hparams_set: Mapping[str, Any],
    is_drawn: bool,
    steps: int | None = None,
) -> dict[str, Any]:
    """The hyperparameters of a run that differ from the defaults, those set by ``--hparams`` first.

    ``recorded``: all of the run; ``is_drawn``: whether a random search drew them; ``steps``: that
    the run trained, if they were set. Of algorithms that are not ours these are the ones that
    were set, and if they were drawn, all.
    """
    clip_backbone = recorded.get("clip_backbone")
    hparams_of_backbone = {"clip_backbone": clip_backbone} if clip_backbone else {}
    usual_values = defaults(algorithm, dataset, hparams_of_backbone, steps)

    changed = {}
    for name in dict.fromkeys([*hparams_set, *recorded]):
        is_recorded = name in recorded and name not in RECORDED_FACTS
        if is_recorded and name in usual_values:
            is_resolved = usual_values[name] == _RESOLVED_BY_RUN and name not in hparams_set
            is_changed = recorded[name] != usual_values[name] and not is_resolved
        else:
            is_changed = name in hparams_set or (is_drawn and not usual_values)

        if is_recorded and is_changed:
            changed[name] = recorded[name]
    return changed


def _values(
    algorithm: str,
    dataset: str,
    hparams_set: Mapping[str, Any],
    random_seed: int | None,
    steps: int | None,
) -> dict[str, Any]:
    """The defaults, or with a ``random_seed`` the values that a random search draws by it."""
    if algorithm not in ALGORITHMS:
        return {}

    from domainbed_carft.method import algorithms  # takes the seconds of importing torch

    index = 0 if random_seed is None else 1  # in the pairs of default and random value
    pairs = algorithms.overlay(algorithm, dataset, random_seed or 0)
    values = {name: pair[index] for name, pair in pairs.items() if name not in RECORDED_FACTS}
    return values | algorithms.implied(algorithm, dataset, hparams_set, random_seed, steps)
