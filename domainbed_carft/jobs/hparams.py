"""The resolved hyperparameters of a job, and the rules that are the same for all algorithms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import HparamProblem
from domainbed_carft.jobs.job import seed_hash
from domainbed_carft.suggestions import unknown

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
# The defaults of those that no algorithm declares, in every domainbed. None: there is no value.
DEFAULTS_OF_TRAIN = {"data_augmentation": True, "class_balanced": False, "shots": None}


@dataclass(frozen=True)
class ResolvedHparams:
    """The hyperparameters of a job.

    Attributes:
        values: all hyperparameters, in the order of the records.
        defaults: their defaults.
        problems: what is wrong with the values. If there are any, the job must not start.
        unread: names set by the user that do not affect the algorithm.
    """

    values: dict[str, Any]
    defaults: Mapping[str, Any]
    problems: Sequence[HparamProblem]
    unread: Sequence[str] = ()

    @property
    def changed(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
        return {
            name: value
            for name, value in self.values.items()
            if name not in self.defaults or self.defaults[name] != value
        }


def get_draw_seed(args: Mapping[str, Any]) -> int | None:
    """Return the seed of a job's random hyperparameters, or None if it has the defaults.

    Args:
        args: the arguments of train.
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
) -> ResolvedHparams:
    """Resolve the hyperparameters of an algorithm that declares none, as DomainBed does.

    The problems are unknown names, and invalid values that train itself reads.

    Args:
        registry: the host's `hparams_registry`.
        algorithm: name of the algorithm.
        dataset: name of the dataset.
        given: the values set by the user.
        random_seed: seed of the registry's random draws; None for its defaults.
    """
    defaults, values = read_registry(registry, algorithm, dataset, random_seed)
    problems = [
        *find_invalid(given, READ_BY_TRAIN),
        *find_unknown_names(registry, algorithm, given, defaults),
    ]
    return ResolvedHparams({**values, **given}, defaults, problems)


def read_registry(
    registry: Any, algorithm: str, dataset: str, random_seed: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults of a host's registry, and its draws or, without a seed, the defaults."""
    defaults = dict(registry.default_hparams(algorithm, dataset))
    if random_seed is None:
        return defaults, defaults
    return defaults, dict(registry.random_hparams(algorithm, dataset, random_seed))


def find_unknown_names(
    registry: Any,
    algorithm: str,
    given: Mapping[str, Any],
    defaults: Iterable[str],
    pins: Collection[str] = (),
) -> list[HparamProblem]:
    """Return a problem for each name set by the user that the algorithm does not have.

    Args:
        registry: the host's `hparams_registry`, which can have names without a default.
        algorithm: name of the algorithm.
        given: the values set by the user.
        defaults: names with a default.
        pins: names without a default that a user can set, and that messages do not list.
    """
    valid_names = sorted({*defaults, *getattr(registry, "OPTIONAL_HPARAMS", ())})
    kind = f"hyperparameter of {algorithm}"
    return [
        HparamProblem(
            name, value, message=unknown(kind, name, valid_names), valid_names=valid_names
        )
        for name, value in given.items()
        if name not in valid_names and name not in pins
    ]


def find_invalid(
    hparams: Mapping[str, Any], valid_values: Mapping[str, tuple[str, Any]]
) -> list[HparamProblem]:
    """Return a problem for each hyperparameter whose value is invalid.

    Args:
        hparams: name -> value.
        valid_values: name -> (expected value in words, function that checks a value).
    """
    return [
        HparamProblem(name, hparams[name], expected)
        for name, (expected, is_valid) in valid_values.items()
        if name in hparams and not is_valid(hparams[name])
    ]
