"""How a step is taken: AdamW, the learning-rate schedule, precision, copies to the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_carft.errors import CarftError

EMBEDDINGS = {
    "class_embedding", "positional_embedding", "token_embedding",
    "cls_token", "pos_embed", "latent",  # timm's
}  # fmt: skip
BF16_SINCE = (8, 0)  # the compute capability whose tensor cores multiply bf16


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], hparams: Mapping[str, Any]
) -> torch.optim.AdamW:
    """AdamW over the named parameters, all trained.

    Weight decay acts on matrices and convolutions, and with ``weight_decay_all`` also on biases,
    norms and embeddings: decay would make these forget, and they cannot overfit. MIRO's variances
    have ten times the rate (khanrc/miro, domainbed/algorithms/miro.py) and no decay.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    variances: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim > 1 and not {*name.split(".")} & EMBEDDINGS
        kept = decayed if is_matrix or hparams["weight_decay_all"] else spared
        (variances if name.startswith("terms.") else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": hparams["weight_decay"]},
        {"params": spared, "weight_decay": 0.0},
        {"params": variances, "weight_decay": 0.0, "lr": 10 * hparams["lr"]},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=hparams["lr"])
    optimizer.register_load_state_dict_post_hook(fuse)
    return optimizer


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Step all weights in one kernel where they are on a GPU; called where weights have moved.

    Its counts of steps must be there, too, where those of a run that began on a processor are not.
    """
    for group in optimizer.param_groups:
        counts = [optimizer.state[p]["step"] for p in group["params"] if p in optimizer.state]
        on_gpu = all(tensor.is_cuda for tensor in [*group["params"], *counts])
        group["fused"] = True if on_gpu else None


def schedule(
    optimizer: torch.optim.Optimizer, hparams: Mapping[str, Any], lp_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """After ``lp_steps`` a linear warm-up, then a cosine to 0 at ``total_steps``, or constant."""
    warmup, total = hparams["warmup_steps"], hparams["total_steps"] - lp_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if hparams["lr_schedule"] == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * done))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def settled_amp(wanted: str) -> str:
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


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the processor on ``device``, for which the processor does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
