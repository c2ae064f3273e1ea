"""The CLIP of this job: what pictures it wants is asked once, and its file is read once.

DomainBed passes one hparams object to the data set and later to the algorithm, and nothing else. So
the CLIP is found by that object, as `dataset_facts` are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.clips import backbone
from domainbed_carft.clips.backbone import Backbone
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

    None for a CLIP that cannot be read: the algorithm, which loads it, says why.
    """
    global _last
    if _last and _last.is_of(hparams):
        return _last.preprocessing

    name = hparams["clip_backbone"]
    try:
        loaded = backbone.load(name) if backbone.is_own_file(name) else None
        preprocessing = loaded.preprocessing if loaded else backbone.preprocessing(name)
    except Exception:  # of any type, by what the file or the hub has
        return None
    _last = _JobClip(hparams, name, preprocessing, loaded)
    return preprocessing


def load(hparams: Mapping[str, Any]) -> Backbone:
    """The job's CLIP, for its algorithm, which may train it. Raises as `backbone.load`.

    A file that `wanted_preprocessing` has read is not read again.
    """
    loaded = None
    if _last and _last.is_of(hparams):
        loaded = _last.loaded
        _last.loaded = None
    return loaded or backbone.load(hparams["clip_backbone"])
