"""What a job cost, from its records: time, memory, trained parameters, and on which device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What the records of checkouts tell of the device: its memory.
UNNAMED_GPU = "a GPU that the records do not name"
UNNAMED_CPU = "a processor that the records do not name"
UNKNOWN_DEVICE = "a device that the records do not tell"

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """The cost of one run; None where its records do not have it.

    ``device``: its name, the same for runs that may be compared, or one of UNNAMED_GPU,
    UNNAMED_CPU and UNKNOWN_DEVICE. ``step_seconds``: the mean over all steps but those of the
    first record, which are slower, unless there is no other. ``evaluation_hours`` and
    ``training_hours`` are of all records; ``memory_gb``: the most memory of one GPU in use, in GiB.
    """

    device: str = UNKNOWN_DEVICE
    step_seconds: float | None = None
    training_hours: float | None = None
    evaluation_hours: float | None = None
    memory_gb: float | None = None
    trained_parameters: float | None = None


def recorded_cost(records: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost of the run that wrote these records, one per step, at least one."""
    ordered = sorted(records, key=lambda record: record["step"])
    memory = [_number(record, "mem_gb") for record in ordered]
    evaluations = _sum([_number(record, "evaluation_time") for record in ordered])

    step_counts = _step_counts(ordered)
    step_seconds = [_number(record, "step_time") for record in ordered]
    first = 1 if len(ordered) > 1 else 0
    later_seconds = _weighted_sum(step_seconds[first:], step_counts[first:])
    training = _weighted_sum(step_seconds, step_counts)

    return Cost(
        device=_device(ordered[-1], memory),
        step_seconds=_ratio(later_seconds, sum(step_counts[first:])),
        training_hours=_ratio(training, _SECONDS_PER_HOUR),
        evaluation_hours=_ratio(evaluations, _SECONDS_PER_HOUR),
        memory_gb=max((value for value in memory if value), default=None),
        trained_parameters=_number(ordered[-1], "trained_parameters"),
    )


def _device(record: Mapping[str, Any], memory: Sequence[float | None]) -> str:
    """The recorded name of the device, else what its memory tells: torch counts that of GPUs."""
    name = record.get("device")
    if isinstance(name, str) and name:
        return name

    known = [value for value in memory if value is not None]
    if not known:
        return UNKNOWN_DEVICE
    return UNNAMED_GPU if any(known) else UNNAMED_CPU


def _step_counts(ordered: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many steps each record's means are over: those since the record before it."""
    steps = [record["step"] for record in ordered]
    return [step - before for before, step in zip([-1, *steps], steps)]


def _number(record: Mapping[str, Any], name: str) -> float | None:
    """A recorded number that is finite and not negative; None for all else."""
    value: Any = record.get(name)
    is_number = type(value) in (int, float) and 0 <= value < math.inf
    return float(value) if is_number else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    products = [None if value is None else value * weight for value, weight in zip(values, weights)]
    return _sum(products)


def _ratio(value: float | None, divisor: float) -> float | None:
    return None if value is None or not divisor else value / divisor
