"""The device that trains: the precision it computes in."""

from __future__ import annotations

import torch

from domainbed_carft.errors import CarftError

BF16_CAPABILITY = (8, 0)  # the lowest compute capability whose tensor cores multiply bf16


def resolve_amp(amp: str) -> str:
    """What the hparam ``amp`` means on this machine: "bf16" or "off".

    Raises CarftError for "bf16" on a GPU that does not compute in it.
    """
    on_gpu = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if on_gpu else (0, 0)
    has_bf16 = capability >= BF16_CAPABILITY
    if amp == "auto":
        return "bf16" if has_bf16 else "off"
    if amp == "off" or not on_gpu or has_bf16:
        return amp

    raise CarftError(
        f"amp is 'bf16', which {torch.cuda.get_device_name()} with its compute capability "
        f"{'.'.join(map(str, capability))} does not compute in; expected 8.0 (A100) or more. Set "
        "amp to 'off', or resume the job on a card on which it began in bf16"
    )
