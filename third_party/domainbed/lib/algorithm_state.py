"""Capture and restore what training changes in an algorithm.

Stored are, of the algorithm and all its parts: parameters and buffers; attributes that have
`state_dict` and `load_state_dict`, such as optimisers and schedules; and those that are plain:
numbers, texts, tensors, and lists, tuples and dicts of these. Functions, classes, `hparams`, and
other attributes of parts, are constants. If the algorithm itself keeps more, it is refused by the
name of the attribute, instead of being stored in part; or it overrides the hooks `training_state`
and `load_training_state` of `domainbed.algorithms.Algorithm`.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as trees

from domainbed.algorithms import Algorithm
from domainbed.lib import misc
from domainbed.lib.process_group import ProcessGroup
from domainbed_carft.machine import devices

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size)
_CONSTANTS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(type, functools.partial, torch.device, torch.dtype, ProcessGroup),
)
# What every module has: parameters, buffers and parts, which its state dict has, and hooks.
_OF_MODULES = {*vars(torch.nn.Module()), "hparams"}


class StateError(ValueError):
    """An algorithm that cannot be stored, or that does not fit what was stored."""


def structure(algorithm: Any) -> dict[str, str]:
    """What a newly built algorithm can take a state for: path to shape or type name."""
    tensors = {name: str(tuple(tensor.shape)) for name, tensor in algorithm.state_dict().items()}
    stateful = {
        path: type(value).__name__ for path, value in _attributes(algorithm) if _has_state(value)
    }
    return tensors | stateful


def capture(algorithm: Algorithm, initial_structure: Mapping[str, str]) -> dict[str, Any]:
    """Return the state, of types that torch reads back without executing code, tensors not copied.

    `initial_structure` is the algorithm's `structure` before the first step, which is that of the
    one to restore. Raises StateError, naming what cannot be stored or put back.
    """
    changed = dict(structure(algorithm).items() ^ initial_structure.items())
    refused = [f"{path} (changed since the start)" for path in changed]
    attributes = {}
    stores_more = type(algorithm).training_state is not Algorithm.training_state

    for path, value in _attributes(algorithm):
        if _has_state(value):
            attributes[path] = value.state_dict()
        elif _is_plain(value):
            attributes[path] = value.detach() if isinstance(value, torch.Tensor) else value
        elif "." not in path and not isinstance(value, _CONSTANTS) and not stores_more:
            refused.append(f"{path} (a {type(value).__name__})")

    if refused:
        raise StateError(
            f"{type(algorithm).__name__} has attributes that cannot be stored: "
            f"{', '.join(refused)}. Define training_state() and load_training_state() to store them"
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
    """Bring a newly built algorithm of the same arguments into the state that was captured."""
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
                value.copy_(stored)  # in place: an optimiser may have it
        else:
            if path in state["on_gpu"]:
                to_gpu = operator.methodcaller("to", devices.default_device())
                stored = trees.tree_map_only(torch.Tensor, to_gpu, stored)
            setattr(parts[holder], name, stored)

    if state["own"] is not None:
        algorithm.load_training_state(state["own"])


def _attributes(algorithm: Any) -> Iterator[tuple[str, Any]]:
    """All attributes of the algorithm and its parts that are not a module's own, by path."""
    for prefix, module in algorithm.named_modules():
        for name, value in list(vars(module).items()):
            if name not in _OF_MODULES:
                yield f"{prefix}.{name}" if prefix else name, misc.plain(value)


def _has_state(value: Any) -> bool:
    """Whether it is an object that saves and loads a state, such as an optimizer."""
    methods = ("state_dict", "load_state_dict")
    return not isinstance(value, type) and all(
        callable(getattr(value, method, None)) for method in methods
    )


def _is_plain(value: Any) -> bool:
    """Whether it is data; in a collection no tensor may be trained: it is put back as another."""
    if type(value) in (list, tuple, dict):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_plain(item) and not getattr(item, "requires_grad", False) for item in items)
    return type(value) in _PLAIN or isinstance(value, torch.Tensor)


def _is_on_gpu(value: Any) -> bool:
    return any(
        isinstance(leaf, torch.Tensor) and devices.is_gpu(leaf.device)
        for leaf in trees.tree_flatten(value)[0]
    )
