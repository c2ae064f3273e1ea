"""The optimizer of a method: AdamW's parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed_carft.machine import devices

# Names of parameters without weight decay. The last one is timm's.
EMBEDDINGS = {
    "class_embedding",
    "positional_embedding",
    "token_embedding",
    "cls_token",
    "pos_embed",
    "latent",
}


def build_adamw(
    trained: Mapping[str, nn.Parameter],
    penalty_groups: Sequence[dict[str, Any]],
    hparams: Mapping[str, Any],
) -> torch.optim.AdamW:
    """Return AdamW over all trained parameters.

    Weight decay is applied to matrices and convolutions. Biases, norms and embeddings are in a
    group without weight decay unless ``weight_decay_all`` is true: decay would make them forget,
    and they cannot overfit.

    Args:
        trained: name -> parameter.
        penalty_groups: parameter groups of penalties, whose parameters are in no other group.
        hparams: ``lr``, ``weight_decay`` and ``weight_decay_all``.
    """
    of_penalties = {parameter for group in penalty_groups for parameter in group["params"]}
    has_decay = {
        parameter: hparams["weight_decay_all"]
        or (parameter.ndim > 1 and not {*name.split(".")} & EMBEDDINGS)
        for name, parameter in trained.items()
        if parameter not in of_penalties
    }
    groups = [
        {"params": [p for p in has_decay if has_decay[p]], "weight_decay": hparams["weight_decay"]},
        {"params": [p for p in has_decay if not has_decay[p]], "weight_decay": 0.0},
        *penalty_groups,
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=hparams["lr"])
    optimizer.register_load_state_dict_post_hook(fuse)
    return optimizer


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer update each parameter group in one kernel if the group is on a GPU.

    Call it after moving weights. The optimizer's step counts must be on the GPU as well, which is
    not the case for a run started on a CPU.
    """
    for group in optimizer.param_groups:
        step_counts = [optimizer.state[p]["step"] for p in group["params"] if p in optimizer.state]
        tensors = [*group["params"], *step_counts]
        on_gpu = all(devices.is_gpu(tensor.device) for tensor in tensors)
        group["fused"] = True if on_gpu else None


def build_schedule(
    optimizer: torch.optim.Optimizer, hparams: Mapping[str, Any]
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning rate schedule of the steps after ``lp_steps``.

    A linear warm-up, then by ``lr_schedule`` a cosine to 0 at ``total_steps``, or a constant.
    """
    warmup_steps = hparams["warmup_steps"]
    total_steps = hparams["total_steps"] - hparams.get("lp_steps", 0)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if hparams["lr_schedule"] == "constant":
            return 1.0

        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
