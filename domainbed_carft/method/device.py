"""The device that trains: the precision it computes in."""

from __future__ import annotations

from typing import NamedTuple

from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.machine import devices

BF16_CAPABILITY = (8, 0)  # the lowest compute capability whose tensor cores multiply bf16


class DeviceFacts(NamedTuple):
    """The GPU that trains: its name, "" where a CPU trains, and its compute capability."""

    gpu: str = ""
    capability: tuple[int, int] = (0, 0)


def device_facts() -> DeviceFacts:
    """The facts of this machine's device."""
    if not devices.is_gpu(devices.default_device()):
        return DeviceFacts()

    gpu = devices.gpu_facts()
    return DeviceFacts(gpu.name, gpu.capability)


def resolve_amp(amp: str, device: DeviceFacts) -> str:
    """What the hparam ``amp`` means on ``device``: "bf16" or "off".

    Raises CarftError for "bf16" on a GPU that does not compute in it.
    """
    has_bf16 = device.capability >= BF16_CAPABILITY
    if amp == "auto":
        return "bf16" if has_bf16 else "off"
    if amp == "off" or not device.gpu or has_bf16:
        return amp

    version = ".".join(map(str, device.capability))
    raise CarftError(
        Problem(
            "amp",
            amp,
            expected=f"'off' on {device.gpu}, whose compute capability is {version}: bf16 takes "
            "8.0 (A100) or more",
            remedy="set amp to 'off', or resume the job on a card on which it began in bf16",
        )
    )
