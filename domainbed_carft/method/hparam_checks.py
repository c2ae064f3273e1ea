"""Checks of a job's hyperparameters: each value, the values together, and the images' shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import HparamProblem, problems_of
from domainbed_carft.method import prompts
from domainbed_carft.method.dataset_facts import parse_dataset_name
from domainbed_carft.method.host_lookup import is_carft_harness
from domainbed_carft.method.hparams import PINNABLE, is_preprocessing

# What one method alone reads, and other methods would ignore without a word.
_METHOD_HPARAMS = {"margin": "CLIPood has a margin", "lp_steps": "CLIPLPFT probes first"}


def job_problems(
    algorithm: Any, input_shape: Sequence[int], hparams: Mapping[str, Any]
) -> list[str]:
    """The problems of a job with complete ``hparams``: invalid ones, and images not in RGB.

    ``algorithm``: its class. Keys that are none of its own are the host's or another method's.
    """
    if parse_dataset_name(hparams.get("class_names")) is None and not hparams.get("class_names"):
        return [
            "no class names are given, and CLIP needs them; give the hparam class_names: a list "
            "with one name per class in label order, or 'dataset:PACS' for a dataset that this "
            "package knows"
        ]
    return [*map(str, _value_problems(algorithm, hparams)), *_shape_problems(input_shape)]


def _shape_problems(input_shape: Sequence[int]) -> list[str]:
    """That images of this shape are not in RGB, as (channels, height, width)."""
    if len(input_shape) == 3 and input_shape[0] == 3:
        return []

    shape = tuple(input_shape)
    expected = "(3, height, width): CLIP reads RGB"
    return [f"the dataset has images of shape {shape}, expected {expected}"]


def hparam_problems(
    algorithm: Any, dataset: str, overrides: Mapping[str, Any]
) -> list[str | HparamProblem]:
    """The problems of the hparams that a user sets for a job of the class ``algorithm``.

    Not those of ``batch_size``, which our harness itself checks.
    """
    values = algorithm.complete_hparams({"class_names": f"dataset:{dataset}"})
    values |= {name: value for name, value in overrides.items() if name != "batch_size"}
    problems = _value_problems(algorithm, values)

    spec = values["contexts"]
    if spec in prompts.DOMAIN_LISTS and dataset in benchmarks.BENCHMARKS:
        domains = [environment.folder for environment in benchmarks.get(dataset).environments]
        min_contexts = _min_contexts(algorithm, values)
        messages = problems_of(prompts.domain_contexts, spec, domains, min_contexts)
        problems += [HparamProblem("contexts", spec, message=message) for message in messages]
    return problems


def _value_problems(algorithm: Any, hparams: Mapping[str, Any]) -> list[str | HparamProblem]:
    """What is invalid among the hparams of a job, one by one and together."""
    invalid = {
        name: HparamProblem(name, hparams[name], hparam.expected)
        for name, hparam in algorithm.hparams_by_name().items()
        if not hparam.valid(hparams[name])
    }
    invalid |= _pin_problems(hparams)

    problems: list[str | HparamProblem] = [*invalid.values()]
    if "clip_backbone" not in invalid:
        problems += problems_of(_require_backbone, hparams["clip_backbone"])
    # The contexts that are made from the dataset's domains come with it.
    if "contexts" not in invalid and hparams["contexts"] not in prompts.DOMAIN_LISTS:
        min_contexts = _min_contexts(algorithm, hparams) if "kl_weight" not in invalid else 1
        spec = hparams["contexts"]
        messages = problems_of(prompts.parse_contexts, spec, min_contexts)
        problems += [HparamProblem("contexts", spec, message=message) for message in messages]
    defaults = algorithm.complete_hparams({"class_names": hparams["class_names"]})
    usable = {**hparams, **{name: defaults[name] for name in invalid if name in defaults}}
    problems += _conflicts(algorithm, usable)
    return problems


def _pin_problems(hparams: Mapping[str, Any]) -> dict[str, HparamProblem]:
    """Name -> problem of the facts that a user demands."""
    problems = {}
    for name in PINNABLE:
        value = hparams.get(name, "")
        if name == "preprocessing":
            is_valid = value == "" or is_preprocessing(value)
            expected = (
                "pixels a side, bicubic or bilinear, shortest or squash: '224 bicubic shortest'"
            )
        else:
            is_valid = isinstance(value, str)
            expected = "the value in an earlier record"
        if not is_valid:
            problems[name] = HparamProblem(name, value, expected)
    return problems


def _min_contexts(algorithm: Any, hparams: Mapping[str, Any]) -> int:
    """How many contexts a run needs at least: over a single one the KL would be zero."""
    return 2 if algorithm.has_kl(hparams) else 1


def _conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> list[HparamProblem]:
    """Values that are valid one by one and make no sense together."""
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
    """Hparam name -> what is expected, of a warm-up that does not fit into the training."""
    if not (algorithm.trains_encoder or algorithm.trains_head):
        return {}  # nothing is scheduled, and zero-shot CLIP has a single step

    total_steps = hparams["total_steps"]
    lp_steps = hparams["lp_steps"] if "lp_steps" in algorithm.hparams_by_name() else 0
    if lp_steps >= total_steps or hparams["warmup_steps"] < total_steps - lp_steps:
        return {}

    limit = f"total_steps = {total_steps}"
    if lp_steps:
        limit = f"total_steps - lp_steps = {total_steps - lp_steps}"
    return {"warmup_steps": f"less than {limit}, or the learning rate never peaks"}


def _average_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Hparam name -> what is expected, of averages that would not be averages."""
    total_steps = hparams["total_steps"]
    expectations = {}
    trains = algorithm.trains_encoder or algorithm.trains_head
    if trains and hparams["average"] == "sma" and hparams["average_start"] >= total_steps:
        expectations["average_start"] = (
            f"less than total_steps = {total_steps}, or nothing is averaged"
        )
    if hparams["average"] != "none" and hparams.get("swad"):
        expectations["average"] = (
            "'none' with this DomainBed's swad, which averages the weights itself"
        )
    elif hparams["average"] == "swad" and not is_carft_harness():
        expectations["average"] = (
            "'none', 'sma', 'ema' or 'beta' in this DomainBed, whose training hands over no "
            "validation loss; for SWAD train where domainbed is this package's own, outside of "
            "the checkout"
        )
    return expectations


