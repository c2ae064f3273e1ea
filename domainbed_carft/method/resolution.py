"""The hyperparameters of a job: which ones there are, their values, and the checks of all values.

`resolve` computes the values and problems of a job in the harness, for `train` and for a sweep. The
constructor of an algorithm, in any host, uses `complete` and the same checks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import HparamProblem, collect_problems
from domainbed_carft.images.dataset_facts import parse_dataset_name
from domainbed_carft.jobs.hparams import (
    DEFAULTS_OF_TRAIN,
    READ_BY_TRAIN,
    ResolvedHparams,
    find_invalid,
    find_unknown_names,
    read_registry,
)
from domainbed_carft.method import averages, lora, penalties, prompts, shipped
from domainbed_carft.method.hparams import (
    CLIP_HEAD,
    COMMON,
    PINNABLE,
    Conditions,
    Hparam,
    draw_values,
    get_defaults,
)

# Hyperparameters without an effect on an algorithm that trains nothing.
_TRAINING_HPARAMS = {
    *"head_init head_scale lr weight_decay weight_decay_all lr_schedule warmup_steps".split(),
    *"total_steps grad_clip checkpoint_blocks compile_blocks".split(),
    *(hparam.name for hparam in (*averages.HPARAMS, *lora.HPARAMS)),
}

# Hparams used by a single method, which other methods would silently ignore.
_METHOD_HPARAMS = {"margin": "CLIPood has a margin", "lp_steps": "CLIPLPFT probes first"}

_NO_DATASET = Conditions(dataset="")
NO_CLASS_NAMES = (
    "no class names are given, but CLIP needs them; set the hparam class_names to a list with one "
    "name per class in label order, or to 'dataset:PACS' for a dataset that this package supports"
)


def get_hparams(algorithm: Any) -> Mapping[str, Hparam]:
    """Return by name all hyperparameters that the class ``algorithm`` reads.

    These are the common ones and those that it declares or inherits, which replace common ones of
    the same name.
    """
    common = (*COMMON, *averages.HPARAMS, *lora.HPARAMS, *penalties.HPARAMS)
    return {hparam.name: hparam for hparam in common} | _get_declared_hparams(algorithm)


def _get_declared_hparams(algorithm: Any) -> dict[str, Hparam]:
    """Return by name the hyperparameters that the class or its base classes declare."""
    return {
        hparam.name: hparam
        for base in reversed(algorithm.__mro__)
        for hparam in vars(base).get("HPARAMS", ())
    }


@functools.cache
def get_hparams_of_others() -> Mapping[str, Hparam]:
    """Return by name the hyperparameters of this package's methods, as recorded by other methods.

    Of several methods with a hyperparameter of one name, the first declares it.
    """
    found: dict[str, Hparam] = {}
    for algorithm in shipped.load_classes().values():
        for hparam in get_hparams(algorithm).values():
            found.setdefault(hparam.name, hparam.for_other_methods())
    return MappingProxyType(found)


def get_recorded_hparams(algorithm: Any) -> dict[str, Hparam]:
    """Return by name all hyperparameters in the records of the class ``algorithm``.

    These are the algorithm's and those of this package's other methods, so that one ``--hparams``
    of a sweep can be passed to all of them, and their records can be compared. Hyperparameters of a
    user's methods are only in the records of those methods, so that other records do not depend on
    the files that a process has loaded.
    """
    return {**get_hparams_of_others(), **get_hparams(algorithm)}


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
    own_defaults = get_defaults(table, conditions)
    # The harness has the same for all algorithms. For those of this package, its registry would
    # compute their own values a second time.
    registered_name = algorithm.__name__ if algorithm.IS_OF_CHECKOUT else "ERM"
    host_defaults, host_values = read_registry(
        hparams_registry, registered_name, dataset, random_seed
    )
    defaults = {**host_defaults, **own_defaults}
    draws = draw_values(table, conditions, random_seed)
    values = {**host_values, **own_defaults, **draws, **given}

    checked = {name: hparam for name, hparam in table.items() if name not in READ_BY_TRAIN}
    pins = {*PINNABLE, CLIP_HEAD.name}  # one --hparams of a sweep can also be for the host's
    problems = [
        *find_invalid(given, READ_BY_TRAIN),
        *find_unknown_names(hparams_registry, algorithm.__name__, given, defaults, pins),
        *find_problems(algorithm, values, checked, conditions),
    ]
    return ResolvedHparams(values, defaults, problems, _find_unread(algorithm, given))


def _find_unread(algorithm: Any, given: Mapping[str, Any]) -> list[str]:
    """Return the names in ``given`` without an effect, such as penalties that cannot be added."""
    unused: set[str] = set()
    if not (algorithm.trains_encoder and algorithm.takes_penalties):
        unused |= {"drift_every", "kl_direction", "context_scale"}  # those of the measured drift
        unused |= {hparam.name for hparam in penalties.HPARAMS}
    if not algorithm.trains_encoder:
        unused |= {"compile_blocks", "checkpoint_blocks"}
    if not algorithm.trains_encoder or algorithm.trains_text:
        unused |= {hparam.name for hparam in lora.HPARAMS}
    if not algorithm.trains_head:
        unused |= {"head_init"}
    if not (algorithm.trains_encoder and algorithm.trains_head):
        unused |= {"head_scale"}
    if algorithm.is_constant:
        unused |= _TRAINING_HPARAMS

    unused -= _get_declared_hparams(algorithm).keys()
    read = get_hparams(algorithm).keys() - unused | PINNABLE.keys()
    return [name for name in given if name not in read and name not in READ_BY_TRAIN]


def find_changed_hparams(algorithm: Any, hparams: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the hparams that change the result and differ from the class's defaults.

    They do not contain ``total_steps``, whose default is the number of steps of the job. None if
    ``class_names`` does not name the dataset, on which the defaults depend.

    Args:
        algorithm: class of the algorithm.
        hparams: the complete hyperparameters of a job.
    """
    dataset = parse_dataset_name(hparams.get("class_names"))
    if dataset is None:
        return None

    conditions = Conditions(dataset, str(hparams["clip_backbone"]))
    without_effect = {"total_steps", *_find_unread(algorithm, hparams)}
    declared = {
        name: hparam
        for name, hparam in get_hparams(algorithm).items()
        if hparam.changes_result and name not in without_effect
    }

    defaults = {**DEFAULTS_OF_TRAIN, **get_defaults(declared, conditions)}
    return [name for name, value in defaults.items() if hparams.get(name, value) != value]


