"""Default and random values of the hyperparameters.

Values of upstream file domainbed/hparams_registry.py at b93c22a for an algorithm without special
entries, such as ERM. A plugin extends the registry by wrapping the module's two public functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from domainbed.lib import misc

Draw = Callable[[np.random.RandomState], Any]

SMALL_IMAGES = ("Debug28",)

# Names that --hparams can set for any algorithm, without a default: other jobs do not record them.
# `shots`: number of images per class and environment to train on.
OPTIONAL_HPARAMS = ("shots",)


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """Return the default of every hyperparameter of `algorithm` on `dataset`."""
    return {
        name: misc.plain(entry[0] if isinstance(entry, tuple) else entry)
        for name, entry in _entries(dataset).items()
    }


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """Return one random draw of every hyperparameter, the same for the same `seed`.

    Each draw is seeded with its name, so an added hyperparameter changes no other draw.
    """
    hparams = default_hparams(algorithm, dataset)
    generator = np.random.RandomState()  # seeding one is much faster than making many
    for name, entry in _entries(dataset).items():
        if isinstance(entry, tuple):
            _, draw = entry
            generator.seed(misc.seed_hash(seed, name))
            hparams[name] = misc.plain(draw(generator))
    return hparams


def _entries(dataset: str) -> dict[str, Any]:
    """Map each name to (default, draw), or to a constant that random search does not change.

    `train` reads data_augmentation and class_balanced; the others describe networks. Some are read
    by no code of this harness and are kept because every record of upstream holds them.
    """
    dropout = (0.0, lambda state: state.choice((0.0, 0.1, 0.5)))
    entries = {
        **dict.fromkeys(("data_augmentation", "resnet50_augmix"), True),
        **dict.fromkeys(("resnet18", "dinov2", "vit", "vit_attn_tune", "freeze_bn", "lars"), False),
        **dict.fromkeys(("class_balanced", "nonlinear_classifier"), False),
        **dict.fromkeys(("resnet_dropout", "vit_dropout"), dropout),
        "linear_steps": 500,
    }

    if dataset in SMALL_IMAGES:
        return entries | {
            "lr": (1e-3, _power(10, -4.5, -2.5)),
            "weight_decay": 0.0,
            "batch_size": (64, _power(2, 3, 9, int)),
        }

    return entries | {
        "lr": (5e-5, _power(10, -5, -3.5)),
        "weight_decay": (0.0, _power(10, -6, -2)),
        "batch_size": (32, _power(2, 3, 5 if dataset == "DomainNet" else 5.5, int)),
    }


def _power(base: float, low: float, high: float, kind: type[Any] = float) -> Draw:
    """Draw base ** uniform(low, high), truncated if `kind` is int."""
    return lambda state: kind(base ** state.uniform(low, high))
