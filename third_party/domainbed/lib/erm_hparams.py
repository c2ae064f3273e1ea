"""Which values ERM takes for its hyperparameters, found out before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class _Kind(NamedTuple):
    expected: str
    takes: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# A text such as "no" would count as true.
_SWITCH = _Kind("true or false", lambda value: isinstance(value, int) and value in (0, 1))
_NOT_INCLUDED = _Kind(
    "false (what upstream has for it is not included)", lambda value: value in (None, False)
)
_KINDS = {
    "lr": _Kind("a number of at least 0", lambda value: _number(value) and value >= 0),
    "weight_decay": _Kind("a number of at least 0", lambda value: _number(value) and value >= 0),
    "resnet_dropout": _Kind(
        "a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1
    ),
    **dict.fromkeys(("nonlinear_classifier", "resnet18", "resnet50_augmix", "freeze_bn"), _SWITCH),
    **dict.fromkeys(("lars", "vit", "dinov2", "vit_attn_tune"), _NOT_INCLUDED),
}


def problems(algorithm: str, dataset: str, given: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with values for ERM; one of `hparams_registry.HPARAM_CHECKS`."""
    if algorithm != "ERM":
        return []
    return [
        f"--hparams: {name} must be {_KINDS[name].expected}, not {value!r}."
        for name, value in given.items()
        if name in _KINDS and not _KINDS[name].takes(value)
    ]
