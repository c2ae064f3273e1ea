"""Facts of a job: its CLIP model, prompts, data and precision.

A job finds its facts, while a user, a draw or a default decides its hyperparameters. Records and
files of weights have a key for each fact. The `train` of a checkout records only hyperparameters,
so there all facts are in the hyperparameter ``facts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECLARATIONS = "method_declarations"
CHANGED_HPARAMS = "changed_hparams"

NAMES = (
    "clip_digest",  # SHA-256 of the CLIP checkpoint
    "clip_revision",  # its revision on the hub
    "prompts_digest",
    "data_edition",  # whether the data is verified, and its edition
    "preprocessing",  # of the images from the datasets
    "protocol",  # of the image transforms
    "amp",  # "bf16" or "off"
    "method_digest",  # SHA-256 of the file of a user's own method
    "method_file",  # name of this file
    DECLARATIONS,  # style and hyperparameters of the method's class
    CHANGED_HPARAMS,  # names of the hparams that differ from the defaults and change the result
)

# Facts that a hyperparameter of the same name decides; the fact is the value that it led to.
OF_HPARAMS = ("protocol", "amp")

FOREIGN = "facts"  # the hyperparameter with the facts in records of checkouts


def is_fact(name: str) -> bool:
    """Return True for the name of a recorded value that is a fact and no hyperparameter."""
    return name in NAMES and name not in OF_HPARAMS


def get_hparams_and_facts(content: Mapping[str, Any], hparams: Any) -> dict[str, Any]:
    """Merge the hyperparameters and the facts of a job, wherever the facts are recorded.

    A fact replaces the hyperparameter of the same name (see OF_HPARAMS).

    Args:
        content: the content of a record or of a file of weights.
        hparams: the hyperparameters in it.
    """
    hparams = hparams if isinstance(hparams, Mapping) else {}
    added = hparams.get(FOREIGN)
    places = [added if isinstance(added, Mapping) else {}, content]
    facts = {
        name: place[name]
        for place in reversed(places)
        for name in NAMES
        if place.get(name) not in (None, "", {})
    }
    return {name: value for name, value in {**hparams, **facts}.items() if name != FOREIGN}
