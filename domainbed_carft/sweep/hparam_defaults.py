"""Which hyperparameters a planned job of ours will have.

Of the algorithms of other packages nothing is known: their defaults are their domainbed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import overrides
from domainbed_carft.results.top import RECORDED_FACTS
from domainbed_carft.sweep import host

# The value of a hyperparameter that a run replaces by what suits its device.
_RESOLVED_BY_RUN = "auto"


def expected_hparams(args: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a job with these arguments of ``train`` will have, as far as known.

    All of an algorithm of ours, drawn if the hparams seed is not 0, but for those that it resolves
    on its device; of others those that ``--hparams`` sets.
    """
    hparams_set = overrides(args)
    if args["algorithm"] not in ALGORITHMS:
        return hparams_set

    hparams = host.job_hparams(args)
    filled_in = {*RECORDED_FACTS} - hparams_set.keys()
    return {
        name: value
        for name, value in hparams.items()
        if value != _RESOLVED_BY_RUN and name not in filled_in
    }
