"""A stand-in for a GPU, with which the tests find errors without a real GPU.

Its tensors are computed on the CPU with identical results. An operation that a GPU refuses raises
an error: one that mixes its tensors with CPU tensors, unless these are scalars (zero-dimensional).
Operations for which the CPU would wait for a GPU are recorded: reading values of a tensor, and
copying it without ``non_blocking``.

It is torch's device ``privateuseone`` under the name ``standin``, registered from Python when this
module is imported. This needs torch 2.13 or newer. It does not simulate

- streams: computations that do not wait for a started copy, and memory that is reused too early
- pinned memory: ``non_blocking`` copies wait unless their source is pinned
- the kernels of a GPU: their rounding, their waits, and which of them autocast rounds
- the memory of a GPU, its random generator (the CPU's is used), and several GPUs
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
from torch.utils import _pytree, backend_registration

from domainbed_carft.machine import devices

NAME = "standin"
CPU = torch.device("cpu")
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
# Operations for which a GPU refuses scalars on the CPU too.
JOINS = {aten.cat.default, aten.stack.default}
# Operations for which the CPU needs values, or the number of results.
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
# Operations that `torch.autocast` computes in low precision; all others keep the types they get.
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
_libraries: list[torch.library.Library] = []  # a deleted library loses its registrations


# Missing in older versions of torch, which have no stand-in.
_BackendModule: Any = getattr(backend_registration, "_DummyBackendModule", object)


class MixedDevicesError(RuntimeError):
    """An operation mixes tensors on the stand-in with CPU tensors."""


class StandInTensor(Tensor):
    """A tensor on the stand-in."""

    content: Tensor  # the CPU tensor with its values

    @staticmethod
    def __new__(cls, content: Tensor) -> StandInTensor:
        with torch.inference_mode(False):  # in inference mode torch could not make views of it
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
        """Return the values from a copy on the CPU, since torch refuses subclasses here."""
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the tensor so that it is restored on the device named by ``map_location``."""
        detached: Any = self.detach()
        arguments = (detached.content, self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = find_tensors((args, kwargs))
        refuse_mixture(func, args, tensors)
        if waits_for_gpu(func, args, kwargs, tensors):
            add_wait(func.overloadpacket.__name__)

        # The result of an operation in place is one of its inputs.
        stand_ins = {id(tensor.content): tensor for tensor in tensors if isinstance(tensor, cls)}
        target = kwargs.get("device")
        if target is not None:
            kwargs = {**kwargs, "device": CPU}
        inner_args, inner_kwargs = map_tensors(_content, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)

        if target == CPU or result is inner_args[0] is args[0]:
            return result
        return map_tensors(lambda t: stand_ins[id(t)] if id(t) in stand_ins else cls(t), result)


def _content(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, StandInTensor) else tensor


def find_tensors(values: Any) -> list[Tensor]:
    """Return the tensors in nested containers of values."""
    return [value for value in _pytree.tree_leaves(values) if isinstance(value, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Apply a function to the tensors in nested containers of values."""
    return _pytree.tree_map_only(Tensor, function, values)


def refuse_mixture(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise MixedDevicesError for an operation that a GPU would refuse."""
    if func in COPIES:
        return
    is_first_on_gpu = isinstance(tensors[0], StandInTensor)
    if func in INDEXING and is_first_on_gpu:  # a GPU copies indices from the CPU
        tensors = [tensor for tensor in args if isinstance(tensor, Tensor)]

    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, StandInTensor)]
    if func not in JOINS and (is_first_on_gpu or not is_in_place(func)):
        on_cpu = [tensor for tensor in on_cpu if tensor.ndim]
    if on_cpu:
        shapes = [tuple(tensor.shape) for tensor in on_cpu]
        raise MixedDevicesError(f"{func} got CPU tensors with the shapes {shapes}")


@functools.cache
def is_in_place(func: Any) -> bool:
    """Return True if an operation writes to its first argument."""
    alias = func._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def waits_for_gpu(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> bool:
    """Return True if the CPU waits for a GPU in this operation."""
    if func is aten.copy_.default:
        crosses_devices = len({type(tensor) for tensor in tensors}) > 1
        return crosses_devices and not (kwargs.get("non_blocking") or True in args[2:])
    if func is aten._to_copy.default:
        return kwargs.get("device") == CPU and not kwargs.get("non_blocking")

    if func in INDEXING:  # the true elements of a mask are counted, and indices on the CPU copied
        return any(
            tensor.dtype in (torch.bool, torch.uint8) or not isinstance(tensor, StandInTensor)
            for tensor in find_tensors(args[1])
        )
    return func in READS


_open_records: list[list[str]] = []
_debug_modes = ["default"]


def add_wait(operation: str) -> None:
    """Record a wait, and raise RuntimeError inside `refuse_waits`, as torch does for CUDA."""
    for record in _open_records:
        record.append(operation)

    message = f"called a synchronizing CUDA operation: {operation}"
    if _debug_modes[-1] == "error":
        raise RuntimeError(message)


@contextlib.contextmanager
def record_waits() -> Iterator[list[str]]:
    """Collect the names of operations in the block for which the CPU would wait for a GPU."""
    record: list[str] = []
    _open_records.append(record)
    try:
        yield record
    finally:
        _open_records.remove(record)


@contextlib.contextmanager
def refuse_waits() -> Iterator[None]:
    """Replace `devices.refuse_waits` for the stand-in."""
    _debug_modes.append("error")
    try:
        yield
    finally:
        _debug_modes.pop()


class Module(_BackendModule):
    """The module ``torch.standin``, which torch uses in autocast and checkpointed blocks.

    It reports no device as available, so that ``torch.accelerator`` does not find the stand-in.
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
            add_wait("_copy_from")
        target.content.copy_(source)
        return target

    unchanged = torch.library.Library("_", "IMPL", AUTOCAST_KEY)
    unchanged.fallback(torch.library.fallthrough_kernel)
    autocast = torch.library.Library("aten", "IMPL", AUTOCAST_KEY)
    for func in ROUNDED:
        autocast.impl(func, functools.partial(compute_rounded, func))
    _libraries.extend([unchanged, autocast])


def compute_rounded(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation inside `torch.autocast`, with floating-point tensors rounded."""
    dtype = torch.get_autocast_dtype(NAME)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    key_set = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, AUTOCAST_KEY))
    with torch._C._ExcludeDispatchKeyGuard(key_set):
        rounded_args, rounded_kwargs = map_tensors(cast, (args, kwargs))
        return func(*rounded_args, **rounded_kwargs)


