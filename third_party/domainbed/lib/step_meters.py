"""Values and durations of the steps since the last checkpoint."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from domainbed.algorithms import Algorithm


def defining_class(algorithm: Any, *names: str) -> Mapping[str, Any]:
    """Return the attributes of the first class, in method resolution order, that defines a name."""
    return next(
        vars(cls) for cls in type(algorithm).__mro__ if not vars(cls).keys().isdisjoint(names)
    )


def find_step(algorithm: Any) -> Callable[[Sequence[Any]], Mapping[str, torch.Tensor]]:
    """Return the method that takes a step and returns its values, as tensors of shape ().

    The tensors are on the device, without waiting for it, unless a subclass overrides `update`
    only.
    """
    overrides_hook = "step_on_device" in defining_class(algorithm, "step_on_device", "update")
    algorithm_class = type(algorithm) if overrides_hook else Algorithm
    return functools.partial(algorithm_class.step_on_device, algorithm)


class Interval:
    """The values of each step since the last checkpoint.

    Values on a GPU remain there until `read`, since fetching a value makes CPU and GPU wait.

    Args:
        watch: function that is called with the step, name and value of each value read.
    """

    def __init__(self, watch: Callable[[int, str, float], None]) -> None:
        self._watch = watch
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._unread: list[tuple[int, str, torch.Tensor]] = []

    def add(self, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Add the values of a step.

        Args:
            step: the step's number.
            seconds: duration of the step.
            values: name -> number, or tensor with one element that is not changed later.
        """
        self._values["step_time"].append(seconds)
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                value = torch.tensor(value, dtype=torch.float64)  # the precision of Python numbers
            self._unread.append((step, name, value))

    def read(self) -> dict[str, list[float]]:
        """Return all values by name, in the order of the steps, after waiting for the device."""
        if not self._unread:
            return dict(self._values)

        started = time.monotonic()
        numbers = torch.stack([value.double().reshape(()) for _, _, value in self._unread])
        for (step, name, _), number in zip(self._unread, numbers.tolist(), strict=True):
            self._values[name].append(number)
            self._watch(step, name, number)
        self._unread.clear()

        # A GPU can still be computing the last step, so the wait counts as that step's time.
        self._values["step_time"][-1] += time.monotonic() - started
        return dict(self._values)

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the steps."""
        return {name: float(np.mean(values)) for name, values in self.read().items()}

    def begin(self, values: Mapping[str, list[float]] | None = None) -> None:
        """Start a new interval, or continue with values of `read` from an earlier process."""
        self._values.clear()
        self._values.update(values or {})
