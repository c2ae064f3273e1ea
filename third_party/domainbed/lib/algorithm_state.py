"""Everything in an algorithm that training changes, taken out of it and put back.

DomainBed's algorithms keep optimisers, counters, queues and second networks in plain attributes,
where a module's state dict does not see them. So an algorithm is walked through, attribute by
attribute, and what is found is stored under its path (`scheduler`, `optimizers[1]`, `ema.network`):

- modules, and whatever else has `state_dict` and `load_state_dict`, by that;
- tensors, arrays, numbers, texts, None, and lists, tuples, sets and dicts of these as they are;
- other objects by their own attributes; functions, classes and the like are taken for constants.

What cannot be stored so is refused by name instead of being forgotten silently.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_CONSTANTS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(type, functools.partial, torch.device, torch.dtype, np.dtype),
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size)
# What every module has: parameters, buffers and parts, which its state dict has, and hooks.
_OF_MODULES = frozenset(vars(torch.nn.Module()))


class StateError(ValueError):
    """An algorithm that cannot be stored, or that does not fit to what was stored."""


@dataclass(frozen=True)
class _Slot:
    """A place that holds a value, and how to put another one there."""

    path: str
    value: Any
    put: Callable[[Any], None]


def capture(algorithm: torch.nn.Module) -> dict[str, Any]:
    """Return the state by path, of types that torch reads back without executing code.

    Tensors are not copied.

    Raises:
        StateError: naming the attributes that cannot be stored.
    """
    state, opaque = {}, []
    for slot in _slots(algorithm):
        try:
            state[slot.path] = _stored(slot.value)
        except StateError as error:
            opaque.append(f"{slot.path} ({error})")
    if opaque:
        raise StateError(f"{type(algorithm).__name__} keeps what cannot be stored: {opaque}")
    return state


def restore(algorithm: torch.nn.Module, state: dict[str, Any]) -> None:
    """Bring a newly built algorithm of the same arguments into the state that `capture` returned.

    Raises:
        StateError: the algorithm has not the places that the state has values for.
    """
    left = dict(state)
    for slot in list(_slots(algorithm)):
        if slot.path in left:
            _put_back(slot, left.pop(slot.path))
    for path, value in left.items():
        # An attribute that came into being during the training.
        holder = algorithm.get_submodule(path.rpartition(".")[0])
        name = path.rpartition(".")[2]
        if not name.isidentifier() or _is_state_dict(value):
            raise StateError(f"{type(algorithm).__name__} has no {path} to put a value back to")
        vars(holder)[name] = value


def _slots(algorithm: torch.nn.Module) -> Iterator[_Slot]:
    """Every place worth storing, each object once, the algorithm itself first."""
    yield from _of_value("", algorithm, lambda value: None, set())


def _of_value(path: str, value: Any, put: Callable[[Any], None], seen: set[int]) -> Iterator[_Slot]:
    """The places in `value`, which stands at `path`; `seen` has the ids of what was met."""
    if isinstance(value, _CONSTANTS):
        return
    if not isinstance(value, _PLAIN):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield _Slot(path, value, put)
        yield from _of_module(path, value, seen)
    elif _has_state(value) or _is_plain(value, seen):
        yield _Slot(path, value, put)
    else:
        parts = _parts(path, value)
        if parts is None:
            yield _Slot(path, value, put)  # `_stored` refuses it
            return
        for at, part, put_part in parts:
            yield from _of_value(at, part, put_part, seen)


def _of_module(path: str, root: torch.nn.Module, seen: set[int]) -> Iterator[_Slot]:
    """What `root` and its parts keep beside parameters, buffers and parts."""
    seen.update(map(id, [*root.modules(), *root.parameters(), *root.buffers()]))
    for name, module in root.named_modules():
        prefix = "".join(f"{part}." for part in (path, name) if part)
        for key, value in list(vars(module).items()):
            if key not in _OF_MODULES:
                put = functools.partial(vars(module).__setitem__, key)
                yield from _of_value(f"{prefix}{key}", value, put, seen)


def _parts(path: str, value: Any) -> list[tuple[str, Any, Callable[[Any], None]]] | None:
    """(path, value, how to replace it) of what is in a container or an object; None if opaque."""
    if isinstance(value, (dict, list)):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        put = value.__setitem__
        return [(f"{path}[{key!r}]", item, functools.partial(put, key)) for key, item in items]
    if isinstance(value, (tuple, set)):
        # These cannot be changed, but what they hold can.
        return [(f"{path}[{i}]", item, lambda new: None) for i, item in enumerate(value)]
    if hasattr(value, "__dict__") and not hasattr(type(value), "__next__"):
        own = vars(value)
        items = list(own.items())
        return [(f"{path}.{k}", item, functools.partial(own.__setitem__, k)) for k, item in items]
    return None


def _has_state(value: Any) -> bool:
    if isinstance(value, torch.Generator):
        return True
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def _is_plain(value: Any, seen: set[int] | None = None) -> bool:
    """Whether the value can be stored as it is; what holds the model's own tensors cannot."""
    if isinstance(value, (*_PLAIN, np.generic, np.ndarray)):
        return True
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set)):
        inner = list(value)
    else:
        return isinstance(value, torch.Tensor)
    models = seen or set()
    return all(_is_plain(item, seen) and id(item) not in models for item in inner)


