"""Which hyperparameters a planned job of ours will have.

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
