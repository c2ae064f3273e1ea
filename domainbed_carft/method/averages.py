"""The weights that predict, where they are not those that are trained: averages and WiSE-FT.

Over the steps 0 (the original), 1, ..., T the weights w_0, w_1, ..., w_T are averaged as

- ``sma``: uniformly over the steps from ``average_start`` on (EoA, arXiv 2110.10832; DiWA), of
  LP-FT's over those of its second phase;
- ``ema``: w_avg = m w_avg + (1 - m) w, with w_avg = w_0 at first;
- ``beta``: by the density of Beta(b, b) at (t + 1/2) / (T + 1) (CLIPood, arXiv 2302.00864);
- ``swad``: along the valley of the validation loss, in module ``swad``.

WiSE-FT (arXiv 2109.01903) then takes (1 - alpha) w_0 + alpha w_avg. All in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domainbed_carft.method.hparams import (
    Hparam,
    by_size,
    choice,
    count,
    fraction,
    is_positive,
    nonnegative,
)



def average(default: str = "none") -> Hparam:
    """The hyperparameter that says which average of the weights predicts."""
    return choice(
        "average",
        *("none", "sma", "ema", "beta", "swad"),
        default=default,
        elsewhere="none",
        meaning="which average of the weights predicts",
    )


# As every algorithm has them, unless its file says otherwise.
HPARAMS = (
    average(),
    count(
        "average_start",
        by_size(10, 100),
        meaning="the step at which sma begins",
        source="DiWA's",
        changes_cost=False,
    ),
    fraction(
        "ema",
        by_size(0.9, 0.999),
        meaning="how much of the moving average stays at a step",
        changes_cost=False,
    ),
    Hparam(
        "beta",
        0.5,
        lambda v: is_positive(v) and v <= 10,
        "a number in (0, 10]",
        meaning="the b of the density Beta(b, b) by which beta weights the steps",
        source="thuml/CLIPood, engine.py",
        changes_cost=False,
    ),
    count(
        "swad_converge",
        3,
        1,
        absent=3,
        meaning="the valley begins once the first of so many segments has the smallest loss",
        source="khanrc/swad, config.yaml",
    ),
    count(
        "swad_tolerance",
        6,
        1,
        absent=6,
        meaning="the valley ends once so many segments are above the threshold",
        source="khanrc/swad, config.yaml",
    ),
    nonnegative(
        "swad_ratio",
        lambda conditions: 0.2 if conditions.dataset == "VLCS" else 0.3,
        absent=0.3,
        meaning="how far the threshold is above the loss where the valley begins, as a share of it",
        source="khanrc/swad, README",
    ),
    fraction(
        "wise_alpha",
        1.0,
        meaning="the share of the trained weights in those that predict; the rest is the original",
    ),
)


def share(step: int, hparams: Mapping[str, Any]) -> float:
    """How far the average goes towards the weights after ``step`` steps, in [0, 1].

    Applied step by step from 1 on, w_avg += share * (w - w_avg) has the closed forms above. Steps
    after ``total_steps`` count nothing in ``beta``, whose density ends there.
    """
    kind = hparams["average"]
    if kind == "sma":
        lp_steps = hparams["lp_steps"]
        start = max(hparams["average_start"], lp_steps + 1 if lp_steps else 0)
        return 1 / max(1, step - start + 1)
    if kind == "ema":
        return 1 - float(hparams["ema"])

    total_steps = hparams["total_steps"]
    if step > total_steps:
        return 0.0
    progress = (np.arange(step + 1) + 0.5) / (total_steps + 1)
    density = (progress * (1 - progress)) ** (hparams["beta"] - 1.0)
    return float(density[-1] / density.sum())


class Predicting:
    """The average of some weights, and what of it and the original ones predicts.

    ``trained``: name -> parameter, which the optimizer moves in place. ``version`` changes where
    the average does between two steps.
    """

    version = 0

    def __init__(self, trained: Mapping[str, nn.Parameter], hparams: Mapping[str, Any]) -> None:
        self._hparams = hparams
        self._trained = dict(trained)
        copies = {name: tensor.detach().clone() for name, tensor in trained.items()}
        self._start = copies if hparams["wise_alpha"] < 1 else {}
        averaged = copies if hparams["average"] != "none" else {}
        self._average = {name: tensor.clone() for name, tensor in averaged.items()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take the weights after ``step`` steps into the average."""
        if not self._average:
            return
        weight = share(step, self._hparams)
        for name, tensor in self._average.items():
            tensor.lerp_(self._trained[name].detach(), weight)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Name -> the weights that predict now."""
        final = self._average or {name: p.detach() for name, p in self._trained.items()}
        if not self._start:
            return dict(final)
        alpha = self._hparams["wise_alpha"]
        return {
            name: torch.lerp(self._start[name], tensor, alpha) for name, tensor in final.items()
        }

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the copies with the module, to another device say."""
        for copies in (self._start, self._average):
            copies.update({name: fn(tensor) for name, tensor in copies.items()})

    def state_dict(self) -> dict[str, Any]:
        """The weights that are trained, which the module's state does not show, and the average."""
        trained = {name: tensor.detach() for name, tensor in self._trained.items()}
        return {"trained": trained, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy what `state_dict` returned into the weights that are trained and the average."""
        for name, tensor in state["trained"].items():
            self._trained[name].copy_(tensor)
        for name, tensor in state["average"].items():
            self._average[name].copy_(tensor)
