"""The CLIP of this job: what pictures it wants is asked once, and its file is read once.

DomainBed passes one hparams object to the data set and later to the algorithm, and nothing else. So
the CLIP is found by that object, as `dataset_facts` are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from domainbed_carft.clips import backbone
from domainbed_carft.clips.backbone import Backbone, ClipFacts
from domainbed_carft.pictures.preprocessing import Preprocessing


@dataclass
class _JobClip:
    """The CLIP that some hparams name."""

    hparams: Mapping[str, Any]
    name: str
    preprocessing: Preprocessing
    loaded: Backbone | None  # of a file that had to be read; None once the algorithm has it

    def is_of(self, hparams: Mapping[str, Any]) -> bool:
        return self.hparams is hparams and self.name == hparams["clip_backbone"]


# One job has one CLIP.
_last: _JobClip | None = None


def wanted_preprocessing(hparams: Mapping[str, Any]) -> Preprocessing | None:
    """What the job's CLIP wants of pictures.

    None for a CLIP that cannot be read: `facts` say why, before the algorithm is built.
    """
    try:
        return _job_clip(hparams).preprocessing
    except Exception:  # of any type, by what the file or the hub has
        return None


def facts(hparams: Mapping[str, Any]) -> ClipFacts:
    """Which CLIP the job has, and what it wants of pictures.

    A user's own file has to be loaded for it, and is kept for `load`. Raises as `backbone.load`.
    """
    job_clip = _job_clip(hparams)
    if job_clip.loaded is None:
        return backbone.clip_facts(job_clip.name, job_clip.preprocessing)
    return ClipFacts(job_clip.loaded.digest, job_clip.loaded.revision, job_clip.preprocessing)


def load(hparams: Mapping[str, Any]) -> Backbone:
    """The job's CLIP, for its algorithm, which may train it. Raises as `backbone.load`.

    A file that `wanted_preprocessing` has read is not read again.
    """
    loaded = None
    if _last and _last.is_of(hparams):
        loaded = _last.loaded
        _last.loaded = None
    return loaded or backbone.load(hparams["clip_backbone"])


def _job_clip(hparams: Mapping[str, Any]) -> _JobClip:
    """The CLIP that ``hparams`` name, from the last call if they are the same object."""
    global _last
    name = hparams["clip_backbone"]
    if _last is None or not _last.is_of(hparams):
        loaded = None
        if backbone.is_own_file(name):
            # Making the modules must not move the generators that the job draws from.
            with torch.random.fork_rng(devices=[]):
                loaded = backbone.load(name)
        preprocessing = loaded.preprocessing if loaded else backbone.preprocessing(name)
        _last = _JobClip(hparams, name, preprocessing, loaded)
    return _last
