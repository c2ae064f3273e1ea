"""A stand-in for a GPU, on which `carft check` and the tests find what would fail on a real one.

Its tensors compute on the CPU, to the same bits. It raises an error for what fails on a GPU: an
operation that mixes its tensors with the CPU's, unless those are scalars (zero-dimensional). It
records where the CPU would wait for a GPU: where it reads a tensor's values, and where it copies
one without ``non_blocking``.

It is torch's device ``privateuseone`` under the name ``standin``, registered from Python when this
module is imported, which takes torch 2.13 or newer. It cannot see

- streams: whether work waits for a copy that has only begun, or memory is used again too early;
- pinned memory: whether the source of a ``non_blocking`` copy is pinned, without which it waits;
- the kernels of a GPU: their rounding, their own waits, and which of them autocast rounds;
- a GPU's memory, its generator of random numbers (the processor's draws), and several GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils import backend_registration

from domainbed_carft.machine import devices

NAME = "standin"
CPU = torch.device("cpu")
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
# Of these a GPU takes no scalar of the CPU either.
JOINS = {aten.cat.default, aten.stack.default}
# The CPU needs the values, or how many there are.
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


AUTOCAST_KEY = "AutocastPrivateUse1"
# What `torch.autocast` computes in low precision; the others take what comes.
ROUNDED = (
    aten.linear.default,
    aten.matmul.default,
    aten.conv2d.default,
    aten.addmm.default,
    aten.mm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.scaled_dot_product_attention.default,
)
_libraries: list[torch.library.Library] = []  # which forget what they hold when they are deleted


# Older versions of torch have no such class, and no stand-in.
_BackendModule: Any = getattr(backend_registration, "_DummyBackendModule", object)


class MixedDevicesError(RuntimeError):
    """An operation on tensors of the stand-in and of the CPU."""


class StandInTensor(Tensor):
    """A tensor on the stand-in; ``content`` is the CPU's tensor with its values."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> StandInTensor:
        with torch.inference_mode(False):  # in which torch could not make views of it
            tensor = Tensor._make_wrapper_subclass(
                cls,
                content.size(),
                strides=content.stride(),
                storage_offset=content.storage_offset(),
                dtype=content.dtype,
                device=torch.device(NAME, 0),
            )
        tensor.content = content
        return tensor

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StandInTensor({self.content!r})"

    def tolist(self) -> Any:
        """As a GPU's, of which torch makes a copy; torch refuses it to subclasses."""
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a tensor that is restored on the device that ``map_location`` names."""
        detached: Any = self.detach()
        arguments = (detached.content, self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        refuse_mixture(func, args, tensors)
        if is_wait(func, args, kwargs, tensors):
            record_wait(func.overloadpacket.__name__)

        # In place, the result is one of the inputs.
        stand_ins = {id(tensor.content): tensor for tensor in tensors if isinstance(tensor, cls)}
        target = kwargs.get("device")
        if target is not None:
            kwargs = {**kwargs, "device": CPU}
        inner_args, inner_kwargs = mapped(_content, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)

        if target == CPU or result is inner_args[0] is args[0]:
            return result
        return mapped(lambda t: stand_ins[id(t)] if id(t) in stand_ins else cls(t), result)


def _content(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, StandInTensor) else tensor


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among values, and in containers of them."""
    return [value for value in trees.tree_leaves(values) if isinstance(value, Tensor)]


