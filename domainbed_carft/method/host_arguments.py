"""Checks of what a host passes to an algorithm, in the forms that its forks use."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from domainbed_carft import machine, text
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, Problem, problems_of
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.hparams import ALGORITHMS, HPARAMS, UNCHECKED, has_kl, implied, overlay

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
    invalid = _value_problems(hparams, algorithm)
    if unknown:  # only then all names help
        sentence = "; ".join(map(str, unknown + invalid))
        raise CarftError(f"{sentence}. Valid hparams: {', '.join(ours)}")
    if invalid:
        raise CarftError("; ".join(map(str, invalid)))
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise CarftError(
            f"the data set has pictures of shape {tuple(input_shape)}, expected (3, height, "
            "width): CLIP reads RGB"
        )


def in_our_harness() -> bool:
    """Whether the domainbed in use is this package's harness."""
    from domainbed.algorithms import Algorithm

    return hasattr(Algorithm, "indivisible")


def refusals(algorithm: str, dataset: str, given: Mapping[str, Any]) -> list[Problem]:
    """The problems of the values ``given`` by a user; our harness itself checks ``batch_size``."""
    if algorithm not in ALGORITHMS:
        return []
    values = {name: default for name, (default, _) in overlay(algorithm, dataset, 0).items()}
    values |= {name: value for name, value in given.items() if name != "batch_size"}
    problems = _value_problems(values, algorithm)
    if values["contexts"] in prompts.DOMAIN_LISTS and dataset in benchmarks.BENCHMARKS:
        folders = [one.folder for one in benchmarks.get(dataset).environments]
        spec, least = values["contexts"], _fewest_contexts(values, algorithm)
        context_problems = problems_of(prompts.domain_contexts, spec, folders, least)
        problems += [problem.with_subject("contexts") for problem in context_problems]
    return problems


def _value_problems(hparams: Mapping[str, Any], algorithm: str) -> list[Problem]:
    wrong: dict[str, Problem] = {}
    for h in HPARAMS:
        if h.name not in hparams:
            wrong[h.name] = Problem(f"hparam {h.name!r} is missing", expected=h.expected)
        elif not h.valid(hparams[h.name]):
            wrong[h.name] = Problem(h.name, hparams[h.name], expected=h.expected)
    problems = [*wrong.values()]
    if "clip_backbone" not in wrong:
        backbone_problems = problems_of(_find_backbone, hparams["clip_backbone"])
        problems += [problem.with_subject("clip_backbone") for problem in backbone_problems]
    # The contexts that are made from the data set's domains come with it.
    if "contexts" not in wrong and hparams["contexts"] not in prompts.DOMAIN_LISTS:
        least = _fewest_contexts(hparams, algorithm)
        context_problems = problems_of(prompts.contexts, hparams["contexts"], least)
        problems += [problem.with_subject("contexts") for problem in context_problems]
    return problems if _TOGETHER & wrong.keys() else problems + _conflicts(hparams, algorithm)


def _fewest_contexts(hparams: Mapping[str, Any], algorithm: str) -> int:
    """How many contexts a run needs at least: over a single one the KL would be zero."""
    return 2 if has_kl(algorithm, hparams.get("kl_weight")) else 1


_TOGETHER = {  # what _conflicts looks at
    "warmup_steps", "lp_steps", "total_steps", "average", "average_start", "margin", "wise_alpha",
    "head_init", "micro_batch",
}  # fmt: skip


def _conflicts(hparams: Mapping[str, Any], algorithm: str) -> list[Problem]:
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
    return [Problem(name, hparams[name], expected=what) for name, what in wrong.items()]


def _find_backbone(name: str) -> None:
    # Takes the seconds of importing torch.
    from domainbed_carft.clips import backbone, open_clip_models, openai_models

    if name.startswith(open_clip_models.PREFIX):
        open_clip_models.check(name)
    elif name not in openai_models.OPENAI_WEIGHTS:  # may have to be downloaded, in their turn
        backbone.locate(name)


def _unknown(key: str, valid: Sequence[str]) -> list[Problem]:
    """That a key is none of ours, if the user gave it or if it resembles one; else nothing."""
    if key in _given_by_hand():
        close = text.near(key, valid, most=1)
        return [_unknown_hparam(key, close)]

    close = get_close_matches(key, valid, n=1, cutoff=0.85)
    return [_unknown_hparam(key, close)] if close else []


def _unknown_hparam(key: str, close: Sequence[str]) -> Problem:
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return Problem(message=f"unknown hparam {key!r}{hint}")


