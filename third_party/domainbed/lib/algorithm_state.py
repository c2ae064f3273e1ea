"""Everything in an algorithm that training changes, taken out of it and put back.

DomainBed's algorithms keep optimisers, counters, queues and second networks in plain attributes,
where a module's state dict does not see them. So an algorithm is walked through, attribute by
attribute, and what is found is stored under its path (`scheduler`, `optimizers[1]`, `ema.network`):

- modules, and whatever else has `state_dict` and `load_state_dict`, by that;
- data as it is (`stored_values`), and what is found a second time by its first path;
- other objects of pure Python by their own attributes; functions, classes and the like are taken
  for constants.

What cannot be stored so, or would have no place to go back to in an algorithm that is newly
built, is refused by name instead of being forgotten silently.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from domainbed.lib.stored_values import (
    CONTAINERS,
    KIND,
    PLAIN,
    StateError,
    as_it_was,
    as_stored,
    is_plain,
)

__all__ = ["StateError", "capture", "places", "restore"]

_CONSTANTS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(type, functools.partial, torch.device, torch.dtype, np.dtype),
)
# What every module has: parameters, buffers and parts, which its state dict has, and hooks.
_OF_MODULES = frozenset(vars(torch.nn.Module()))

Put = Callable[[Any], None]


@dataclass(frozen=True)
class _Slot:
    """A place that holds a value, how to put another one there, and where it was met before."""

    path: str
    value: Any
    put: Put
    same_as: str | None = None

    @property
    def kind(self) -> str:
        """What a value has to agree in with the one that it replaces: "" if in nothing."""
        if isinstance(self.value, torch.nn.Module):
            shapes = {name: tuple(t.shape) for name, t in self.value.state_dict().items()}
            parts = [name for name, _ in self.value.named_modules()]
            return f"{type(self.value).__name__} of {shapes}, {parts}"
        if _has_state(self.value):
            return type(self.value).__name__
        if isinstance(self.value, CONTAINERS) and type(self.value) not in CONTAINERS:
            return type(self.value).__name__  # a defaultdict, say, which is filled and not replaced
        return ""


def places(algorithm: torch.nn.Module) -> dict[str, str]:
    """What a newly built algorithm has places for: path to kind. For `capture`."""
    return {slot.path: slot.kind for slot in _slots(algorithm)}


def capture(algorithm: torch.nn.Module, at_first: Mapping[str, str]) -> dict[str, Any]:
    """Return the state by path, of types that torch reads back without executing code.

    Tensors are not copied.

    Args:
        algorithm: what is trained.
        at_first: its `places` before the first step, which are those of the one to restore.

    Raises:
        StateError: naming the attributes that cannot be stored or put back.
    """
    state, refused = {}, []
    for slot in _slots(algorithm):
        try:
            _require_place(algorithm, slot, at_first)
            state[slot.path] = _stored(slot)
        except StateError as error:
            refused.append(f"{slot.path} ({error})")
    if refused:
        raise StateError(f"{type(algorithm).__name__} keeps what cannot be stored: {refused}")
    return state


def restore(algorithm: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Bring a newly built algorithm of the same arguments into the state that `capture` returned.

    Raises:
        StateError: the algorithm has not the places that the state has values for.
    """
    left = dict(state)
    repeated = {}
    for slot in list(_slots(algorithm)):
        if slot.path in left:
            stored = left.pop(slot.path)
            if isinstance(stored, dict) and stored.get(KIND) == "same":
                repeated[slot.path] = (slot.put, stored["path"])
            elif slot.same_as is None:
                _put_back(slot, stored)
            else:
                slot.put(as_it_was(stored))
    for path, stored in left.items():
        put = _late_attribute(algorithm, path)
        if isinstance(stored, dict) and stored.get(KIND) == "same":
            repeated[path] = (put, stored["path"])
        else:
            put(as_it_was(stored))
    found = {slot.path: slot.value for slot in _slots(algorithm)}
    for put, path in repeated.values():
        put(found[path])


def _require_place(algorithm: torch.nn.Module, slot: _Slot, at_first: Mapping[str, str]) -> None:
    """Raise a StateError if the value could not go back to where it is."""
    if slot.same_as is not None:
        return
    if slot.path in at_first:
        if slot.kind != at_first[slot.path]:
            raise StateError(f"this {type(slot.value).__name__} was another thing at first")
    elif slot.kind:
        raise StateError("it was not there at first")
    else:
        _late_attribute(algorithm, slot.path)


def _late_attribute(algorithm: torch.nn.Module, path: str) -> Put:
    """How to set an attribute that came into being during the training."""
    holder, _, name = path.rpartition(".")
    try:
        module = algorithm.get_submodule(holder)
    except AttributeError:
        name = ""
    if not name.isidentifier():
        raise StateError(f"a new {type(algorithm).__name__} has no such place")
    return functools.partial(vars(module).__setitem__, name)


# The walk


def _slots(algorithm: torch.nn.Module) -> Iterator[_Slot]:
    """Every place worth storing, the algorithm itself first."""
    yield from _of_value("", algorithm, lambda value: None, {})


