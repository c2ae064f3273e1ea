"""Hyperparameters: for each name a default and a random draw.

Names, defaults and distributions are those of upstream file domainbed/hparams_registry.py at
b93c22a for an algorithm without entries of its own, such as ERM. A plugin extends this by wrapping
the two public functions, `default_hparams` and `random_hparams`, in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from domainbed.lib import misc

Draw = Callable[[np.random.RandomState], Any]

SMALL_IMAGES = ("Debug28",)


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """Return the default of every hyperparameter of `algorithm` on `dataset`."""
    entries = _hparams(algorithm, dataset, 0)
    return {name: misc.plain(default) for name, (default, _) in entries.items()}


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """Return one random draw of every hyperparameter, the same for the same `seed`."""
    entries = _hparams(algorithm, dataset, seed)
    return {name: misc.plain(drawn) for name, (_, drawn) in entries.items()}


def _hparams(algorithm: str, dataset: str, random_seed: int) -> dict[str, tuple[Any, Any]]:
    """Return {name: (default, drawn)}.

    Each value has a random state of its own, seeded with its name, so that an added entry never
    changes what the others draw.
    """
    entries = {}
    for name, (default, draw) in _entries(dataset).items():
        state = np.random.RandomState(misc.seed_hash(random_seed, name))
        entries[name] = (default, draw(state))
    return entries


def _entries(dataset: str) -> dict[str, tuple[Any, Draw]]:
    """The default of each, and how to draw it.

    `train` itself reads data_augmentation and class_balanced; the others describe networks. Those
    that nothing here reads are there because every record of upstream's holds them.
    """
    dropout = (0.0, lambda state: state.choice((0.0, 0.1, 0.5)))
    entries = {
        "data_augmentation": _fixed(True),
        "resnet18": _fixed(False),
        "resnet50_augmix": _fixed(True),
        "dinov2": _fixed(False),
        "vit": _fixed(False),
        "vit_attn_tune": _fixed(False),
        "freeze_bn": _fixed(False),
        "lars": _fixed(False),
        "linear_steps": _fixed(500),
        "resnet_dropout": dropout,
        "vit_dropout": dropout,
        "class_balanced": _fixed(False),
        "nonlinear_classifier": _fixed(False),
    }
    if dataset in SMALL_IMAGES:
        return entries | {
            "lr": (1e-3, _power(10, -4.5, -2.5)),
            "weight_decay": _fixed(0.0),
            "batch_size": (64, _power(2, 3, 9, int)),
        }
    return entries | {
        "lr": (5e-5, _power(10, -5, -3.5)),
        "weight_decay": (0.0, _power(10, -6, -2)),
        "batch_size": (32, _power(2, 3, 5 if dataset == "DomainNet" else 5.5, int)),
    }


def _fixed(value: Any) -> tuple[Any, Draw]:
    """An entry that random search leaves alone."""
    return value, lambda state: value


def _power(base: float, low: float, high: float, kind: type[Any] = float) -> Draw:
    """Draw base ** uniform(low, high), an integer cut to one."""
    return lambda state: kind(base ** state.uniform(low, high))
