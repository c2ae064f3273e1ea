"""The device that trains: the precision it computes in, and copies to it."""

from __future__ import annotations

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError

BF16_SINCE = (8, 0)  # the compute capability whose tensor cores multiply bf16


def resolve_amp(wanted: str) -> str:
    """The hparam ``amp``, settled for this machine; CarftError for bf16 on a GPU without it."""
    on_gpu = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if on_gpu else (0, 0)
    if wanted == "auto":
        return "bf16" if capability >= BF16_SINCE else "off"
    if wanted == "off" or not on_gpu or capability >= BF16_SINCE:
        return wanted
    raise CarftError(
        f"amp is 'bf16', which {torch.cuda.get_device_name()} with its compute capability "
        f"{'.'.join(map(str, capability))} does not compute in; expected 8.0 (A100) or more. Set "
        "amp to 'off', or go on with a job that began in bf16 on such a card"
    )


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the processor on ``device``, for which the processor does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