_STATE = "state of"


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and _STATE in value


def _stored(value: Any) -> Any:
    """What is written for a value."""
    kind = type(value).__name__
    if isinstance(value, torch.nn.Module):
        fixed = [name for name, p in value.named_parameters() if not p.requires_grad]
        return {
            _STATE: kind,
            "dict": dict(value.state_dict()),
            "more": _more(value),
            "fixed": fixed,
        }
    if isinstance(value, torch.Generator):
        return {_STATE: kind, "dict": value.get_state()}
    if _has_state(value):
        state = _as_stored(value.state_dict())
        return {_STATE: kind, "dict": state}
    return _as_stored(value)


def _more(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are in no state dict, since they are usually computed from arguments."""
    there = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name not in there}


def _as_stored(value: Any) -> Any:
    """The value in types that torch's restricted reader knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {_STATE: "ndarray", "dict": torch.from_numpy(value)}
    if isinstance(value, dict):
        return {_as_stored(key): _as_stored(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_as_stored, value))
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, _PLAIN):
        return value
    raise StateError(f"a {type(value).__name__}")


def _as_it_was(value: Any) -> Any:
    """The inverse of `_as_stored`, but for numpy's scalars, which come back as Python's."""
    if isinstance(value, dict):
        if value.get(_STATE) == "ndarray":
            return value["dict"].numpy()
        return {key: _as_it_was(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_as_it_was, value))
    return value


def _put_back(slot: _Slot, stored: Any) -> None:
    """Change the value in place where that is possible: others may refer to it."""
    value = slot.value
    new = _as_it_was(stored)
    if isinstance(value, torch.nn.Module):
        value.load_state_dict(new["dict"])
        _load_more(value, new["more"], new["fixed"])
    elif isinstance(value, torch.Generator):
        value.set_state(new["dict"])
    elif _has_state(value):
        value.load_state_dict(new["dict"])
    elif isinstance(value, (dict, set)) and type(new) is type(value):
        value.clear()
        value.update(new)
    elif isinstance(value, list) and type(new) is list:
        value[:] = new
    elif _alike(value, new):
        with torch.no_grad():
            value.copy_(new)
    else:
        slot.put(new)


def _alike(value: Any, new: Any) -> bool:
    tensors = isinstance(value, torch.Tensor) and isinstance(new, torch.Tensor)
    return tensors and value.shape == new.shape and value.dtype == new.dtype


def _load_more(module: torch.nn.Module, more: dict[str, torch.Tensor], fixed: list[str]) -> None:
    buffers = dict(module.named_buffers())
    for name, tensor in more.items():
        buffers[name].copy_(tensor)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in fixed)
