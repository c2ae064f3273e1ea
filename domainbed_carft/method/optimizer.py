"""AdamW and its schedule of learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

EMBEDDINGS = {
    "class_embedding", "positional_embedding", "token_embedding",
    "cls_token", "pos_embed", "latent",  # timm's
}  # fmt: skip


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
