"""The cost of jobs: images, time, memory, trained parameters, device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Records of checkouts have only the memory of the device.
UNNAMED_GPU = "an unnamed GPU"
UNNAMED_CPU = "an unnamed CPU"
UNKNOWN_DEVICE = "an unknown device"

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """The cost of one job or of several, recorded or estimated. Values that records lack are None.

    Counts follow from the arguments of jobs, so recorded costs have none. Estimated numbers are nan
    if they are unknown.
    """

    jobs: int = 1
    done: int = 0
    steps: int = 0
    trained: int = 0  # images
    evaluated: float = 0  # images
    # Equal for runs whose costs can be compared; UNNAMED_GPU, UNNAMED_CPU or UNKNOWN_DEVICE if the
    # records have no name.
    device: str = UNKNOWN_DEVICE
    # Mean without the steps of the first record, which are slower, unless it is the only record.
    step_seconds: float | None = None
    training_hours: float | None = None  # estimated: hours that are left
    evaluation_hours: float | None = None
    memory_gb: float | None = None  # peak memory of one GPU, in GiB; 0 on a CPU
    trained_parameters: float | None = None


def recorded_cost(records: Sequence[Mapping[str, Any]]) -> Cost:
    """Return the cost of the run with these records, one per step and at least one."""
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
        memory_gb=max((value for value in memory if value is not None), default=None),
        trained_parameters=_number(ordered[-1], "trained_parameters"),
    )


def _device(record: Mapping[str, Any], memory: Sequence[float | None]) -> str:
    """Return the recorded name of the device, or else its kind: torch records memory of GPUs."""
    name = record.get("device")
    if isinstance(name, str) and name:
        return name

    recorded_memory = [value for value in memory if value is not None]
    if not recorded_memory:
        return UNKNOWN_DEVICE
    return UNNAMED_GPU if any(recorded_memory) else UNNAMED_CPU


def _step_counts(ordered: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the number of steps since the previous record, over which a record averages."""
    steps = [record["step"] for record in ordered]
    return [step - before for before, step in zip([-1, *steps], steps)]


def _number(record: Mapping[str, Any], name: str) -> float | None:
    """Return a recorded number, or None unless it is finite and not negative."""
    value: Any = record.get(name)
    return float(value) if type(value) in (int, float) and 0 <= value < math.inf else None


def _sum(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) if len(numbers) == len(values) else None


def _weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    products = [None if value is None else value * weight for value, weight in zip(values, weights)]
    return _sum(products)


def _ratio(value: float | None, divisor: float) -> float | None:
    return None if value is None or not divisor else value / divisor
