"""What a job finds when it starts and its records have: the CLIP, the prompts, the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.host_lookup import in_our_harness
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.pictures.preprocessing import IMAGENET, Normalisation
from domainbed_carft.pictures.protocols import PROTOCOLS


def record_fact(hparams: dict[str, Any], name: str, value: str, difference: str) -> None:
    """Put what the run found into the hparam ``name``, for the records.

    Raises CarftError if the hparam demands another ``value``; ``difference`` says what differs.
    """
    expected = hparams[name]
    if expected not in ("", value):
        raise CarftError(
            f"the hparam {name} is {expected!r}, but this run has {value!r}: {difference}. Use "
            f"the same as the run that the value is from, or omit {name}"
        )
    hparams[name] = value


def record_data_facts(hparams: dict[str, Any]) -> Normalisation:
    """The normalisation of the job's data; their edition and protocol go into the hparams.

    Raises CarftError for broken data, and for other data than the hparams demand.
    """
    facts = dataset_facts.recall(hparams, prompts.named_dataset(hparams["class_names"]))
    if hparams["data_edition"] != UNCHECKED:
        _record_edition(hparams, facts)
    _require_sampling(hparams)
    _require_protocol(hparams["protocol"], facts.protocol)

    hparams["protocol"] = facts.protocol
    print(f"CLIP protocol: {facts.protocol} ({PROTOCOLS[facts.protocol]})")
    normalisation = dataset_facts.agreed_normalisation(facts.environments) or IMAGENET
    mean, std = normalisation
    print(f"CLIP input: undoes mean {list(mean)}, std {list(std)}")
    return normalisation


def _record_edition(hparams: dict[str, Any], facts: DatasetFacts) -> None:
    """Record which copy of the data this is, and print how it differs from the published one."""
    report = facts.report
    if report and report.problems:
        raise CarftError(
            f"{report.refusal}. To train anyway, set the hparam data_edition to {UNCHECKED!r}"
        )

    record_fact(hparams, "data_edition", facts.edition, "the data differs")
    print(f"Data: {benchmarks.edition_label(facts.edition) or 'not counted'}")
    for difference in report.differences if report else ():
        print(f"Data differs: {difference}")


def _require_sampling(hparams: Mapping[str, Any]) -> None:
    """Raise CarftError for a ``sampling`` that this host or ``class_balanced`` does not allow."""
    sampling = hparams["sampling"]
    if sampling == "with-replacement":
        return
    if hparams.get("class_balanced") or not in_our_harness():
        raise CarftError(
            f"sampling is {sampling!r}, expected 'with-replacement' where class_balanced is true, "
            "since a pass has each picture once, and in any host but this package's harness, which "
            "alone draws so"
        )


def _require_protocol(requested: str, followed: str) -> None:
    """Raise CarftError unless the data set follows the protocol that the hparams request."""
    is_hosts_default = requested == "domainbed" and followed == "host"  # a fork's own transforms
    if requested != followed and not is_hosts_default:
        raise CarftError(
            f"protocol is {requested!r}, but this data set keeps its own transforms ({followed}). "
            "Only this package's data sets and MultipleEnvironmentImageFolder with test_envs and "
            "hparams can follow another protocol. Leave protocol at 'domainbed'"
        )


def wanted_pictures(
    hparams: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
    """Pixels a side, and mean and std a channel, of the pictures that a host is to deliver.

    None for a CLIP that cannot be read: the algorithm will say why.
    """
    from domainbed_carft.method import job_clip  # takes the seconds of importing torch

    preprocessing = job_clip.wanted_preprocessing(hparams)
    if preprocessing is None:
        return None
    if not dataset_facts.set_normalisation(hparams, (preprocessing.mean, preprocessing.std)):
        return None
    return preprocessing.resolution, preprocessing.mean, preprocessing.std
