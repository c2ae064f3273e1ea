"""What depends on the device: the precision of ``amp``, and copies that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError

BF16_SINCE = (8, 0)  # the compute capability whose tensor cores multiply bf16


def settled_amp(wanted: str) -> str:
    """The hparam ``amp`` that a job trains with on this machine: "off" or "bf16".

    ``auto`` is bf16 on GPUs that compute in it and off on others and on processors. Raises
    CarftError for bf16 on a GPU that does not.
    """
    if wanted == "off" or not torch.cuda.is_available():
        return "off" if wanted == "auto" else wanted
    capability = torch.cuda.get_device_capability()
    if capability >= BF16_SINCE:
        return "bf16"
    if wanted == "auto":
        return "off"
    raise CarftError(
        f"amp is 'bf16', which {torch.cuda.get_device_name()} with its compute capability "
        f"{'.'.join(map(str, capability))} does not compute in; expected 8.0 (A100) or more. Set "
        "amp to 'off', or go on with a job that began in bf16 on such a card"
    )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the processor on ``device``, for which the processor does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
