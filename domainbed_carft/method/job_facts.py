"""What a job finds before it builds anything: its data, and whether it will do, CLIP, prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.method import dataset_facts, job_clip, prompts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.device import device_facts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.method.prompts import Prompts
from domainbed_carft.method.resolution import JobFacts
from domainbed_carft.pictures.protocols import PROTOCOLS


def data_facts(hparams: Mapping[str, Any]) -> DatasetFacts:
    """The facts of the data set that was built with this ``hparams`` object."""
    return dataset_facts.recall(hparams, prompts.named_dataset(hparams["class_names"]))


def require_fitting_data(hparams: Mapping[str, Any], facts: DatasetFacts) -> None:
    """Raise CarftError for broken data, and for data that does not follow ``hparams``."""
    report = facts.report
    if report and report.problems and hparams["data_edition"] != UNCHECKED:
        raise CarftError(
            f"{report.refusal}. To train anyway, set the hparam data_edition to {UNCHECKED!r}"
        )

    if hparams["sampling"] != "with-replacement" and hparams.get("class_balanced"):
        raise CarftError(
            Problem(
                "sampling",
                hparams["sampling"],
                expected="'with-replacement' where class_balanced is true, since a pass has each "
                "picture once",
            )
        )
    _require_protocol(hparams["protocol"], facts.protocol)


def _require_protocol(requested: str, followed: str) -> None:
    """Raise CarftError unless the data set follows the protocol that the hparams request."""
    is_hosts_default = requested == "domainbed" and followed == "host"  # a fork's own transforms
    if requested != followed and not is_hosts_default:
        raise CarftError(
            f"protocol is {requested!r}, but this data set keeps its own transforms ({followed}). "
            "Only this package's data sets and MultipleEnvironmentImageFolder with test_envs and "
            "hparams can follow another protocol. Leave protocol at 'domainbed'"
        )


def find_facts(hparams: Mapping[str, Any], data: DatasetFacts, job_prompts: Prompts) -> JobFacts:
    """The facts that `resolution.resolve` needs, with those of the CLIP and the device.

    Raises CarftError for a CLIP that cannot be found or is not what its name says.
    """
    return JobFacts(
        data=data,
        clip=job_clip.facts(hparams),
        prompts_digest=job_prompts.digest,
        device=device_facts(),
    )


def describe(hparams: Mapping[str, Any], data: DatasetFacts, job_prompts: Prompts) -> Iterator[str]:
    """The lines that a job prints of what it found."""
    if hparams["data_edition"] != UNCHECKED:
        yield f"Data: {benchmarks.edition_label(data.edition) or 'not counted'}"
        for difference in data.report.differences if data.report else ():
            yield f"Data differs: {difference}"

    yield f"CLIP protocol: {data.protocol} ({PROTOCOLS[data.protocol]})"
    yield f"CLIP classes: {', '.join(job_prompts.classes)}"
    contexts = job_prompts.contexts
    yield f"CLIP contexts: {len(contexts)}, such as {contexts[0]!r}"


def wanted_pictures(
    hparams: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
    """Pixels a side, and mean and std a channel, of the pictures that a host is to deliver.

    None for a CLIP that cannot be read: the algorithm will say why.
    """
    preprocessing = job_clip.wanted_preprocessing(hparams)
    if preprocessing is None:
        return None
    if not dataset_facts.set_normalisation(hparams, (preprocessing.mean, preprocessing.std)):
        return None
    return preprocessing.resolution, preprocessing.mean, preprocessing.std