def _of_value(path: str, value: Any, put: Put, seen: dict[int, str | None]) -> Iterator[_Slot]:
    """The places in `value`, which stands at `path`.

    `seen` has the first path of what was met, by id; None for parts of modules.
    """
    if isinstance(value, _CONSTANTS):
        return
    if not isinstance(value, (*PLAIN, np.generic, tuple)):
        if id(value) in seen:
            first = seen[id(value)]
            if first is not None:
                yield _Slot(path, value, put, first)
            return
        seen[id(value)] = path
    if isinstance(value, torch.nn.Module):
        yield _Slot(path, value, put)
        yield from _of_module(path, value, seen)
    elif _has_state(value) or (is_plain(value) and not _holds_parts(value, seen)):
        yield _Slot(path, value, put)
    elif (parts := _parts(path, value)) is None:
        yield _Slot(path, value, put)  # `_stored` refuses it
    else:
        for at, part, put_part in parts:
            yield from _of_value(at, part, put_part, seen)


def _of_module(path: str, root: torch.nn.Module, seen: dict[int, str | None]) -> Iterator[_Slot]:
    """What `root` and its parts keep beside parameters, buffers and parts."""
    for own in (*root.modules(), *root.parameters(), *root.buffers()):
        seen.setdefault(id(own), None)
    for name, module in root.named_modules():
        prefix = "".join(f"{part}." for part in (path, name) if part)
        for key, value in list(vars(module).items()):
            if key not in _OF_MODULES:
                put = functools.partial(vars(module).__setitem__, key)
                yield from _of_value(f"{prefix}{key}", value, put, seen)


def _parts(path: str, value: Any) -> list[tuple[str, Any, Put]] | None:
    """(path, value, how to replace it) of what is in a container or an object; None if opaque."""
    if isinstance(value, (dict, list)):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        put = value.__setitem__
        return [(f"{path}[{key!r}]", item, functools.partial(put, key)) for key, item in items]
    if isinstance(value, (tuple, set)):
        # These cannot be changed, but what they hold can.
        return [(f"{path}[{i}]", item, lambda new: None) for i, item in enumerate(value)]
    if _is_pure_python(value):
        own = vars(value)
        items = list(own.items())
        return [(f"{path}.{k}", item, functools.partial(own.__setitem__, k)) for k, item in items]
    return None


def _is_pure_python(value: Any) -> bool:
    """Whether its attributes are all that it has. Types with more say how to copy them."""
    cls = type(value)
    copied_as_usual = (
        cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    )
    return hasattr(value, "__dict__") and copied_as_usual and not hasattr(cls, "__next__")


def _has_state(value: Any) -> bool:
    if isinstance(value, torch.Generator):
        return True
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def _holds_parts(value: Any, seen: Mapping[int, str | None]) -> bool:
    """Whether a container has parts of modules in it, which must stay theirs."""
    if isinstance(value, dict):
        return any(_holds_parts(item, seen) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_parts(item, seen) for item in value)
    return isinstance(value, torch.Tensor) and seen.get(id(value), "") is None


# A value to what is written for it, and back


def _stored(slot: _Slot) -> Any:
    value = slot.value
    if slot.same_as is not None:
        return {KIND: "same", "path": slot.same_as}
    if isinstance(value, torch.nn.Module):
        fixed = [name for name, p in value.named_parameters() if not p.requires_grad]
        tensors = {name: tensor.detach() for name, tensor in value.state_dict().items()}
        return {KIND: "state", "value": tensors, "more": _unsaved(value), "fixed": fixed}
    if isinstance(value, torch.Generator):
        return {KIND: "state", "value": value.get_state()}
    if _has_state(value):
        return {KIND: "state", "value": as_stored(value.state_dict())}
    return as_stored(value)


def _unsaved(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are in no state dict."""
    there = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name not in there}


def _put_back(slot: _Slot, stored: Any) -> None:
    """Change the value in place where that is possible: others may refer to it."""
    value = slot.value
    if isinstance(value, torch.nn.Module):
        value.load_state_dict(stored["value"])
        buffers = dict(value.named_buffers())
        for name, tensor in stored["more"].items():
            buffers[name].copy_(tensor)
        for name, parameter in value.named_parameters():
            parameter.requires_grad_(name not in stored["fixed"])
    elif isinstance(value, torch.Generator):
        value.set_state(stored["value"])
    elif _has_state(value):
        value.load_state_dict(as_it_was(stored["value"]))
    else:
        _put_data_back(slot, as_it_was(stored))


def _put_data_back(slot: _Slot, new: Any) -> None:
    value = slot.value
    if isinstance(value, (dict, set)) and isinstance(new, type(value).__mro__[-2]):
        value.clear()
        value.update(new)
    elif isinstance(value, list) and isinstance(new, list):
        value[:] = new
    elif isinstance(value, torch.Tensor) and isinstance(new, torch.Tensor) and _alike(value, new):
        with torch.no_grad():
            value.copy_(new)
    else:
        slot.put(new)


def _alike(value: torch.Tensor, new: torch.Tensor) -> bool:
    return value.shape == new.shape and value.dtype == new.dtype
