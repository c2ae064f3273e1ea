"""Checks of a job's hyperparameters: each value, the values together, and the pictures' shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import Problem, problems_of
from domainbed_carft.jobs.algorithms import TEXT_TRAINING
from domainbed_carft.method import prompts
from domainbed_carft.method.host_lookup import in_our_harness
from domainbed_carft.method.hparams import ALGORITHMS, HPARAMS, has_kl, overlay

# Those that train the image encoder under a head of text features.
HEADLESS = ("CLIPood", "CLIPLoRA", *TEXT_TRAINING)
# The hparams that `_conflicts` looks at.
_COMPARED = {
    "warmup_steps",
    "lp_steps",
    "total_steps",
    "average",
    "average_start",
    "margin",
    "wise_alpha",
    "head_init",
    "micro_batch",
    "lora_rank",
    "sp_weight",
    "compile_blocks",
}


def job_problems(
    input_shape: Sequence[int], hparams: Mapping[str, Any], algorithm: str
) -> list[Problem]:
    """The problems of a job: missing and invalid hparams, and pictures not in RGB.

    Keys that are none of ours are the host's, and are not looked at.
    """
    return [*_value_problems(hparams, algorithm), *shape_problems(input_shape)]


def shape_problems(input_shape: Sequence[int]) -> list[Problem]:
    """That pictures of this shape are not in RGB, as (channels, height, width)."""
    if len(input_shape) == 3 and input_shape[0] == 3:
        return []

    shape = tuple(input_shape)
    expected = "(3, height, width): CLIP reads RGB"
    return [Problem(message=f"the data set has pictures of shape {shape}, expected {expected}")]


def hparam_problems(algorithm: str, dataset: str, overrides: Mapping[str, Any]) -> list[Problem]:
    """The problems of the hparams that a user sets for a job.

    Not those of ``batch_size``, which our harness itself checks. Empty for algorithms of others.
    """
    if algorithm not in ALGORITHMS:
        return []

    values = {name: default for name, (default, _) in overlay(algorithm, dataset, 0).items()}
    values |= {name: value for name, value in overrides.items() if name != "batch_size"}
    problems = _value_problems(values, algorithm)

    spec = values["contexts"]
    if spec in prompts.DOMAIN_LISTS and dataset in benchmarks.BENCHMARKS:
        domains = [environment.folder for environment in benchmarks.get(dataset).environments]
        fewest = _fewest_contexts(values, algorithm)
        context_problems = problems_of(prompts.domain_contexts, spec, domains, fewest)
        problems += [problem.with_subject("contexts") for problem in context_problems]
    return problems


def _value_problems(hparams: Mapping[str, Any], algorithm: str) -> list[Problem]:
    """What is missing or invalid among the hparams of a job, one by one and together."""
    invalid: dict[str, Problem] = {}
    for hparam in HPARAMS:
        name = hparam.name
        if name not in hparams:
            invalid[name] = Problem(f"hparam {name!r} is missing", expected=hparam.expected)
        elif not hparam.valid(hparams[name]):
            invalid[name] = Problem(name, hparams[name], expected=hparam.expected)

    problems = [*invalid.values()]
    if "clip_backbone" not in invalid:
        backbone_problems = problems_of(_require_backbone, hparams["clip_backbone"])
        problems += [problem.with_subject("clip_backbone") for problem in backbone_problems]
    # The contexts that are made from the data set's domains come with it.
    if "contexts" not in invalid and hparams["contexts"] not in prompts.DOMAIN_LISTS:
        fewest = _fewest_contexts(hparams, algorithm)
        context_problems = problems_of(prompts.contexts, hparams["contexts"], fewest)
        problems += [problem.with_subject("contexts") for problem in context_problems]
    if not _COMPARED & invalid.keys():
        problems += _conflicts(hparams, algorithm)
    return problems


def _fewest_contexts(hparams: Mapping[str, Any], algorithm: str) -> int:
    """How many contexts a run needs at least: over a single one the KL would be zero."""
    return 2 if has_kl(algorithm, hparams.get("kl_weight")) else 1


def _conflicts(hparams: Mapping[str, Any], algorithm: str) -> list[Problem]:
    """Values that are valid one by one and make no sense together."""
    expectations = {
        **_step_conflicts(hparams, algorithm),
        **_average_conflicts(hparams),
        **_head_conflicts(hparams, algorithm),
        **_lora_conflicts(hparams, algorithm),
    }
    if hparams["micro_batch"] and algorithm in TEXT_TRAINING:
        expectations["micro_batch"] = (
            f"0: {algorithm} contrasts all pictures of a batch with each other; set "
            "checkpoint_blocks to true, or a smaller batch_size"
        )
    return [
        Problem(name, hparams[name], expected=expected) for name, expected in expectations.items()
    ]


def _step_conflicts(hparams: Mapping[str, Any], algorithm: str) -> dict[str, str]:
    """Hparam name -> what is expected, of phases that do not fit into the training."""
    total_steps = hparams["total_steps"]
    probes_first = algorithm not in ("CLIPLinearProbe", "CLIPZeroShot")
    lp_steps = hparams["lp_steps"] if probes_first else 0
    if lp_steps >= total_steps:
        return {"lp_steps": f"less than total_steps = {total_steps}, or only the head is trained"}

    if hparams["warmup_steps"] >= total_steps - lp_steps:
        limit = f"total_steps = {total_steps}"
        if lp_steps:
            limit = f"total_steps - lp_steps = {total_steps - lp_steps}"
        return {"warmup_steps": f"less than {limit}, or the learning rate never peaks"}
    return {}


def _average_conflicts(hparams: Mapping[str, Any]) -> dict[str, str]:
    """Hparam name -> what is expected, of averages that would not be averages."""
    total_steps = hparams["total_steps"]
    expectations = {}
    if hparams["average"] == "sma" and hparams["average_start"] >= total_steps:
        expectations["average_start"] = (
            f"less than total_steps = {total_steps}, or nothing is averaged"
        )
    if hparams["average"] != "none" and hparams.get("swad"):
        expectations["average"] = (
            "'none' with this DomainBed's swad, which averages the weights itself"
        )
    elif hparams["average"] == "swad" and not in_our_harness():
        expectations["average"] = (
            "'none', 'sma', 'ema' or 'beta' in this DomainBed, whose training hands over no "
            "validation loss; for SWAD train where domainbed is this package's own, outside of "
            "the checkout"
        )
    return expectations


def _head_conflicts(hparams: Mapping[str, Any], algorithm: str) -> dict[str, str]:
    """Hparam name -> what is expected, of options of a head that this algorithm does not have."""
    expectations = {}
    if hparams["head_init"] == "random" and algorithm not in HEADLESS:
        # A random head has no original to go back to, and no text features to compare with.
        for name, neutral in (("wise_alpha", 1), ("margin", 0)):
            if hparams[name] != neutral:
                expectations[name] = f"{neutral} with head_init 'random'"

    head_hparams = ["lp_steps"] if algorithm in HEADLESS else []
    if algorithm in TEXT_TRAINING:
        head_hparams.append("margin")
    for name in head_hparams:
        if hparams[name]:
            expectations[name] = f"0: {algorithm} trains no head"
    if hparams["margin"] and algorithm == "CLIPLinearProbe":
        expectations["margin"] = "0: only algorithms that train the encoder have a margin"
    return expectations


def _lora_conflicts(hparams: Mapping[str, Any], algorithm: str) -> dict[str, str]:
    """Hparam name -> what is expected, of options that low-rank factors do not go with."""
    if not hparams["lora_rank"]:
        nothing_to_train = "at least 1: CLIPLoRA trains nothing but the low-rank factors"
        return {"lora_rank": nothing_to_train} if algorithm == "CLIPLoRA" else {}
    if algorithm in ("CLIPLinearProbe", "CLIPZeroShot", *TEXT_TRAINING):
        return {"lora_rank": f"0: {algorithm} has no LoRA"}

    expectations = {}
    if hparams["sp_weight"]:
        expectations["sp_weight"] = "0 with LoRA, which does not train the weights that L2-SP holds"
    if hparams["compile_blocks"]:
        expectations["compile_blocks"] = "False with LoRA, whose attention is not compiled"
    return expectations


def _require_backbone(name: str) -> None:
    """Raise CarftError for a CLIP that cannot be found without downloading anything."""
    # Takes the seconds of importing torch.
    from domainbed_carft.clips import backbone, open_clip_models, openai_models

    if name.startswith(open_clip_models.PREFIX):
        open_clip_models.check(name)
    elif name not in openai_models.OPENAI_WEIGHTS:  # may have to be downloaded, in their turn
        backbone.locate(name)
