"""What a job finds before it builds anything: its data, and whether it will do, CLIP, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.method import dataset_facts, job_clip, prompts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.device import device_facts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.method.resolution import JobFacts
from domainbed_carft.pictures.protocols import PROTOCOLS


class _Remembered(NamedTuple):
    """The facts of a job, and the objects that hold its hparams."""

    hparams: Sequence[Mapping[str, Any]]
    facts: JobFacts


# A process has one job.
_last: _Remembered | None = None


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


def find_facts(hparams: Mapping[str, Any], num_classes: int, has_kl: bool) -> JobFacts:
    """The facts of the job whose data set was built with this ``hparams`` object.

    ``has_kl``: whether its loss has the KL term. Raises CarftError for broken data, for data that
    does not follow the hparams, as `prompts.prompts_of`, and for a CLIP that cannot be found or is
    not what its name says.
    """
    data = dataset_facts.recall(hparams, prompts.named_dataset(hparams["class_names"]))
    chosen = dict(hparams)  # a fork's configuration object has no `get`
    require_fitting_data(chosen, data)
    return JobFacts(
        data=data,
        prompts=prompts.prompts_of(chosen, num_classes, data, has_kl),
        clip=job_clip.facts(hparams),
        device=device_facts(),
    )


def remember(facts: JobFacts, *hparams: Mapping[str, Any]) -> None:
    """Keep ``facts`` for the algorithm that gets one of these ``hparams`` objects."""
    global _last
    _last = _Remembered(hparams, facts)


def recall(hparams: Mapping[str, Any]) -> JobFacts:
    """The facts of the job that has this ``hparams`` object; CarftError if it is not resolved."""
    if _last is not None and any(hparams is known for known in _last.hparams):
        return _last.facts
    raise CarftError(
        Problem(
            message="these hparams are not resolved, as a job does before it builds its algorithm",
            remedy="build it with what the resolve_hparams of its class returns",
        )
    )


def describe(facts: JobFacts, checks_data: bool) -> list[str]:
    """The lines that a job prints of what it found; the verdict only if it ``checks_data``."""
    data = facts.data
    lines = []
    if checks_data:
        differences = data.report.differences if data.report else ()
        lines.append(f"Data: {benchmarks.edition_label(data.edition) or 'not counted'}")
        lines += [f"Data differs: {difference}" for difference in differences]

    contexts = facts.prompts.contexts
    return [
        *lines,
        f"CLIP protocol: {data.protocol} ({PROTOCOLS[data.protocol]})",
        f"CLIP classes: {', '.join(facts.prompts.classes)}",
        f"CLIP contexts: {len(contexts)}, such as {contexts[0]!r}",
    ]


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
