"""The device that computes, a GPU or the processor: the only module that calls ``torch.cuda``.

A GPU is what ``torch.cuda`` drives: NVIDIA's by CUDA, and AMD's by ROCm, which answer by the same
name. `torch.accelerator` is asked which accelerator there is.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from domainbed_carft import machine

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@dataclass(frozen=True)
class GPUFacts:
    """A GPU: its name, its memory in bytes, and its compute capability, such as (8, 0)."""

    name: str
    memory: int
    capability: tuple[int, int]


def default_device() -> torch.device:
    """The GPU if there is one, else the processor; warns of an accelerator of another kind."""
    accelerator = _find_accelerator()
    if accelerator is None:
        return CPU
    if is_gpu(accelerator):
        return accelerator

    warnings.warn(
        f"{refusal(accelerator)}; computing on the processor. Expected a GPU of CUDA or ROCm",
        stacklevel=2,
    )
    return CPU


def _find_accelerator() -> torch.device | None:
    """The accelerator of this machine; None without one."""
    if not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


def is_gpu(device: torch.device | str) -> bool:
    """Whether ``torch.cuda`` drives this device, if the machine has it."""
    return getattr(torch, torch.device(device).type, None) is torch.cuda


def refusal(device: torch.device) -> str:
    """Why nothing can be computed on this device; "" for GPUs and the processor."""
    if is_gpu(device) or device.type == CPU.type:
        return ""
    return f"devices of the type {device.type} are not supported"


def gpu_count() -> int:
    """How many GPUs this process can use."""
    return torch.cuda.device_count()


def gpu_facts(device: torch.device | int = GPU) -> GPUFacts:
    """The facts of a GPU by its number in this process, by default of the current one."""
    properties = torch.cuda.get_device_properties(device)
    return GPUFacts(
        name=properties.name,
        memory=properties.total_memory,
        capability=(properties.major, properties.minor),
    )


def gpu_runtime() -> str:
    """What torch was built for, and the driver, such as "CUDA 12.8, driver 570.86"; "" unknown."""
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
    """Make the GPU of this number the current one of this process."""
    torch.cuda.set_device(index)


def process_group_backend() -> str:
    """The backend of torch's process group: gloo, with NCCL (or RCCL) where there are GPUs."""
    return f"cpu:gloo,{GPU.type}:nccl" if is_gpu(default_device()) else "gloo"


def peak_memory(device: torch.device) -> int:
    """The bytes of tensors that a GPU held at most since the process began; 0 for the processor."""
    return torch.cuda.max_memory_allocated(device) if is_gpu(device) else 0


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` count from now on; gives back what torch keeps for later."""
    if is_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was told to."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def generator_states(device: torch.device) -> list[Tensor]:
    """The state of a GPU's default generator of random numbers; none for the processor."""
    return [torch.cuda.get_rng_state(device)] if is_gpu(device) else []


def set_generator_states(states: Sequence[Tensor], device: torch.device) -> None:
    """Restore what `generator_states` returned; does nothing on another kind of device."""
    if is_gpu(device) and states:
        torch.cuda.set_rng_state(states[0], device)


@contextlib.contextmanager
def refuse_waits() -> Iterator[None]:
    """Inside, torch raises RuntimeError where the processor would wait for the GPU."""
    mode_before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode_before)


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a small CPU tensor on ``device``; the CPU does not wait for it."""
    if is_gpu(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class CopyStream:
    """Copies from pinned memory to a GPU, which run beside what the GPU computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, tensors: Sequence[Tensor]) -> StartedCopies:
        """Start to copy tensors; the processor does not wait."""
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        return StartedCopies(copies, self._stream.record_event())


@dataclass(frozen=True)
class StartedCopies:
    """Tensors on their way to a GPU."""

    _tensors: list[Tensor]
    _copied: torch.cuda.Event

    def wait(self) -> list[Tensor]:
        """The tensors, for work on the current stream, which waits for the copies."""
        stream = torch.cuda.current_stream(self._tensors[0].device)
        stream.wait_event(self._copied)
        for tensor in self._tensors:  # the memory belongs to the copying stream
            tensor.record_stream(stream)
        return self._tensors