class _CopyStream:
    """`devices.CopyStream` without a stream. Copies are made immediately."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Sequence[Tensor]) -> types.SimpleNamespace:
        copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        return types.SimpleNamespace(wait=lambda: copies)


@contextlib.contextmanager
def install() -> Iterator[torch.device]:
    """Let the package compute on the stand-in in the block; yield its device."""
    device = torch.device(NAME)
    facts = devices.GPUFacts("Stand-in", memory=2**34, capability=(8, 0))
    replaced: dict[str, Any] = {
        "default_device": lambda: device,
        "is_gpu": lambda queried: torch.device(queried).type == NAME,
        "gpu_facts": lambda: facts,
        "gpu_count": lambda: 1,
        "peak_memory": lambda _: 0,
        "reset_peak_memory": lambda _: None,
        "wait_for": lambda _: None,
        "generator_states": lambda _: [],
        "refuse_waits": refuse_waits,
        "CopyStream": _CopyStream,
    }
    swaps_parameters = torch.__future__.get_swap_module_params_on_conversion()
    with (
        mock.patch.multiple(devices, **replaced),
        mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
    ):
        # Parameters keep their identity when a module is moved, as on a GPU.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield device
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps_parameters)


def describe_unsupported() -> str:
    """Return the reason why this process has no stand-in, or an empty string."""
    if not IS_SUPPORTED:
        return f"torch {torch.__version__} has no devices written in Python; torch 2.13 has"
    try:
        torch.ones(1, device=NAME, requires_grad=True).sum().backward()
    except RuntimeError:  # torch counts its devices at the first backward pass of a process
        return "a backward pass ran before the stand-in was imported; import it first"
    return ""


IS_SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
if IS_SUPPORTED:
    _register()
