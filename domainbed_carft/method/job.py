"""The facts that a job finds before it builds its algorithm: data, CLIP, prompts, precision."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from domainbed_carft.clips import backbone
from domainbed_carft.clips.backbone import ClipFacts
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.images.dataset_facts import DatasetFacts
from domainbed_carft.images.preprocessing import IMAGENET, Normalisation, Preprocessing
from domainbed_carft.images.protocols import PROTOCOLS
from domainbed_carft.machine import devices
from domainbed_carft.method import prompts, resolution
from domainbed_carft.method.hparams import UNVERIFIED
from domainbed_carft.method.prompts import Prompts

BF16_CAPABILITY = (8, 0)  # the lowest compute capability whose tensor cores multiply bf16

# Pinnable fact -> reason for a mismatch.
_PINNED = {
    "clip_digest": "the CLIP weights differ",
    "clip_revision": "the hub's revision differs",
    "prompts_digest": "class names or contexts differ",
    "data_edition": "the data differs",
}


@dataclass(frozen=True)
class JobFacts:
    """The facts that a job finds before it builds its algorithm."""

    data: DatasetFacts
    prompts: Prompts  # empty if the job encodes none
    clip: ClipFacts
    amp: str  # "bf16" or "off"
    preprocessing: str  # the images that datasets provide, such as "224 bicubic shortest"

    @property
    def normalisation(self) -> Normalisation:
        """Mean and std of the dataset's images, by default DomainBed's."""
        return self.data.normalisation or IMAGENET

    def as_record(self) -> dict[str, str]:
        """Return the facts by their names in the records, `jobs.facts.NAMES`."""
        return {
            "clip_digest": self.clip.digest,
            "clip_revision": self.clip.revision,
            "prompts_digest": self.prompts.digest if self.prompts.classes else "",
            "data_edition": self.data.edition,
            "preprocessing": self.preprocessing,
            "protocol": self.data.protocol,
            "amp": self.amp,
        }

    def describe(self) -> list[str]:
        """Return the lines that a job prints."""
        report = self.data.report
        mean, std = self.normalisation
        return [
            f"Data: {benchmarks.edition_label(self.data.edition) or 'not verified'}",
            *(
                f"Data differs: {difference}"
                for difference in (report.differences if report else ())
            ),
            f"CLIP protocol: {self.data.protocol} ({PROTOCOLS[self.data.protocol]})",
            *(_describe_prompts(self.prompts) if self.prompts.classes else ()),
            f"CLIP input: undoes mean {list(mean)}, std {list(std)}",
        ]


def _describe_prompts(words: Prompts) -> list[str]:
    contexts = words.contexts
    return [
        f"CLIP classes: {', '.join(words.classes)}",
        f"CLIP contexts: {len(contexts)}, such as {contexts[0]!r}",
    ]


def find_shape_problems(input_shape: Sequence[int]) -> list[str]:
    """Return a problem unless images are RGB, of shape (3, height, width)."""
    if len(input_shape) == 3 and input_shape[0] == 3:
        return []

    shape = tuple(input_shape)
    expected = "(3, height, width): CLIP reads RGB"
    return [f"the dataset has images of shape {shape}, expected {expected}"]


def find_job_facts(
    algorithm: Any, hparams: Mapping[str, Any], num_classes: int, data: DatasetFacts
) -> JobFacts:
    """Return the facts of a job with complete ``hparams``, which are not changed.

    Args:
        algorithm: class of the algorithm.
        hparams: complete hyperparameters.
        num_classes: number of classes of the dataset.
        data: facts of the dataset.

    Returns:
        The facts.

    Raises:
        CarftError: if the data is broken or does not follow the hparams, if the prompts are invalid
            (`prompts.find_class_names`, `prompts.find_contexts`), if the CLIP model cannot be found
            or has another SHA-256, if this machine does not support the precision, or if a fact
            differs from its pinned value.
    """
    min_contexts = resolution.get_min_contexts(algorithm, hparams)
    return _find_facts(hparams, num_classes, data, min_contexts, resolve_amp(hparams["amp"]))


def find_host_facts(
    hparams: Mapping[str, Any], num_classes: int | None, data: DatasetFacts
) -> JobFacts:
    """Return the facts of a job that trains a CLIP model by an algorithm of the host.

    Such a job computes in float32. Prompts are only needed for ``clip_head`` "zero-shot".

    Args:
        hparams: hyperparameters of the host, with those of `host_hparams`.
        num_classes: number of classes of the dataset, None if it is not known.
        data: facts of the dataset.

    Raises:
        CarftError: as `find_job_facts`.
    """
    if hparams["clip_head"] == "random":
        return _find_facts(hparams, 0, data, min_contexts=0, amp="off")
    if num_classes is None:
        raise CarftError(
            f"{invalid('clip_head', hparams['clip_head'], 'random')} for a featurizer that is not "
            "built by an algorithm, after the constructor of Algorithm got num_classes"
        )
    return _find_facts(hparams, num_classes, data, min_contexts=1, amp="off")


def _find_facts(
    hparams: Mapping[str, Any],
    num_classes: int,
    data: DatasetFacts,
    min_contexts: int,
    amp: str,
) -> JobFacts:
    """Return the facts of a job, without prompts if it needs 0 contexts."""
    _require_fitting_data(hparams, data)
    name = hparams["clip_backbone"]
    if backbone.is_user_file(name):
        clip = _load_user_file_facts(name, _get_file_state(name))
    else:
        clip = backbone.find_clip_facts(name, backbone.find_preprocessing(name))

    words = Prompts(contexts=(), classes=())
    if min_contexts:
        words = Prompts(
            classes=prompts.find_class_names(hparams, num_classes, data),
            contexts=prompts.find_contexts(hparams, data, min_contexts),
        )
    facts = JobFacts(
        data=data,
        prompts=words,
        clip=clip,
        amp=amp,
        preprocessing=hparams.get("preprocessing") or clip.preprocessing.hparam_value,
    )
    _require_pinned(hparams, facts.as_record())
    return facts


def find_preprocessing(hparams: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing of the CLIP model of these ``hparams``.

    None for a CLIP model that cannot be read: `find_job_facts` raises the reason.
    """
    try:
        name = hparams["clip_backbone"]
        if backbone.is_user_file(name):
            return _load_user_file_facts(name, _get_file_state(name)).preprocessing
        return backbone.find_preprocessing(name)
    except Exception:  # an invalid file or the hub can raise any type
        return None