def complete(algorithm: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the hparams ``given`` to a class, with the defaults of missing names.

    Outside of a host, no registry provides the defaults.
    """
    missing = {name: hparam for name, hparam in get_hparams(algorithm).items() if name not in given}
    dataset = parse_dataset_name(given.get("class_names")) or ""
    if not dataset:
        missing.pop("class_names", None)
    conditions = Conditions(dataset, str(given.get("clip_backbone", "")))
    return {**get_defaults(missing, conditions), **given}


def find_problems(
    algorithm: Any,
    hparams: Mapping[str, Any],
    table: Mapping[str, Hparam] | None = None,
    conditions: Conditions = _NO_DATASET,
) -> list[HparamProblem]:
    """Return the problems of the hparams of a job, individually and in combination.

    Args:
        algorithm: the class of the algorithm.
        hparams: the complete hyperparameters. Other names belong to the host or to other methods.
        table: the hyperparameters whose values are checked, by name, by default those that the
            algorithm reads. Pinned facts are checked as well.
        conditions: the conditions of the defaults, which replace invalid values when combinations
            are checked. Without a dataset, contexts from the names of its domains are not checked.
    """
    table = get_hparams(algorithm) if table is None else table
    problems = find_invalid_values(hparams, table)
    invalid = {problem.name for problem in problems}
    if "class_names" not in hparams:
        problems.append(HparamProblem("class_names", None, message=NO_CLASS_NAMES))

    replaced = {name: hparam for name, hparam in table.items() if name in invalid}
    usable = {**hparams, **get_defaults(replaced, conditions)}
    min_contexts = get_min_contexts(algorithm, usable)
    problems += find_clip_problems(hparams, table, conditions, min_contexts)
    return [*problems, *_conflicts(algorithm, usable)]


def find_invalid_values(
    hparams: Mapping[str, Any], table: Mapping[str, Hparam]
) -> list[HparamProblem]:
    """Return a problem for each value of ``table`` or of the pinned facts that is invalid."""
    return [
        HparamProblem(name, hparams[name], hparam.expected)
        for name, hparam in {**table, **PINNABLE}.items()
        if name in hparams and not hparam.valid(hparams[name])
    ]


def find_clip_problems(
    hparams: Mapping[str, Any],
    table: Mapping[str, Hparam],
    conditions: Conditions,
    min_contexts: int,
) -> list[HparamProblem]:
    """Return the problems of a valid ``clip_backbone`` or ``contexts`` that cannot be used."""
    problems: list[HparamProblem] = []
    spec = hparams["clip_backbone"]
    if table["clip_backbone"].valid(spec):
        for message in collect_problems(_require_backbone, spec):
            problems.append(HparamProblem("clip_backbone", spec, message=message, is_local=True))
    if "contexts" in table and table["contexts"].valid(hparams["contexts"]):
        problems += _context_problems(hparams["contexts"], conditions.dataset, min_contexts)
    return problems


def _context_problems(spec: Any, dataset: str, min_contexts: int) -> list[HparamProblem]:
    """Return the problems of contexts, of which those of a dataset's domains can be unknown.

    Over a single context, the KL would be zero.
    """
    if spec not in prompts.DOMAIN_LISTS:
        messages = collect_problems(prompts.parse_contexts, spec, min_contexts)
    elif dataset in benchmarks.BENCHMARKS:
        domains = [environment.folder for environment in benchmarks.get(dataset).environments]
        messages = collect_problems(prompts.make_domain_contexts, spec, domains, min_contexts)
    else:
        messages = []
    return [HparamProblem("contexts", spec, message=message) for message in messages]


def get_min_contexts(algorithm: Any, hparams: Mapping[str, Any]) -> int:
    """Return the number of contexts that a job needs, at least two for a KL term over them."""
    has_kl = "kl_weight" in get_hparams(algorithm) and hparams["kl_weight"] > 0
    return max(algorithm.min_contexts, 2 if has_kl else 1)


def _conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> list[HparamProblem]:
    """Return values that are valid on their own but conflict with each other."""
    expectations = {
        **_step_conflicts(algorithm, hparams),
        **_average_conflicts(algorithm, hparams),
        **_head_conflicts(algorithm, hparams),
        **_lora_conflicts(algorithm, hparams),
        **_other_method_conflicts(algorithm, hparams),
        **algorithm.conflicts(hparams),
    }
    return [HparamProblem(name, hparams[name], expected) for name, expected in expectations.items()]


def _step_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return the expected value, by name, of a warm-up that is longer than the training."""
    if not (algorithm.trains_encoder or algorithm.trains_head):
        return {}  # without training there is no schedule, and zero-shot CLIP has a single step

    total_steps = hparams["total_steps"]
    lp_steps = hparams["lp_steps"] if "lp_steps" in get_hparams(algorithm) else 0
    if lp_steps >= total_steps or hparams["warmup_steps"] < total_steps - lp_steps:
        return {}

    limit = f"total_steps = {total_steps}"
    if lp_steps:
        limit = f"total_steps - lp_steps = {total_steps - lp_steps}"
    return {"warmup_steps": f"less than {limit}; otherwise the learning rate never peaks"}


def _average_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return the expected values, by name, of averages that would not average."""
    total_steps = hparams["total_steps"]
    expectations = {}
    trains = algorithm.trains_encoder or algorithm.trains_head
    if trains and hparams["average"] == "sma" and hparams["average_start"] >= total_steps:
        expectations["average_start"] = (
            f"less than total_steps = {total_steps}; otherwise no weights are averaged"
        )
    if hparams["average"] != "none" and hparams.get("swad"):
        expectations["average"] = (
            "'none' with this DomainBed's swad, which averages the weights itself"
        )
    elif hparams["average"] == "swad" and algorithm.IS_OF_CHECKOUT:
        expectations["average"] = (
            "'none', 'sma', 'ema' or 'beta' in this DomainBed, whose training does not pass a "
            "validation loss; to use SWAD, train with this package's domainbed, outside of the "
            "checkout"
        )
    return expectations


def _head_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return the expected values, by name, of options that need another head."""
    # A random head has no original weights to interpolate with.
    if (
        hparams["head_init"] == "random"
        and (algorithm.trains_head or not algorithm.trains_encoder)
        and hparams["wise_alpha"] != 1
    ):
        return {"wise_alpha": "1 with head_init 'random'"}
    return {}


def _lora_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return the expected values, by name, of options that LoRA does not support."""
    if not hparams["lora_rank"]:
        return {}
    if not algorithm.trains_encoder or algorithm.trains_text:
        return {"lora_rank": f"0: {algorithm.__name__} has no LoRA"}

    expectations = {}
    if hparams["sp_weight"]:
        expectations["sp_weight"] = "0 with LoRA, which does not train the weights L2-SP penalises"
    if hparams["compile_blocks"]:
        expectations["compile_blocks"] = "False with LoRA, whose attention is not compiled"
    return expectations


def _other_method_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return the expected values, by name, of hparams that only another method uses."""
    return {
        name: f"0: only {owner}"
        for name, owner in _METHOD_HPARAMS.items()
        if hparams.get(name) and name not in get_hparams(algorithm)
    }


def _require_backbone(name: str) -> None:
    """Raise CarftError for a CLIP model that cannot be found, before downloading it."""
    # Imported here because importing torch takes seconds.
    from domainbed_carft.clips import open_clip, openai

    if name.startswith(open_clip.PREFIX):
        open_clip.check(name)
    elif name not in openai.OPENAI_WEIGHTS:  # these are downloaded later if necessary
        openai.locate(name)
