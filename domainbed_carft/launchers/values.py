"""Values of launchers' options: from a flag, a YAML file or Python, to what is meant.

Each function returns the value or raises a ValueError that says what is expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What #SBATCH lines that we write already say, and the option that says it.
TAKEN = {
    "partition": "partition", "account": "account", "time": "time", "qos": "qos",
    "gpus_per_node": "gpus", "gpus": "gpus", "cpus_per_task": "cpus", "mem": "memory_gb",
    "array": "array_size and array_cap", "signal": "signal_seconds",
    "dependency": None, "requeue": None, "output": None, "error": None, "open_mode": None,
    "no_requeue": None, "nodes": None, "ntasks": None, "ntasks_per_node": None,
}  # fmt: skip


def whole(least: int) -> Callable[[Any], int]:
    """A converter to whole numbers from `least`."""

    def convert(value: Any) -> int:
        text = str(value).strip()
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise ValueError(f"expected a whole number from {least}")
        return int(text)

    return convert


def gigabytes(value: Any) -> float:
    """A number of gigabytes above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf or isinstance(value, bool):
        raise ValueError("expected a number of gigabytes above 0")
    return number


def word(value: Any) -> str:
    """Text that fits into a line of a batch file."""
    text = str(value).strip()
    if not text or not text.isprintable():
        raise ValueError("expected text on one line")
    return text


def minutes(value: Any) -> int:
    """Minutes, rounded up, of a number or of one of SLURM's spellings of a time."""
    text = str(value).strip()
    clock = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})", text)
    if clock:
        parts = [int(part) for part in clock["clock"].split(":")]
        if clock["days"] is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
            hours, mins, seconds = [*parts, 0, 0][:3]
        else:  # MM, MM:SS, HH:MM:SS
            hours, mins, seconds = [[0, *parts, 0], [0, *parts], parts][len(parts) - 1]
        total = (int(clock["days"] or 0) * 24 + hours) * 60 + mins + math.ceil(seconds / 60)
        if total:
            return total
    raise ValueError("expected minutes from 1, or MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")


def lines(value: Any) -> tuple[str, ...]:
    """Lines of shell, from a text or from a list of them."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Iterable) or not all(isinstance(item, str) for item in found):
        raise ValueError("expected lines of shell, as text or as a list")
    return tuple(line for item in found for line in item.splitlines() if line.strip())


def parameters(value: Any) -> dict[str, str | bool]:
    """Parameters of sbatch without an option of their own, from a mapping or KEY=VALUE texts.

    KEY alone, or the value true, is a flag without a value.
    """
    if isinstance(value, Mapping):
        pairs = {str(key): given for key, given in value.items()}
    else:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Iterable):
            raise ValueError("expected a mapping, or KEY=VALUE")
        split = [str(text).partition("=") for text in texts]
        pairs = {key: given if equals else True for key, equals, given in split}
    checked = {}
    for key, given in pairs.items():
        name = key.strip().lstrip("-").replace("-", "_")
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(f"{key!r} is no parameter of sbatch; expected KEY=VALUE")
        if name in TAKEN:
            option = TAKEN[name]
            raise ValueError(f"{key!r} is {f'said by {option}' if option else 'set by us'}")
        flag = given is True or str(given).lower() == "true"
        checked[name] = True if flag else word(given)
    return checked
