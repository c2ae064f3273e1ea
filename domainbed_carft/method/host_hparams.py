"""The hyperparameters of a host's algorithm, such as DomainBed's CORAL, that trains a CLIP model.

The hyperparameter ``clip_backbone`` gives such an algorithm the image encoder of a CLIP model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from domainbed_carft.errors import HparamProblem
from domainbed_carft.jobs.hparams import (
    READ_BY_TRAIN,
    ResolvedHparams,
    find_invalid,
    find_unknown_names,
    read_registry,
)
from domainbed_carft.method import resolution
from domainbed_carft.method.hparams import (
    CLIP_HEAD,
    COMMON,
    PINNABLE,
    Conditions,
    Hparam,
    draw_values,
    get_defaults,
    learning_rate,
)

# The learning rates of featurizers in upstream's registry. RDM and EQRM use theirs from the end of
# their first phase on.
RATES = ("lr", "lr_g", "linear_lr", "rdm_lr", "eqrm_lr")

_COMMON_NAMES = ("clip_backbone", "contexts", "class_names", "protocol")
TABLE: dict[str, Hparam] = {
    **{hparam.name: hparam for hparam in COMMON if hparam.name in _COMMON_NAMES},
    CLIP_HEAD.name: CLIP_HEAD,
}

# Hyperparameters that upstream's other featurizers read.
_OTHER_FEATURIZERS = (
    "resnet18",
    "resnet50_augmix",
    "resnet_dropout",
    "vit",
    "dinov2",
    "vit_attn_tune",
    "vit_dropout",
)


def get_added_values(
    host_values: Mapping[str, Any],
    given: Mapping[str, Any],
    dataset: str,
    random_seed: int | None = None,
) -> dict[str, Any]:
    """Return the hyperparameters to add to those of a host, or to replace there.

    These are the names of ``TABLE`` except the CLIP model, and the learning rates of the host's
    featurizer. Their defaults and draws are those of this package's methods with the CLIP model,
    because the defaults of DomainBed are for a ResNet.

    Args:
        host_values: the defaults or draws of the host.
        given: the values set by the user, with ``clip_backbone``.
        dataset: name of the dataset, "" if it is not known.
        random_seed: seed of random draws; None for the defaults.
    """
    conditions = Conditions(dataset, str(given["clip_backbone"]))
    added = {name: hparam for name, hparam in TABLE.items() if name != "clip_backbone"}
    if not dataset:
        del added["class_names"]
    rates = get_rates(host_values, given["clip_backbone"], dataset, random_seed)
    values = {**get_defaults(added, conditions), **rates}
    return {name: value for name, value in values.items() if name not in given}


def get_rates(
    host_values: Collection[str], clip_backbone: Any, dataset: str, random_seed: int | None = None
) -> dict[str, float]:
    """Return this package's default, or draw, of each learning rate that a host has.

    Args:
        host_values: names of the host's hyperparameters.
        clip_backbone: the CLIP model.
        dataset: name of the dataset, "" if it is not known.
        random_seed: seed of random draws; None for the defaults.
    """
    conditions = Conditions(dataset, str(clip_backbone))
    table = {name: replace(learning_rate(), name=name) for name in RATES if name in host_values}
    return {**get_defaults(table, conditions), **draw_values(table, conditions, random_seed)}


def resolve(
    registry: Any,
    algorithm: str,
    dataset: str,
    given: Mapping[str, Any],
    random_seed: int | None = None,
) -> ResolvedHparams:
    """Return the hyperparameters of a job, with all problems of their names and values.

    Args:
        registry: the host's `hparams_registry`.
        algorithm: name of the host's algorithm.
        dataset: name of the dataset.
        given: the values set by the user, with ``clip_backbone``.
        random_seed: seed of random draws; None for the defaults.
    """
    host_defaults, host_values = read_registry(registry, algorithm, dataset, random_seed)
    defaults = {**host_defaults, **get_added_values(host_defaults, given, dataset)}
    added_values = get_added_values(host_values, given, dataset, random_seed)
    values = {**host_values, **added_values, **given}
    problems = [
        *find_invalid(given, READ_BY_TRAIN),
        *find_unknown(registry, algorithm, given, defaults),
        *find_problems(values, dataset),
    ]
    return ResolvedHparams(values, defaults, problems, find_unread(given, host_defaults))


def find_unknown(
    registry: Any, algorithm: str, given: Mapping[str, Any], host_names: Collection[str]
) -> list[HparamProblem]:
    """Return a problem for each name set by the user that nothing in the job could read.

    Names of this package's methods are accepted, so that one ``--hparams`` of a sweep can be passed
    to all its algorithms.

    Args:
        registry: the host's `hparams_registry`.
        algorithm: name of the host's algorithm.
        given: the values set by the user.
        host_names: names that the host's registry has for the algorithm.
    """
    pins = {*PINNABLE, *resolution.get_hparams_of_others()}
    return find_unknown_names(registry, algorithm, given, {*host_names, *TABLE}, pins)


def find_problems(hparams: Mapping[str, Any], dataset: str = "") -> list[HparamProblem]:
    """Return the problems of complete hyperparameters that concern the CLIP model."""
    table = dict(TABLE)
    if hparams["clip_head"] == "random":
        del table["contexts"]
    missing = []
    if "class_names" not in hparams and "contexts" in table:
        missing = [HparamProblem("class_names", None, message=resolution.NO_CLASS_NAMES)]
    return [
        *missing,
        *resolution.find_invalid_values(hparams, table),
        *resolution.find_clip_problems(hparams, table, Conditions(dataset), min_contexts=1),
    ]


def find_unread(given: Mapping[str, Any], host_names: Collection[str]) -> list[str]:
    """Return the names set by the user that do not affect an algorithm of the host.

    Args:
        given: the values set by the user.
        host_names: names that the host's registry has for the algorithm.
    """
    has_words = given.get("clip_head") == "zero-shot"
    unread = {*resolution.get_hparams_of_others()} - {*TABLE, *host_names, *READ_BY_TRAIN}
    unread |= {*_OTHER_FEATURIZERS} | (set() if has_words else {"contexts"})
    return [name for name in given if name in unread]
