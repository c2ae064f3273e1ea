"""Checks of a job's hyperparameters: single values, combinations, and the shape of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import HparamProblem, collect_problems
from domainbed_carft.method import prompts
from domainbed_carft.method.dataset_facts import parse_dataset_name
from domainbed_carft.method.host_lookup import is_carft_harness
from domainbed_carft.method.hparam_tables import get_hparams
from domainbed_carft.method.hparams import PINNABLE, Conditions, Hparam, get_defaults

# Hparams used by a single method, which other methods would silently ignore.
_METHOD_HPARAMS = {"margin": "CLIPood has a margin", "lp_steps": "CLIPLPFT probes first"}


def job_problems(
    algorithm: Any, input_shape: Sequence[int], hparams: Mapping[str, Any]
) -> list[str]:
    """Return the problems of a job with complete ``hparams``, and of images that are not RGB.

    ``algorithm`` is the class. Keys that it does not declare belong to the host or to another
    method.
    """
    if parse_dataset_name(hparams.get("class_names")) is None and not hparams.get("class_names"):
        return [
            "no class names are given, but CLIP needs them; set the hparam class_names to a list "
            "with one name per class in label order, or to 'dataset:PACS' for a dataset that this "
            "package supports"
        ]
    problems = find_problems(algorithm, get_hparams(algorithm), hparams, Conditions(dataset=""))
    return [*map(str, problems), *_shape_problems(input_shape)]


def _shape_problems(input_shape: Sequence[int]) -> list[str]:
    """Return a problem unless images are RGB, of shape (3, height, width)."""
    if len(input_shape) == 3 and input_shape[0] == 3:
        return []

    shape = tuple(input_shape)
    expected = "(3, height, width): CLIP reads RGB"
    return [f"the dataset has images of shape {shape}, expected {expected}"]


def find_problems(
    algorithm: Any,
    table: Mapping[str, Hparam],
    hparams: Mapping[str, Any],
    conditions: Conditions,
) -> list[HparamProblem]:
    """Return the problems of the hparams of a job, individually and in combination.

    Args:
        algorithm: the class of the algorithm.
        table: the hyperparameters whose values are checked, by name; pinned facts are as well.
        hparams: the complete hyperparameters.
        conditions: the conditions of the defaults, which replace invalid values when combinations
            are checked. Without a dataset, contexts from the names of its domains are not checked.
    """
    invalid = {
        name: hparam
        for name, hparam in {**table, **PINNABLE}.items()
        if name in hparams and not hparam.valid(hparams[name])
    }
    problems = [
        HparamProblem(name, hparams[name], hparam.expected) for name, hparam in invalid.items()
    ]
    usable = {**hparams, **get_defaults(invalid, conditions)}
    if "clip_backbone" not in invalid:
        spec = hparams["clip_backbone"]
        for message in collect_problems(_require_backbone, spec):
            problems.append(HparamProblem("clip_backbone", spec, message=message, is_local=True))
    if "contexts" not in invalid:
        min_contexts = 2 if "kl_weight" not in invalid and algorithm.has_kl(usable) else 1
        problems += _context_problems(hparams["contexts"], conditions.dataset, min_contexts)
    return [*problems, *_conflicts(algorithm, usable)]


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
    elif hparams["average"] == "swad" and not is_carft_harness():
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
