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
from domainbed_carft.method import dataset_facts
from domainbed_carft.pictures import rng
from domainbed_carft.pictures.preprocessing import Preprocessing


@dataclass
class _JobClip:
    """The CLIP that some hparams name."""

    hparams: Mapping[str, Any]
    name: str
    preprocessing: Preprocessing
    loaded: Backbone | None  # of a file that had to be read; None once the algorithm has it


# One job has one CLIP.
_last: _JobClip | None = None


def wanted_preprocessing(hparams: Mapping[str, Any]) -> Preprocessing | None:
    """What the job's CLIP wants of pictures.

    None for a CLIP that cannot be read: the algorithm, which loads it, says why.
    """
    global _last
    known_clip = _known_clip(hparams)
    if known_clip:
        return known_clip.preprocessing

    name = hparams["clip_backbone"]
    try:
        with rng.preserved_states():  # building a model draws, and training would draw otherwise
            loaded = backbone.load(name) if backbone.is_own_file(name) else None
            preprocessing = loaded.preprocessing if loaded else backbone.preprocessing(name)
    except Exception:  # of any type, by what the file or the hub has
        return None
    _last = _JobClip(hparams, name, preprocessing, loaded)
    return preprocessing


def wanted_pictures(
    hparams: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
    """Pixels a side, and mean and std a channel, of the pictures that a host is to deliver.

    None for a CLIP that cannot be read, and for a data set without environments.
    """
    preprocessing = wanted_preprocessing(hparams)
    if preprocessing is None:
        return None
    if not dataset_facts.set_normalisation(hparams, (preprocessing.mean, preprocessing.std)):
        return None
    return preprocessing.resolution, preprocessing.mean, preprocessing.std


def load(hparams: Mapping[str, Any]) -> Backbone:
    """The job's CLIP, for its algorithm, which may train it. Raises as `backbone.load`.

    A file that `wanted_preprocessing` has read is not read again.
    """
    known_clip = _known_clip(hparams)
    if not (known_clip and known_clip.loaded):
        return backbone.load(hparams["clip_backbone"])

    loaded = known_clip.loaded
    known_clip.loaded = None
    return loaded


def _known_clip(hparams: Mapping[str, Any]) -> _JobClip | None:
    is_known = _last and _last.hparams is hparams and _last.name == hparams["clip_backbone"]
    return _last if is_known else None
