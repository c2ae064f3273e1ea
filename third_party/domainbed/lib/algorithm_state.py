"""Capture and restore the state that training changes in an algorithm.

Stored for the algorithm and all its submodules: parameters and buffers; attributes with
`state_dict` and `load_state_dict`, such as optimizers and schedules; and plain attributes: numbers,
texts, tensors, and lists, tuples and dicts of these. Functions, classes, `hparams`, and other
attributes of submodules count as constants. An algorithm with any other attribute, or with a new
one after the first step, is not stored in part: capturing it fails with an error that names the
attribute, unless the algorithm overrides the hooks `training_state` and `load_training_state` of
`domainbed.algorithms.Algorithm`, which then store it.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree

from domainbed.algorithms import Algorithm
from domainbed.lib import misc
from domainbed.lib.process_group import ProcessGroup
from domainbed_carft.machine import devices

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size)
_CONSTANTS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(type, functools.partial, torch.device, torch.dtype, ProcessGroup),
)
# Not captured as attributes: parameters, buffers and submodules are in the state dict already.
_MODULE_ATTRIBUTES = {*vars(torch.nn.Module()), "hparams"}


class StateError(ValueError):
    """An algorithm cannot be stored, or does not fit the stored state."""


def structure(algorithm: Any) -> dict[str, str]:
    """Map the path of each tensor to its shape, and of each stateful attribute to its type name."""
    tensors = {name: str(tuple(tensor.shape)) for name, tensor in algorithm.state_dict().items()}
    stateful = {
        path: type(value).__name__ for path, value in _attributes(algorithm) if _has_state(value)
    }
    return tensors | stateful


def capture(algorithm: Algorithm, initial_structure: Mapping[str, str]) -> dict[str, Any]:
    """Return the algorithm's state, in types that torch loads without executing code.

    Args:
        algorithm: the algorithm, whose tensors are not copied.
        initial_structure: the algorithm's `structure` before the first step, which is also the
            structure of the algorithm to restore.

    Raises:
        StateError: attributes cannot be stored or restored; the message names them.
    """
    overrides_hook = type(algorithm).training_state is not Algorithm.training_state
    changed = set(dict(structure(algorithm).items() ^ initial_structure.items()))
    left_to_hook = set()
    if overrides_hook:
        left_to_hook = {path for path, _ in _attributes(algorithm) if "." not in path} & changed
    new = sorted(changed - left_to_hook)
    refused = []
    attributes = {}

    for path, value in _attributes(algorithm):
        if path in left_to_hook:
            continue
        if _has_state(value):
            attributes[path] = value.state_dict()
        elif _is_plain(value):
            attributes[path] = value.detach() if isinstance(value, torch.Tensor) else value
        elif "." not in path and not isinstance(value, _CONSTANTS) and not overrides_hook:
            refused.append(f"{path} (a {type(value).__name__})")

    name = type(algorithm).__name__
    if new:
        raise StateError(
            f"{name} has modules, tensors or optimizers that did not exist before the first step, "
            f"or changed their shapes: {', '.join(new)}. Create them when the algorithm is built, "
            "so that a resumed job has them as well"
        )
    if refused:
        raise StateError(
            f"{name} has attributes that cannot be stored: {', '.join(refused)}. Define "
            "training_state() and load_training_state() to store them"
        )

    state_dict = algorithm.state_dict()
    return {
        "modules": {name: tensor.detach() for name, tensor in state_dict.items()},
        "buffers": {name: b for name, b in algorithm.named_buffers() if name not in state_dict},
        "fixed": [name for name, p in algorithm.named_parameters() if not p.requires_grad],
        "attributes": attributes,
        "on_gpu": [path for path, value in attributes.items() if _is_on_gpu(value)],
        "own": algorithm.training_state(),
    }


def restore(algorithm: Algorithm, state: Mapping[str, Any]) -> None:
    """Restore a captured state into a new algorithm that was built with the same arguments."""
    algorithm.load_state_dict(state["modules"])
    buffers = dict(algorithm.named_buffers())
    for name, buffer in state["buffers"].items():
        buffers[name].copy_(buffer)
    for name, parameter in algorithm.named_parameters():
        parameter.requires_grad_(name not in state["fixed"])

    parts = dict(algorithm.named_modules())
    present = dict(_attributes(algorithm))
    for path, stored in state["attributes"].items():
        holder, _, name = path.rpartition(".")
        value: Any = present.get(path)
        if _has_state(value):
            value.load_state_dict(stored)
        elif isinstance(value, torch.Tensor) and getattr(stored, "shape", None) == value.shape:
            with torch.no_grad():
                value.copy_(stored)  # in place: an optimizer can hold a reference
        else:
            if path in state["on_gpu"]:
                to_gpu = operator.methodcaller("to", devices.default_device())
                stored = _pytree.tree_map_only(torch.Tensor, to_gpu, stored)
            setattr(parts[holder], name, stored)

    if state["own"] is not None:
        algorithm.load_training_state(state["own"])


def _attributes(algorithm: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all attributes that not every torch module has."""
    for prefix, module in algorithm.named_modules():
        for name, value in list(vars(module).items()):
            if name not in _MODULE_ATTRIBUTES:
                yield f"{prefix}.{name}" if prefix else name, misc.plain(value)


def _has_state(value: Any) -> bool:
    """Return True for an object that saves and loads a state, such as an optimizer."""
    methods = ("state_dict", "load_state_dict")
    return not isinstance(value, type) and all(
        callable(getattr(value, method, None)) for method in methods
    )


def _is_plain(value: Any) -> bool:
    """Return True for plain data.

    A collection must not contain trained tensors, since it is restored with new tensors.
    """
    if type(value) in (list, tuple, dict):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_plain(item) and not getattr(item, "requires_grad", False) for item in items)
    return type(value) in _PLAIN or isinstance(value, torch.Tensor)


def _is_on_gpu(value: Any) -> bool:
    return any(
        isinstance(leaf, torch.Tensor) and devices.is_gpu(leaf.device)
        for leaf in _pytree.tree_flatten(value)[0]
    )
