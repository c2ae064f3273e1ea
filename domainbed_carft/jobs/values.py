"""Whether the values of a record are what they must be, and the words for what they are instead.

Types are told exactly: to Python, ``true`` is a whole number, and equal to 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

IDENTITY = {"dataset": str, "algorithm": str, "trial_seed": int, "hparams_seed": int}
_LARGEST = sys.float_info.max
_NAN = float("nan")
_ROUNDING = 1e-6
_WORDS = {
    dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number",
    bool: "true or false", type(None): "null",
}  # fmt: skip


def is_finite(value: Any) -> bool:
    """Whether it is a number, and one that a double can hold."""
    return type(value) in (int, float) and abs(value) <= _LARGEST


def lacks(record: Any) -> str:
    """What a record lacks by which records are told apart and grouped; "" for a whole one."""
    if not isinstance(record, dict):
        return _wrong({"it": record}, "it", dict)
    args = record.get("args")
    if not isinstance(args, dict):
        return _wrong(record, "args", dict)
    if not is_finite(record.get("step")):
        return _wrong(record, "step", float)
    if not isinstance(args.get("test_envs"), list):
        return _wrong(args, "test_envs", list)
    if args.keys() >= IDENTITY.keys():
        return ""
    return f"there is no {', '.join(key for key in IDENTITY if key not in args)}"


def require_identity(args: Mapping[str, Any], count: int | None = None) -> None:
    """Raise ValueError unless the arguments name a job; ``count``: of environments, if known."""
    for key, kind in IDENTITY.items():
        require(args, key, kind)
    targets = require(args, "test_envs", list)
    if not all(type(i) is int and i >= 0 and (count is None or i < count) for i in targets):
        known = "expected indices of environments"
        known = known if count is None else f"accuracies of {count} environments"
        raise ValueError(f"test_envs {_short(targets)}, {known}")
    if len(set(targets)) < len(targets):
        raise ValueError(f"test_envs {_short(targets)} has an environment twice")


def require(where: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value of ``key``; raises ValueError, with its type, if it is not of this ``kind``."""
    value = where.get(key)
    if type(value) is not kind:
        raise ValueError(_wrong(where, key, kind))
    return value


def optional(where: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under ``key``, an empty one if there is none; raises ValueError as `require`."""
    return {} if where.get(key) is None else dict(require(where, key, dict))


def environments(told: Any, count: int) -> tuple[tuple[str, ...], str]:
    """The names that a record tells of its ``count`` environments, and what is wrong with them."""
    if told is None:
        return (), ""
    if type(told) is not list or any(type(name) is not str for name in told):
        return (), f"environments is {_short(told)}, expected a list of names"
    if len(told) != count:
        return (), f"{len(told)} environments are named, and there are accuracies of {count}"
    if len(set(told)) < count:
        return (), f"environments is {_short(told)}, which has a name twice"
    return tuple(told), ""


def shares(
    record: Mapping[str, Any], names: Iterable[str]
) -> tuple[list[float], list[str], list[str]]:
    """The values under ``names``, nan where there is none in [0, 1].

    And what there is instead: those that are no number, those that are out of range.
    """
    values = []
    strange = []
    outside = []
    for name in names:
        value: Any = record.get(name)
        known = is_finite(value)
        if known and in_range(value, value):
            values.append(float(value))
            continue
        values.append(_NAN)
        if known:
            outside.append(f"{name} {_short(value)}")
        elif value is not None and value == value:
            strange.append(f"{name} {_short(value)}")
    return values, strange, outside


def in_range(least: float, most: float) -> bool:
    """Whether all from ``least`` to ``most`` are in [0, 1]."""
    # Weights that are summed up in two orders may come to a little more than all.
    return least >= 0 and most <= 1 + _ROUNDING


def _wrong(where: Mapping[str, Any], key: str, expected: type) -> str:
    if key not in where:
        return f"there is no {key}"
    value = where[key]
    wanted = "a finite number" if expected is float else _WORDS[expected]
    return f"{key} is {_short(value)}, {_WORDS[type(value)]}; expected {wanted}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
