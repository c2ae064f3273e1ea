"""Which hyperparameters a job of ours gets without ``--hparams``, and how a job's differ from them.

Of the algorithms of other packages nothing is known: their defaults are their domainbed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.jobs.job import overrides, seed_hash
from domainbed_carft.method import hparams

# What a run fills in for its record; nobody sets it but to repeat a run.
FILLED_IN = ("prompts_digest", "clip_digest", "clip_revision", "preprocessing", "data_edition")

# The value of a hyperparameter that a run replaces by what suits its device.
_RESOLVED_BY_RUN = "auto"


def defaults(
    algorithm: str, dataset: str, hparams_set: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Hyperparameter -> default of an algorithm of ours on a data set; empty for any other.

    ``hparams_set``: those set by ``--hparams``, of which ``clip_backbone`` changes other defaults.
    What a run fills in for its record is left out.
    """
    return _values(algorithm, dataset, hparams_set or {}, random_seed=None)


def expected_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a job with these arguments of ``train`` will have, as far as known.

    All of an algorithm of ours, drawn if the hparams seed is not 0, but for those that it resolves
    on its device; of others those that ``--hparams`` sets.
    """
    hparams_set = overrides(args)
    is_drawn = args["hparams_seed"] != 0
    random_seed = seed_hash(args["hparams_seed"], args["trial_seed"]) if is_drawn else None
    values = _values(args["algorithm"], args["dataset"], hparams_set, random_seed) | hparams_set
    return {name: value for name, value in values.items() if value != _RESOLVED_BY_RUN}


def without_defaults(
    algorithm: str, dataset: str, values: Mapping[str, Any], clip_backbone: str = ""
) -> dict[str, Any]:
    """The ``values`` of a run's hyperparameters that are not the default, in their order.

    ``clip_backbone``: the run's, which changes other defaults. Of algorithms that are not ours all
    are returned.
    """
    hparams_set = {"clip_backbone": clip_backbone} if clip_backbone else {}
    usual_values = defaults(algorithm, dataset, hparams_set)
    changed = {}
    for name, value in values.items():
        if name not in usual_values or value != usual_values[name]:
            changed[name] = value

    if clip_backbone and clip_backbone == defaults(algorithm, dataset).get("clip_backbone"):
        changed.pop("clip_backbone", None)
    return changed


def _values(
    algorithm: str, dataset: str, hparams_set: Mapping[str, Any], random_seed: int | None
) -> dict[str, Any]:
    """The defaults, or with a ``random_seed`` the values that a random search draws by it."""
    if algorithm not in hparams.ALGORITHMS:
        return {}

    index = 0 if random_seed is None else 1  # in the pairs of default and random value
    pairs = hparams.overlay(algorithm, dataset, random_seed or 0)
    values = {name: pair[index] for name, pair in pairs.items() if name not in FILLED_IN}
    return values | hparams.implied(algorithm, dataset, hparams_set, random_seed)
