"""The resolved hyperparameters of a job, and the rules that are the same for all algorithms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import HparamProblem
from domainbed_carft.jobs.job import seed_hash
from domainbed_carft.text import unknown

# The expected values, for messages, and a check. Without it a text such as "no" would be true.
SWITCH = ("true or false", lambda value: isinstance(value, int) and value in (0, 1))
_SIZE = (
    "a whole number of at least 1 and less than 2147483648",
    lambda value: type(value) is int and 1 <= value < 2**31,
)
# Hyperparameters that train reads for all algorithms.
READ_BY_TRAIN = {
    **dict.fromkeys(("data_augmentation", "class_balanced"), SWITCH),
    **dict.fromkeys(("batch_size", "shots"), _SIZE),
}


@dataclass(frozen=True)
class ResolvedHparams:
    """The hyperparameters of a job.

    Attributes:
        values: All hyperparameters, in the order of the records.
        changed: Those that differ from the defaults.
        unread: Names set by the user that do not affect the algorithm.
        problems: What is wrong with the values. If there are any, the job must not start.
    """

    values: dict[str, Any]
    changed: Mapping[str, Any]
    problems: Sequence[HparamProblem]
    unread: Sequence[str] = ()


def get_draw_seed(args: Mapping[str, Any]) -> int | None:
    """Return the seed of a job's random hyperparameters, or None if it has the defaults.

    Args:
        args: The arguments of train.
    """
    if not args["hparams_seed"]:
        return None
    return seed_hash(args["hparams_seed"], args["trial_seed"])


def resolve_from_registry(
    registry: Any,
    algorithm: str,
    dataset: str,
    given: Mapping[str, Any],
    random_seed: int | None = None,
    *,
    own_defaults: Mapping[str, Any] = {},
    own_draws: Mapping[str, Any] = {},
    pins: Collection[str] = (),
    registered_as: str = "",
) -> ResolvedHparams:
    """Resolve the hyperparameters of an algorithm as DomainBed does.

    The problems are unknown names, and invalid values that train itself reads.

    Args:
        registry: The host's `hparams_registry`.
        algorithm: Name of the algorithm.
        dataset: Name of the dataset.
        given: The values set by the user.
        random_seed: Seed of the registry's random draws; None for its defaults.
        own_defaults: Defaults that the algorithm declares itself, which replace the registry's.
        own_draws: Random draws of these hyperparameters; empty for the defaults.
        pins: Names without a default that a user can set, and that messages do not list.
        registered_as: Name of the algorithm in the registry, by default the same.
    """
    registered_name = registered_as or algorithm
    defaults = {**registry.default_hparams(registered_name, dataset), **own_defaults}
    values = defaults
    if random_seed is not None:
        draws = registry.random_hparams(registered_name, dataset, random_seed)
        values = {**draws, **own_defaults, **own_draws}
    values = {**values, **given}
    changed = {
        name: value
        for name, value in values.items()
        if name not in defaults or defaults[name] != value
    }

    valid_names = sorted({*defaults, *getattr(registry, "OPTIONAL_HPARAMS", ())})
    problems = find_invalid(given, READ_BY_TRAIN)
    for name, value in given.items():
        if name not in valid_names and name not in pins:
            message = unknown(f"hyperparameter of {algorithm}", name, valid_names)
            problems.append(HparamProblem(name, value, message=message, valid_names=valid_names))
    return ResolvedHparams(values, changed, problems)


def find_invalid(
    hparams: Mapping[str, Any], valid_values: Mapping[str, tuple[str, Any]]
) -> list[HparamProblem]:
    """Return a problem for each hyperparameter whose value is invalid.

    Args:
        hparams: Name -> value.
        valid_values: Name -> (expected value in words, function that checks a value).
    """
    return [
        HparamProblem(name, hparams[name], expected)
        for name, (expected, is_valid) in valid_values.items()
        if name in hparams and not is_valid(hparams[name])
    ]
