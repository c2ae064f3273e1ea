"""The device of a rehearsal: its memory, waiting for it, and what waits for it inside a step."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from domainbed_carft import machine
from domainbed_carft.machine import devices

# What fetches a value from the device, or waits for a shape that depends on one.
_WAITING_OPERATIONS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
# Optimizers keep their step counts on the processor, and read them there.
_HARMLESS_CALLERS = ("torch/optim/",)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
_OWN_CODE = ("/torch/", "/preflight/device.py")

# torch also warns, once, that the mode itself is a prototype.
_CUDAS_WARNING = "called a synchronizing CUDA operation"

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what the kernel takes for it


def has_gpu() -> bool:
    """Whether a GPU computes here."""
    return devices.is_gpu(devices.default_device())


def name() -> str:
    """The name of the device, as records have it."""
    return devices.gpu_facts().name if has_gpu() else machine.processor_name()


def total_memory() -> int:
    """Bytes that a job may use: the GPU's, or those of this process's machine or cgroup."""
    return devices.gpu_facts().memory if has_gpu() else machine.memory()


def free_memory() -> int:
    """Bytes of `total_memory` that nobody uses now; of a processor all of them."""
    return devices.free_memory(devices.default_device()) if has_gpu() else machine.memory()


def wait() -> None:
    """Wait until the device has computed all that it was told to."""
    devices.wait_for(devices.default_device())


def begin_peak() -> None:
    """Forget the memory used so far, for `peak_memory`."""
    devices.begin_peak_memory(devices.default_device())
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def peak_memory() -> int:
    """Bytes in use at most since `begin_peak`: of tensors on the GPU, or of this process."""
    if has_gpu():
        return devices.peak_memory(devices.default_device())
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU, or this process, has too little memory."""
    text = str(error).lower()
    has_words = any(words in text for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and has_words)


@contextlib.contextmanager
def recorded_waits() -> Iterator[list[str]]:
    """The places inside the block where the processor waits for the device, each once.

    On a GPU as CUDA's sync debug mode tells them; on a processor, operations that would wait.
    """
    places: list[str] = []
    if not has_gpu():
        with _WaitingOperations(places):
            yield places
        return

    with warnings.catch_warnings(record=True) as caught, devices.refused_waits("warn"):
        warnings.simplefilter("always")
        yield places
    warnings_of_waits = [w for w in caught if _CUDAS_WARNING in str(w.message)]
    places += dict.fromkeys(f"{w.filename}:{w.lineno}" for w in warnings_of_waits)


class _WaitingOperations(TorchDispatchMode):
    """Adds to ``places`` where operations are called that would wait for a GPU."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if str(function).startswith(_WAITING_OPERATIONS):
            frames = traceback.extract_stack()
            calls = [f for f in frames if not any(part in f.filename for part in _OWN_CODE)]
            is_harmless = any(part in f.filename for f in frames for part in _HARMLESS_CALLERS)
            place = f"{calls[-1].filename}:{calls[-1].lineno}" if calls else "an unknown place"
            if not is_harmless and place not in self._places:
                self._places.append(place)
        return function(*args, **(kwargs or {}))