def _given_by_hand() -> set[str]:
    """The keys in ``--hparams`` of this process, which DomainBed's train merges unchecked."""
    return {*_overrides_by_hand()}


def _overrides_by_hand() -> dict[str, Any]:
    """``--hparams`` of this process; empty where it is not DomainBed's JSON object."""
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(_command_line().hparams or "{}"))
    return {}


def hparams_to_add(algorithm: str, dataset: str, random_seed: int | None) -> str:
    """The ``--hparams`` of this process with what its host cannot add to it, "" if that is nothing.

    The defaults of a checkout do not see ``--hparams``, so they do not fit another CLIP there.
    """
    overrides = _overrides_by_hand()
    missing = implied(algorithm, dataset, overrides, random_seed)
    if not missing or in_our_harness():
        return ""
    return json.dumps({**overrides, **missing})


def planned_steps() -> int | None:
    """The steps that this process trains: of its ``--steps`` or its data set; None if unknown."""
    arguments = _command_line()
    if arguments.steps:
        return int(arguments.steps)

    with contextlib.suppress(Exception):  # in a host without that function, or without --dataset
        from domainbed import datasets

        return int(datasets.get_dataset_class(arguments.dataset).N_STEPS)
    return None


def _command_line() -> argparse.Namespace:
    """``--hparams``, ``--steps`` and ``--dataset`` of this process; None what it does not have."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--hparams")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dataset")
    try:
        return parser.parse_known_args()[0]
    except argparse.ArgumentError:  # not DomainBed's command line
        return argparse.Namespace(hparams=None, steps=None, dataset=None)


def record(hparams: dict[str, Any], name: str, found: str, difference: str) -> None:
    """Put what the run found into the hparams, for the records; CarftError for another wish."""
    expected = hparams[name]
    if expected not in ("", found):
        raise CarftError(
            f"the hparam {name} is {expected!r}, but this run has {found!r}: {difference}. Use "
            f"the same as the run that the value is from, or omit {name}"
        )
    hparams[name] = found


def checked_data(hparams: dict[str, Any]) -> dataset_facts.Normalisation:
    """The normalisation of the job's data; its edition and protocol go into the hparams.

    Raises CarftError for broken data, and for other data than the hparams demand.
    """
    from domainbed_carft.clips import pictures  # so does this

    seen = dataset_facts.recall(hparams, prompts.named_dataset(hparams["class_names"]))
    report = seen.report
    if hparams["data_edition"] != UNCHECKED:
        if report and report.problems:
            raise CarftError(
                f"{report.refusal}. To train anyway, set the hparam data_edition to {UNCHECKED!r}"
            )
        record(hparams, "data_edition", seen.edition, "the data differs")
        print(f"Data: {benchmarks.edition_label(seen.edition) or 'not counted'}")
        for difference in report.differences if report else ():
            print(f"Data differs: {difference}")
    drawn = hparams["sampling"]
    if drawn != "with-replacement" and (hparams.get("class_balanced") or not in_our_harness()):
        raise CarftError(
            f"sampling is {drawn!r}, expected 'with-replacement' where class_balanced is true, "
            "since a pass has each picture once, and in any host but this package's harness, which "
            "alone draws so"
        )
    wanted, followed = hparams["protocol"], seen.protocol
    if wanted != followed and (wanted, followed) != ("domainbed", "host"):  # a fork's own
        raise CarftError(
            f"protocol is {wanted!r}, but this data set keeps its own transforms ({followed}). "
            "Only this package's data sets and MultipleEnvironmentImageFolder with test_envs and "
            "hparams can follow another protocol. Leave protocol at 'domainbed'"
        )
    hparams["protocol"] = followed
    print(f"CLIP protocol: {followed} ({pictures.PROTOCOLS[followed]})")
    mean, std = dataset_facts.agreed_normalisation(seen.environments) or pictures.IMAGENET
    print(f"CLIP input: undoes mean {list(mean)}, std {list(std)}")
    return mean, std


def wanted_pictures(
    hparams: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
    """Pixels a side, and mean and std a channel, of the pictures that a host is to deliver.

    None for a CLIP that cannot be read: the algorithm will say why.
    """
    from domainbed_carft.clips import backbone

    with contextlib.suppress(Exception):  # as in `plugin.image_folders`
        wanted = backbone.preprocessing(hparams["clip_backbone"])
        if dataset_facts.renormalise(hparams, (wanted.mean, wanted.std)):
            return wanted.resolution, wanted.mean, wanted.std
    return None
