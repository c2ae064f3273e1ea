"""What a job finds before it builds its algorithm: its data, CLIP, prompts and precision."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from domainbed_carft.clips import backbone
from domainbed_carft.clips.backbone import ClipFacts
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import PROTOCOLS
from domainbed_carft.machine import devices
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.method.prompts import Prompts

BF16_CAPABILITY = (8, 0)  # the lowest compute capability whose tensor cores multiply bf16

# What differs if a job has another value than a user demands in `--hparams`.
_PINNED = {
    "clip_digest": "the CLIP is another",
    "clip_revision": "the hub's is another",
    "prompts_digest": "class names or contexts differ",
    "data_edition": "the data differs",
}


@dataclass(frozen=True)
class JobFacts:
    """What a job finds before it builds anything.

    ``amp``: "bf16" or "off". ``preprocessing``: how datasets are to deliver images, such as "224
    bicubic shortest".
    """

    data: DatasetFacts
    prompts: Prompts
    clip: ClipFacts
    amp: str
    preprocessing: str

    def as_record(self) -> dict[str, str]:
        """The facts as each record has them, by name: `jobs.facts.NAMES`."""
        return {
            "clip_digest": self.clip.digest,
            "clip_revision": self.clip.revision,
            "prompts_digest": self.prompts.digest,
            "data_edition": self.data.edition,
            "preprocessing": self.preprocessing,
            "protocol": self.data.protocol,
            "amp": self.amp,
        }

    def describe(self) -> list[str]:
        """The lines that a job prints."""
        contexts = self.prompts.contexts
        report = self.data.report
        return [
            f"Data: {benchmarks.edition_label(self.data.edition) or 'not counted'}",
            *(
                f"Data differs: {difference}"
                for difference in (report.differences if report else ())
            ),
            f"CLIP protocol: {self.data.protocol} ({PROTOCOLS[self.data.protocol]})",
            f"CLIP classes: {', '.join(self.prompts.classes)}",
            f"CLIP contexts: {len(contexts)}, such as {contexts[0]!r}",
        ]


def find_job_facts(hparams: Mapping[str, Any], num_classes: int, has_kl: bool) -> JobFacts:
    """The facts of a job with these complete ``hparams``, which are not changed.

    ``has_kl``: whether its loss has the KL term. Raises CarftError for broken data, for data that
    does not follow the hparams, as `prompts.build_prompts`, for a CLIP that cannot be found or is not
    what its name says, for a precision in which this machine does not compute, and where the
    hparams demand another CLIP, other prompts or other data than the job has.
    """
    data = dataset_facts.recall(hparams)
    _require_fitting_data(hparams, data)
    name = hparams["clip_backbone"]
    clip = _user_file_facts(name, _file_state(name)) if backbone.is_user_file(name) else None
    clip = clip or backbone.find_clip_facts(name, backbone.find_preprocessing(name))

    facts = JobFacts(
        data=data,
        prompts=prompts.build_prompts(hparams, num_classes, data, has_kl),
        clip=clip,
        amp=resolve_amp(hparams["amp"]),
        preprocessing=hparams.get("preprocessing") or clip.preprocessing.hparam_value,
    )
    _require_pinned(hparams, facts.as_record())
    return facts


def find_preprocessing(hparams: Mapping[str, Any]) -> Preprocessing | None:
    """What the CLIP of these ``hparams`` wants of images.

    None for a CLIP that cannot be read: `find_job_facts` says why.
    """
    try:
        name = hparams["clip_backbone"]
        if backbone.is_user_file(name):
            return _user_file_facts(name, _file_state(name)).preprocessing
        return backbone.find_preprocessing(name)
    except Exception:  # of any type, by what the file or the hub has
        return None


def wanted_images(
    hparams: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
    """Pixels a side, and mean and std a channel, of the images that a host is to deliver.

    None for a CLIP that cannot be read: the algorithm will say why.
    """
    preprocessing = find_preprocessing(hparams)
    if preprocessing is None:
        return None
    if not dataset_facts.set_normalisation(hparams, (preprocessing.mean, preprocessing.std)):
        return None
    return preprocessing.resolution, preprocessing.mean, preprocessing.std


def resolve_amp(amp: str) -> str:
    """What the hparam ``amp`` means on this machine: "bf16" or "off".

    Raises CarftError for "bf16" on a GPU that does not compute in it.
    """
    has_gpu = devices.is_gpu(devices.default_device())
    gpu = devices.gpu_facts() if has_gpu else None
    has_bf16 = gpu is not None and gpu.capability >= BF16_CAPABILITY
    if amp == "auto":
        return "bf16" if has_bf16 else "off"
    if amp == "off" or gpu is None or has_bf16:
        return amp

    version = ".".join(map(str, gpu.capability))
    expected = (
        f"'off' on {gpu.name}, whose compute capability is {version}: bf16 takes 8.0 (A100) or more"
    )
    raise CarftError(
        f"{invalid('amp', amp, expected)}; "
        "set amp to 'off', or resume the job on a card on which it began in bf16"
    )


def _file_state(path: str) -> tuple[int, int] | None:
    """What changes if a file does: its time and size; None if there is no file."""
    if not os.path.isfile(path):
        return None
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=4)
def _user_file_facts(path: str, state: tuple[int, int] | None) -> ClipFacts:
    """The facts of a user's own file, which has to be loaded for them. Raises as `backbone.load`.

    ``state``: of the file, as `_file_state` returns it, so that a changed one is loaded again.
    """
    # Making the modules must not move the generators that the job draws from.
    with torch.random.fork_rng(devices=[]):
        loaded = backbone.load(path)
    return ClipFacts(loaded.digest, loaded.revision, loaded.preprocessing)


def _require_fitting_data(hparams: Mapping[str, Any], facts: DatasetFacts) -> None:
    """Raise CarftError for broken data, and for data that does not follow ``hparams``."""
    report = facts.report
    if report and report.problems and hparams.get("data_edition") != UNCHECKED:
        raise CarftError(
            f"{report.refusal}. To train anyway, set the hparam data_edition to {UNCHECKED!r}"
        )

    if hparams["sampling"] != "with-replacement" and hparams.get("class_balanced"):
        expected = (
            "'with-replacement' where class_balanced is true, since a pass has each image once"
        )
        raise CarftError(invalid("sampling", hparams["sampling"], expected))

    requested = hparams["protocol"]
    is_hosts_default = requested == "domainbed" and facts.protocol == "host"  # own transforms
    if requested != facts.protocol and not is_hosts_default:
        raise CarftError(
            f"protocol is {requested!r}, but this dataset keeps its own transforms "
            f"({facts.protocol}). Only this package's datasets and MultipleEnvironmentImageFolder "
            "with test_envs and hparams can follow another protocol. Leave protocol at 'domainbed'"
        )


def _require_pinned(hparams: Mapping[str, Any], record: Mapping[str, str]) -> None:
    """Raise CarftError where ``hparams`` demand other facts than the job has."""
    raise_for(
        f"the hparam {name} is {hparams[name]!r}, but this job has {record[name]!r}: "
        f"{difference}; use the same as the run that the value is from, or omit {name}"
        for name, difference in _PINNED.items()
        if hparams.get(name, "") not in ("", UNCHECKED, record[name])
    )