def _head_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Hparam name -> what is expected, of options of a head that this algorithm does not have."""
    has_random_head = hparams["head_init"] == "random" and (
        algorithm.trains_head or not algorithm.trains_encoder
    )
    # A random head has no original to go back to.
    if has_random_head and hparams["wise_alpha"] != 1:
        return {"wise_alpha": "1 with head_init 'random'"}
    return {}


def _lora_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Hparam name -> what is expected, of options that low-rank factors do not go with."""
    if not hparams["lora_rank"]:
        return {}
    if not algorithm.trains_encoder or algorithm.trains_text:
        return {"lora_rank": f"0: {algorithm.__name__} has no LoRA"}

    expectations = {}
    if hparams["sp_weight"]:
        expectations["sp_weight"] = "0 with LoRA, which does not train the weights that L2-SP holds"
    if hparams["compile_blocks"]:
        expectations["compile_blocks"] = "False with LoRA, whose attention is not compiled"
    return expectations


def _other_method_conflicts(algorithm: Any, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Hparam name -> what is expected, of what only another method would do."""
    return {
        name: f"0: only {owner}"
        for name, owner in _METHOD_HPARAMS.items()
        if hparams.get(name) and name not in algorithm.hparams_by_name()
    }


def _require_backbone(name: str) -> None:
    """Raise CarftError for a CLIP that cannot be found without downloading anything."""
    # Takes the seconds of importing torch.
    from domainbed_carft.clips import open_clip, openai

    if name.startswith(open_clip.PREFIX):
        open_clip.check(name)
    elif name not in openai.OPENAI_WEIGHTS:  # may have to be downloaded, in their turn
        openai.locate(name)
