"""The device that computes, a GPU or the CPU. No other module calls ``torch.cuda``.

A GPU is a device of ``torch.cuda``, which drives NVIDIA's GPUs by CUDA and AMD's by ROCm.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from domainbed_carft import machine
from domainbed_carft.errors import CarftError

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@dataclass(frozen=True)
class GPUFacts:
    """Properties of a GPU."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]  # compute capability, such as (8, 0)


def default_device() -> torch.device:
    """Return the GPU if there is one, or else the CPU; warn about an unsupported accelerator."""
    accelerator = _find_accelerator()
    if accelerator is None:
        return CPU
    if is_gpu(accelerator):
        return accelerator

    warnings.warn(
        f"{describe_unsupported(accelerator)}; computing on the CPU. Expected a CUDA or ROCm GPU",
        stacklevel=2,
    )
    return CPU


def _find_accelerator() -> torch.device | None:
    """Return the accelerator of this machine, or None."""
    if not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


def is_gpu(device: torch.device | str) -> bool:
    """Return True if ``torch.cuda`` drives devices of this type."""
    return getattr(torch, torch.device(device).type, None) is torch.cuda


def describe_unsupported(device: torch.device) -> str:
    """Return the reason why a device is not supported, or an empty string."""
    if is_gpu(device) or device.type == CPU.type:
        return ""
    return f"devices of the type {device.type} are not supported"


def choose_device(name: str | None) -> torch.device:
    """Return the device called ``name``, such as "cuda:1", or the default device for None.

    Makes convolutions deterministic, as DomainBed's train does. Raises CarftError if the device is
    not available.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

    name = name or str(default_device())
    try:
        device = torch.device(name)
        reason = describe_unsupported(device)
        if not reason:
            device = torch.empty(1, device=device).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise CarftError(
            f"--device {name} cannot be used ({reason}); expected cpu, cuda or cuda:N of this "
            "machine"
        )

    if not is_gpu(device):
        machine.keep_freed_memory()
    return device


def gpu_count() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count()


def gpu_facts(device: torch.device | int = GPU) -> GPUFacts:
    """Return the properties of a GPU, by default of the current one."""
    properties = torch.cuda.get_device_properties(device)
    return GPUFacts(
        name=properties.name,
        memory=properties.total_memory,
        capability=(properties.major, properties.minor),
    )


def gpu_runtime() -> str:
    """Return the known versions of CUDA or ROCm and the driver: "CUDA 12.8, driver 570.86"."""
    parts = []
    if torch.version.cuda:
        parts.append(f"CUDA {torch.version.cuda}")
    if torch.version.hip:
        parts.append(f"ROCm {torch.version.hip}")
    driver = machine.gpu_driver()
    if driver:
        parts.append(f"driver {driver}")
    return ", ".join(parts)


def use_gpu(index: int) -> None:
    """Make a GPU the current one of this process."""
    torch.cuda.set_device(index)


def process_group_backend() -> str:
    """Return the backend of torch's process group: gloo, and NCCL (or RCCL) for GPUs."""
    return f"cpu:gloo,{GPU.type}:nccl" if is_gpu(default_device()) else "gloo"


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes of tensors on a GPU since the process began; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if is_gpu(device) else 0


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`, and free torch's cached GPU memory."""
    if is_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all queued computations."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the state of a GPU's default random generator; empty for the CPU."""
    return [torch.cuda.get_rng_state(device)] if is_gpu(device) else []


def set_generator_states(states: Sequence[Tensor], device: torch.device) -> None:
    """Restore states from `generator_states`, unless they belong to another kind of device."""
    if is_gpu(device) and states:
        torch.cuda.set_rng_state(states[0], device)


@contextlib.contextmanager
def refuse_waits() -> Iterator[None]:
    """Let torch raise RuntimeError in the block wherever the CPU would wait for the GPU."""
    mode_before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode_before)


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to ``device`` without waiting for the copy."""
    if is_gpu(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class CopyStream:
    """Copies from pinned memory to a GPU that run at the same time as its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, tensors: Sequence[Tensor]) -> StartedCopies:
        """Start to copy tensors without waiting."""
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        return StartedCopies(copies, self._stream.record_event())


@dataclass(frozen=True)
class StartedCopies:
    """Tensors that are being copied to a GPU."""

    _tensors: list[Tensor]
    _copied: torch.cuda.Event

    def wait(self) -> list[Tensor]:
        """Return the tensors, for use on the current stream, which waits for the copies."""
        stream = torch.cuda.current_stream(self._tensors[0].device)
        stream.wait_event(self._copied)
        for tensor in self._tensors:  # otherwise the copy stream could reuse the memory too early
            tensor.record_stream(stream)
        return self._tensors
