"""The resolution of a job's hyperparameters: complete, checked, and compared with the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from domainbed_carft.jobs.hparams import (
    READ_BY_TRAIN,
    ResolvedHparams,
    resolve_from_registry,
)
from domainbed_carft.method import averages, lora, penalties
from domainbed_carft.method.host_lookup import is_carft_harness
from domainbed_carft.method.hparam_checks import find_problems
from domainbed_carft.method.hparam_tables import get_hparams, get_recorded_hparams
from domainbed_carft.method.hparams import PINNABLE, Conditions, draw_values, get_defaults

# Hyperparameters without an effect on an algorithm that trains nothing.
_TRAINING_HPARAMS = {
    *"head_init head_scale lr weight_decay weight_decay_all lr_schedule warmup_steps".split(),
    *"total_steps grad_clip checkpoint_blocks compile_blocks".split(),
    *(hparam.name for hparam in (*averages.HPARAMS, *lora.HPARAMS)),
}


def resolve(
    algorithm: Any,
    dataset: str,
    given: Mapping[str, Any],
    random_seed: int | None = None,
    steps: int | None = None,
) -> ResolvedHparams:
    """Return the hyperparameters of a job, with all problems of their names and values.

    Args:
        algorithm: class of the algorithm.
        dataset: name of the dataset.
        given: the values set by the user.
        random_seed: seed of random draws, None for the defaults.
        steps: number of training steps, None for the dataset's default.

    Returns:
        The values of the host and of all methods, as recorded.
    """
    from domainbed import hparams_registry

    table = get_recorded_hparams(algorithm)
    conditions = Conditions(dataset, str(given.get("clip_backbone", "")), steps)
    resolved = resolve_from_registry(
        hparams_registry,
        algorithm.__name__,
        dataset,
        given,
        random_seed,
        own_defaults=get_defaults(table, conditions),
        own_draws=draw_values(table, conditions, random_seed),
        pins=PINNABLE,
        # The harness has the same for all algorithms. For those of this package, its registry
        # would compute their own values a second time.
        registered_as="ERM" if is_carft_harness() else "",
    )
    checked = {name: hparam for name, hparam in table.items() if name not in READ_BY_TRAIN}
    problems = find_problems(algorithm, checked, resolved.values, conditions)
    return replace(
        resolved,
        problems=[*resolved.problems, *problems],
        unread=_find_unread(algorithm, given),
    )


def _find_unread(algorithm: Any, given: Mapping[str, Any]) -> list[str]:
    """Return the names in ``given`` without an effect, such as penalties that cannot be added."""
    read = {*get_hparams(algorithm), *PINNABLE}
    if not (algorithm.trains_encoder and algorithm.takes_penalties):
        read -= {"drift_every", "kl_direction"}
        read -= {hparam.name for hparam in penalties.HPARAMS}
    if algorithm.is_constant:
        read -= _TRAINING_HPARAMS
    return [name for name in given if name not in read and name not in READ_BY_TRAIN]
