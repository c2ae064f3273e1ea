"""The CLIP model that the hyperparameters of a dataset's job name, if they name one."""

from __future__ import annotations

from typing import Any

from domainbed_carft.errors import CarftError, JobExit
from domainbed_carft.images.preprocessing import Preprocessing


def require_weights(hparams: Any) -> None:
    """Locate or download the CLIP checkpoint of a checkout's job before its data is read.

    Does nothing for other algorithms, and for the included harness and open_clip, which find the
    checkpoint themselves. Raises JobExit if OpenAI's weights cannot be downloaded, or if the
    user's file does not exist.
    """
    if not _has_clip_model(hparams):
        return

    from domainbed_carft.clips import open_clip, openai
    from domainbed_carft.method.host_lookup import is_carft_harness

    name = hparams.get("clip_backbone")
    if not isinstance(name, str) or name.startswith(open_clip.PREFIX) or is_carft_harness():
        return

    try:
        openai.locate(name)
    except CarftError as error:
        raise JobExit(str(error)) from None


def _has_clip_model(hparams: Any) -> bool:
    """Return True if the hyperparameters name a CLIP model for this package to load.

    In a host with its own CLIP model of that name, these are only jobs of this package.
    """
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
        return False

    from domainbed_carft.method import host_lookup

    return "contexts" in hparams or not host_lookup.has_own_clip()


def get_requested_preprocessing(hparams: Any) -> Preprocessing | None:
    """Return the preprocessing set by the hparam, or else expected by the CLIP checkpoint.

    Returns None for other algorithms, and for a CLIP checkpoint that cannot be read.
    """
    if not _has_clip_model(hparams):
        return None
    if hparams.get("preprocessing"):
        return Preprocessing.from_hparam(hparams["preprocessing"])

    from domainbed_carft.method import job  # imports torch, which takes seconds

    return job.find_preprocessing(hparams)
