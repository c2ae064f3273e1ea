"""The complete hyperparameters of a job: those chosen, and in them what the job finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.clips.backbone import ClipFacts
from domainbed_carft.errors import Problem, raise_for
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.device import DeviceFacts, resolve_amp
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.method.prompts import Prompts

# What differs if a job has another value than these hparams demand.
_DEMANDED = {
    "clip_digest": "the CLIP is another",
    "clip_revision": "the hub's is another",
    "prompts_digest": "class names or contexts differ",
    "data_edition": "the data differs",
}


@dataclass(frozen=True)
class JobFacts:
    """What a job finds before it builds anything: its data, CLIP, prompts and device."""

    data: DatasetFacts
    prompts: Prompts
    clip: ClipFacts
    device: DeviceFacts


def resolve(chosen: Mapping[str, Any], facts: JobFacts) -> dict[str, Any]:
    """All hparams of a job, as each of its records holds them. Pure: reads its arguments only.

    ``chosen``: the defaults of the algorithm on its data set, or a random draw, and over them what
    the user sets. It stays as it is.

    Raises CarftError where ``chosen`` demands another CLIP, other prompts or other data than the
    job has, and an ``amp`` in which its device does not compute.
    """
    found = {
        "clip_digest": facts.clip.digest,
        "clip_revision": facts.clip.revision,
        "prompts_digest": facts.prompts.digest,
        "data_edition": facts.data.edition,
    }
    if chosen["data_edition"] == UNCHECKED:
        del found["data_edition"]
    raise_for(
        Problem(
            message=f"the hparam {name} is {chosen[name]!r}, but this job has {value!r}: "
            f"{_DEMANDED[name]}",
            remedy=f"use the same as the run that the value is from, or omit {name}",
        )
        for name, value in found.items()
        if chosen[name] not in ("", value)
    )

    wanted_pictures = chosen["preprocessing"] or facts.clip.preprocessing.hparam_value
    return {
        **chosen,
        **found,
        "amp": resolve_amp(chosen["amp"], facts.device),
        "protocol": facts.data.protocol,
        "preprocessing": wanted_pictures,
    }
