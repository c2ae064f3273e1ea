"""The device of a rehearsal: its name, its memory, and waiting for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from domainbed_carft import machine
from domainbed_carft.machine import devices

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