def resolve_amp(amp: str) -> str:
    """Return the precision of the hparam ``amp`` on this machine: "bf16" or "off".

    Raises CarftError for "bf16" on a GPU that does not support it.
    """
    gpu = devices.gpu_facts() if devices.is_gpu(devices.default_device()) else None
    has_bf16 = gpu is not None and gpu.capability >= BF16_CAPABILITY
    if amp == "auto":
        return "bf16" if has_bf16 else "off"
    if amp == "off" or gpu is None or has_bf16:
        return amp

    version = ".".join(map(str, gpu.capability))
    expected = (
        f"'off' on {gpu.name}, whose compute capability is {version}: bf16 needs 8.0 (A100) or more"
    )
    raise CarftError(
        f"{invalid('amp', amp, expected)}; "
        "set amp to 'off', or resume a job that started in bf16 on a GPU with bf16"
    )


def _get_file_state(path: str) -> tuple[int, int] | None:
    """Return the modification time and size of a file, None if it does not exist."""
    if not os.path.isfile(path):
        return None
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=4)
def _load_user_file_facts(path: str, state: tuple[int, int] | None) -> ClipFacts:
    """Return the facts of a user's file, which has to be loaded.

    The ``state`` of the file is part of the cache key, so that a changed file is loaded again.
    """
    # Loading the modules must not advance the random generators of the job.
    with torch.random.fork_rng(devices=[]):
        loaded = backbone.load(path)
    return ClipFacts(loaded.digest, loaded.revision, loaded.preprocessing)


def _require_fitting_data(hparams: Mapping[str, Any], facts: DatasetFacts) -> None:
    """Raise CarftError for broken data, and for data that does not follow ``hparams``."""
    report = facts.report
    if report and report.problems and hparams.get("data_edition") != UNVERIFIED:
        raise CarftError(
            f"{report.error_text}. To train anyway, set the hparam data_edition to {UNVERIFIED!r}"
        )

    sampling = hparams.get("sampling", "with-replacement")  # not in a host's algorithm
    if sampling != "with-replacement" and hparams.get("class_balanced"):
        expected = (
            "'with-replacement' because class_balanced is true, and a pass has each image once"
        )
        raise CarftError(invalid("sampling", sampling, expected))

    requested = hparams["protocol"]
    # A host's transforms are valid for the default protocol.
    if requested != facts.protocol and (requested, facts.protocol) != ("domainbed", "host"):
        raise CarftError(
            f"protocol is {requested!r}, but this dataset always uses its transforms "
            f"({facts.protocol}). Only this package's datasets and MultipleEnvironmentImageFolder "
            "with test_envs and hparams support other protocols. Leave protocol at 'domainbed'"
        )


def _require_pinned(hparams: Mapping[str, Any], record: Mapping[str, str]) -> None:
    """Raise CarftError if a fact of the job differs from the value pinned in ``hparams``."""
    raise_for(
        f"the hparam {name} is {hparams[name]!r}, but this job has {record[name]!r}: "
        f"{difference}. Use the same as in the run with that value, or omit {name}"
        for name, difference in _PINNED.items()
        if hparams.get(name, "") not in ("", UNVERIFIED, record[name])
    )
