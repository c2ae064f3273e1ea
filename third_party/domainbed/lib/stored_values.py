"""Values of any kind in types that torch's restricted reader knows, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size)
CONTAINERS = (dict, list, tuple, set)

# The key that marks a dict as the stored form of something else.
KIND = "kind of stored value"


class StateError(ValueError):
    """An algorithm that cannot be stored, or that does not fit to what was stored."""


def is_plain(value: Any) -> bool:
    """Whether the value is data and nothing else: numbers, texts, tensors, containers of these."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, CONTAINERS):
        return all(map(is_plain, value))
    return isinstance(value, (*PLAIN, torch.Tensor, np.generic, np.ndarray))


def as_stored(value: Any) -> Any:
    """The value in types that the restricted reader knows.

    Raises:
        StateError: naming the type that it has no form for.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {KIND: "array", "value": torch.from_numpy(value)}
    if isinstance(value, dict):
        return {as_stored(key): as_stored(item) for key, item in value.items()}
    for container in (list, tuple, set):
        if type(value) is container:
            return container(map(as_stored, value))
    if isinstance(value, torch.Tensor):
        plain = value.detach()
        trained = value.requires_grad and value.is_leaf
        if not trained and not value.is_cuda:
            return plain
        return {KIND: "tensor", "value": plain, "trained": trained, "on_gpu": value.is_cuda}
    if isinstance(value, PLAIN):
        return value
    raise StateError(f"a {type(value).__name__}")


def as_it_was(stored: Any) -> Any:
    """The inverse of `as_stored`, but for numpy's scalars, which come back as Python's.

    A tensor that was on a GPU goes back to one, where there is one.
    """
    if isinstance(stored, dict):
        if stored.get(KIND) == "array":
            return stored["value"].numpy()
        if stored.get(KIND) == "tensor":
            to_gpu = stored["on_gpu"] and torch.cuda.is_available()
            tensor = stored["value"].cuda() if to_gpu else stored["value"]
            return tensor.requires_grad_(stored["trained"])
        return {as_it_was(key): as_it_was(item) for key, item in stored.items()}
    if isinstance(stored, (list, tuple, set)) and not isinstance(stored, torch.Size):
        return type(stored)(map(as_it_was, stored))
    return stored