def mapped(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Values whose tensors, also those in containers, the function has replaced."""
    return trees.tree_map_only(Tensor, function, values)


def refuse_mixture(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise MixedDevicesError for an operation that a GPU would refuse."""
    if func in COPIES:
        return
    is_home = isinstance(tensors[0], StandInTensor)
    if func in INDEXING and is_home:  # a GPU copies the processor's indices
        tensors = [tensor for tensor in args if isinstance(tensor, Tensor)]

    plain = [tensor for tensor in tensors if not isinstance(tensor, StandInTensor)]
    if func not in JOINS and (is_home or not is_in_place(func)):
        plain = [tensor for tensor in plain if tensor.ndim]
    if plain:
        shapes = [tuple(tensor.shape) for tensor in plain]
        raise MixedDevicesError(f"{func} got tensors of the processor, of the shapes {shapes}")


@functools.cache
def is_in_place(func: Any) -> bool:
    """Whether an operation writes into its first argument."""
    alias = func._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def is_wait(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> bool:
    """Whether the processor waits for a GPU in this operation."""
    if func is aten.copy_.default:
        is_crossing = len({type(tensor) for tensor in tensors}) > 1
        return is_crossing and not (kwargs.get("non_blocking") or True in args[2:])
    if func is aten._to_copy.default:
        return kwargs.get("device") == CPU and not kwargs.get("non_blocking")

    if func in INDEXING:  # true elements of a mask are counted, the processor's indices copied
        return any(
            tensor.dtype in (torch.bool, torch.uint8) or not isinstance(tensor, StandInTensor)
            for tensor in tensors_in(args[1])
        )
    return func in READS


_open_records: list[list[str]] = []
_debug_modes = ["default"]


def record_wait(operation: str) -> None:
    """Record a wait, and warn of it or refuse it as CUDA's sync debug mode does."""
    for record in _open_records:
        record.append(operation)

    message = f"called a synchronizing CUDA operation: {operation}"
    if _debug_modes[-1] == "error":
        raise RuntimeError(message)


@contextlib.contextmanager
def record_waits() -> Iterator[list[str]]:
    """The names of the operations inside in which the processor would wait for a GPU."""
    record: list[str] = []
    _open_records.append(record)
    try:
        yield record
    finally:
        _open_records.remove(record)


@contextlib.contextmanager
def refuse_waits() -> Iterator[None]:
    """`devices.refuse_waits` for the stand-in."""
    _debug_modes.append("error")
    try:
        yield
    finally:
        _debug_modes.pop()


class Module(_BackendModule):
    """The module ``torch.standin``, as torch asks for it in autocast and in checkpointed blocks.

    ``torch.accelerator`` does not find the device, so that other tests do not.
    """

    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def device(self, index: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _register() -> None:
    """Register the device with torch, for the rest of this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())

    @torch.library.impl("aten::empty.memory_format", "privateuseone")
    def empty(size: Any, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        layout = memory_format or torch.contiguous_format
        return StandInTensor(torch.empty(size, dtype=dtype, memory_format=layout))

    @torch.library.impl("aten::empty_strided", "privateuseone")
    def empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
        return StandInTensor(torch.empty_strided(size, stride, dtype=dtype))

    @torch.library.impl("aten::_copy_from", "privateuseone")
    def copy_from(source: Tensor, target: Any, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            record_wait("_copy_from")
        target.content.copy_(source)
        return target

    unchanged = torch.library.Library("_", "IMPL", AUTOCAST_KEY)
    unchanged.fallback(torch.library.fallthrough_kernel)
    autocast = torch.library.Library("aten", "IMPL", AUTOCAST_KEY)
    for func in ROUNDED:
        autocast.impl(func, functools.partial(rounded, func))
    _libraries.extend([unchanged, autocast])


def rounded(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation inside `torch.autocast`, its floating-point tensors rounded."""
    dtype = torch.get_autocast_dtype(NAME)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    key_set = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, AUTOCAST_KEY))
    with torch._C._ExcludeDispatchKeyGuard(key_set):
        rounded_args, rounded_kwargs = mapped(cast, (args, kwargs))
        return func(*rounded_args, **rounded_kwargs)


class _CopyStream:
    """`devices.CopyStream` without a stream: copies are made at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Sequence[Tensor]) -> types.SimpleNamespace:
        copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        return types.SimpleNamespace(wait=lambda: copies)


@contextlib.contextmanager
def installed() -> Iterator[torch.device]:
    """Inside, the package computes on the stand-in as on a GPU; yields the device."""
    device = torch.device(NAME)
    facts = devices.GPUFacts("Stand-in", memory=2**34, capability=(8, 0))
    replaced: dict[str, Any] = {
        "default_device": lambda: device,
        "is_gpu": lambda other: torch.device(other).type == NAME,
        "gpu_facts": lambda: facts,
        "gpu_count": lambda: 1,
        "peak_memory": lambda _: 0,
        "reset_peak_memory": lambda _: None,
        "wait_for": lambda _: None,
        "generator_states": lambda _: [],
        "refuse_waits": refuse_waits,
        "CopyStream": _CopyStream,
    }
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    with (
        mock.patch.multiple(devices, **replaced),
        mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
    ):
        # Parameters keep their identity where a module moves, as they do on a GPU.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield device
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapping)


def unsupported() -> str:
    """Return why this process has no stand-in; "" if it has one."""
    if not IS_SUPPORTED:
        return f"torch {torch.__version__} takes no devices that are written in Python, 2.13 does"
    try:
        torch.ones(1, device=NAME, requires_grad=True).sum().backward()
    except RuntimeError:  # torch counts its devices at the first backward pass of a process
        return "a backward pass came before the import of domainbed_carft.check; import it first"
    return ""


IS_SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
if IS_SUPPORTED:
    _register()
