"""What a job finds when it starts, beside its wishes: the data, their normalisation, the CLIP."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.host_process import in_our_harness
from domainbed_carft.method.hparams import UNCHECKED


def record_fact(hparams: dict[str, Any], name: str, found: str, difference: str) -> None:
    """Put what the run found into the hparams, for the records; CarftError for another wish."""
    expected = hparams[name]
    if expected not in ("", found):
        raise CarftError(
            f"the hparam {name} is {expected!r}, but this run has {found!r}: {difference}. Use "
            f"the same as the run that the value is from, or omit {name}"
        )
    hparams[name] = found


def record_data_facts(hparams: dict[str, Any]) -> dataset_facts.Normalisation:
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
        record_fact(hparams, "data_edition", seen.edition, "the data differs")
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
        if dataset_facts.set_normalisation(hparams, (wanted.mean, wanted.std)):
            return wanted.resolution, wanted.mean, wanted.std
    return None
