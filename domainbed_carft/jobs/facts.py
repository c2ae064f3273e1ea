"""What a job found out about itself: which CLIP, prompts and data it had, and its precision.

Records and files of weights have these facts as keys of their own; in a foreign host, whose records
hold nothing of ours but the hyperparameters, they are in the one hyperparameter ``facts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# SHA-256 of the CLIP's file, the hub's revision of it, the prompt digest, the verdict on the data,
# how datasets deliver images, the protocol that they follow, "bf16" or "off", and SHA-256 and
# name of the file of a user's own method.
NAMES = (
    "clip_digest",
    "clip_revision",
    "prompts_digest",
    "data_edition",
    "preprocessing",
    "protocol",
    "amp",
    "method_digest",
    "method_file",
)

FOREIGN = "facts"  # the hyperparameter of a foreign host's records


def get_hparams_and_facts(content: Mapping[str, Any], hparams: Any) -> dict[str, Any]:
    """The hyperparameters and the facts of a job, by name, wherever the facts are.

    ``content``: of a record or a file of weights; ``hparams``: the hyperparameters in it. Of what
    both have (``amp``, ``protocol``), the fact counts.
    """
    hparams = hparams if isinstance(hparams, Mapping) else {}
    added = hparams.get(FOREIGN)
    places = [added if isinstance(added, Mapping) else {}, content]
    facts = {name: place[name] for place in reversed(places) for name in NAMES if place.get(name)}
    return {name: value for name, value in {**hparams, **facts}.items() if name != FOREIGN}
