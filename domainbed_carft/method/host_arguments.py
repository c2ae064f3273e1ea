"""Checks of what a host passes to an algorithm, in the forms that its forks use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from domainbed_carft import errors, machine, text
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import prompts
from domainbed_carft.method.host_process import hparams_by_hand, in_our_harness
from domainbed_carft.method.hparams import ALGORITHMS, HPARAMS, has_kl, overlay
from domainbed_carft.text import shortened

# Read by DomainBed's own train; a host's further ones are added by `allow`.
_host_keys = {"data_augmentation", "class_balanced"}


def allow(keys: Iterable[str]) -> None:
    """Accept these keys as the host's: its registry puts them into every hparams dict."""
    _host_keys.update(keys)


def check(input_shape: Sequence[int], hparams: Mapping[str, Any], algorithm: str = "") -> None:
    """Raise CarftError for pictures not in RGB and for all unknown, missing and invalid hparams.

    Forks add their own keys between the registry and the algorithm (DPLCLIP its test environments,
    MIRO its whole configuration). So a key counts as unknown only if the user gave it, or if it
    resembles one of ours. Several processes are refused in all hosts but our harness.
    """
    for name in () if in_our_harness() else ("WORLD_SIZE", machine.PROCESSES):
        if (told := os.environ.get(name, "")).isdecimal() and int(told) > 1:
            raise CarftError(
                f"{name} is {told}, and this DomainBed trains a job in one process: several would "
                "not add up their gradients. Start one, or use the harness of this package"
            )
    hparams = dict(hparams)  # a fork's configuration object may have keys and items, and no more
    ours = sorted(h.name for h in HPARAMS)
    valid = sorted({*ours, *_host_keys})
    unknown = [p for key in sorted({*hparams} - {*valid}) for p in _unknown(key, valid)]
    if problems := unknown + _value_problems(hparams, algorithm):
        ending = "" if problems[-1].endswith("?") else "."
        # All names help with a wrong name only.
        listed = f" Valid hparams: {', '.join(ours)}" if unknown else ""
        raise CarftError("; ".join(problems) + (ending + listed if listed else ""))
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise CarftError(
            f"the data set has pictures of shape {tuple(input_shape)}, expected (3, height, "
            "width): CLIP reads RGB"
        )


def refusals(algorithm: str, dataset: str, given: Mapping[str, Any]) -> list[str]:
    """The problems of the values ``given`` by a user; our harness itself checks ``batch_size``."""
    if algorithm not in ALGORITHMS:
        return []
    values = {name: default for name, (default, _) in overlay(algorithm, dataset, 0).items()}
    values |= {name: value for name, value in given.items() if name != "batch_size"}
    problems = _value_problems(values, algorithm)
    if values["contexts"] in prompts.DOMAIN_LISTS and dataset in benchmarks.BENCHMARKS:
        folders = [one.folder for one in benchmarks.get(dataset).environments]
        spec, least = values["contexts"], _fewest_contexts(values, algorithm)
        problems += errors.refusals(prompts.domain_contexts, spec, folders, least)
    return problems


def _value_problems(hparams: Mapping[str, Any], algorithm: str) -> list[str]:
    wrong: dict[str, str] = {}
    for h in HPARAMS:
        if h.name not in hparams:
            wrong[h.name] = f"hparam {h.name!r} is missing, expected {h.expected}"
        elif not h.valid(hparams[h.name]):
            value = shortened(hparams[h.name])
            wrong[h.name] = f"{h.name} is {value}, expected {h.expected}"
    problems = [*wrong.values()]
    if "clip_backbone" not in wrong:
        problems += errors.refusals(_find_backbone, hparams["clip_backbone"])
    # The contexts that are made from the data set's domains come with it.
    if "contexts" not in wrong and hparams["contexts"] not in prompts.DOMAIN_LISTS:
        least = _fewest_contexts(hparams, algorithm)
        problems += errors.refusals(prompts.contexts, hparams["contexts"], least)
    return problems if _TOGETHER & wrong.keys() else problems + _conflicts(hparams, algorithm)


def _fewest_contexts(hparams: Mapping[str, Any], algorithm: str) -> int:
    """How many contexts a run needs at least: over a single one the KL would be zero."""
    return 2 if has_kl(algorithm, hparams.get("kl_weight")) else 1


_TOGETHER = {  # what _conflicts looks at
    "warmup_steps", "lp_steps", "total_steps", "average", "average_start", "margin", "wise_alpha",
    "head_init", "micro_batch",
}  # fmt: skip


def _conflicts(hparams: Mapping[str, Any], algorithm: str) -> list[str]:
    """Values that are valid one by one and make no sense together."""
    wrong: dict[str, str] = {}  # name -> what is expected
    total = hparams["total_steps"]
    lp_steps = 0 if algorithm in ("CLIPLinearProbe", "CLIPZeroShot") else hparams["lp_steps"]
    if lp_steps >= total:
        wrong["lp_steps"] = f"less than total_steps = {total}, or only the head is trained"
    elif hparams["warmup_steps"] >= total - lp_steps:
        less = f" - lp_steps = {total - lp_steps}" if lp_steps else f" = {total}"
        wrong["warmup_steps"] = f"less than total_steps{less}, or the learning rate never peaks"
    if hparams["average"] == "sma" and hparams["average_start"] >= total:
        wrong["average_start"] = f"less than total_steps = {total}, or nothing is averaged"
    if hparams["average"] != "none" and hparams.get("swad"):
        wrong["average"] = "'none' with this DomainBed's swad, which averages the weights itself"
    if hparams["head_init"] == "random" and algorithm not in ("CLIPood", "FLYP"):
        # A random head has no original to go back to, and no text features to compare with.
        off = {"wise_alpha": 1, "margin": 0}
        wrong |= {n: f"{v} with head_init 'random'" for n, v in off.items() if hparams[n] != v}
    for name in {"CLIPood": ("lp_steps",), "FLYP": ("lp_steps", "margin")}.get(algorithm, ()):
        if hparams[name]:
            wrong[name] = f"0: {algorithm} trains no head"
    if hparams["margin"] and algorithm == "CLIPLinearProbe":
        wrong["margin"] = "0: only algorithms that train the encoder have a margin"
    if hparams["micro_batch"] and algorithm == "FLYP":
        wrong["micro_batch"] = (
            "0: FLYP contrasts all pictures of a batch with each other; set checkpoint_blocks to "
            "true, or a smaller batch_size"
        )
    return [
        f"{name} is {shortened(hparams[name])}, expected {what}" for name, what in wrong.items()
    ]


def _find_backbone(name: str) -> None:
    # Takes the seconds of importing torch.
    from domainbed_carft.clips import backbone, open_clip_models, openai_models

    if name.startswith(open_clip_models.PREFIX):
        open_clip_models.check(name)
    elif name not in openai_models.OPENAI_WEIGHTS:  # may have to be downloaded, in their turn
        backbone.locate(name)


def _unknown(key: str, valid: Sequence[str]) -> list[str]:
    """That a key is none of ours, if the user gave it or if it resembles one; else nothing."""
    if key in hparams_by_hand():
        close = text.near(key, valid, most=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return [f"unknown hparam {key!r}{hint}"]
    close = get_close_matches(key, valid, n=1, cutoff=0.85)
    return [f"unknown hparam {key!r}; did you mean {close[0]!r}?"] if close else []
