"""The weights that predict, where they are not those that are trained: averages and WiSE-FT.

Over the steps 0 (the original), 1, ..., T the weights w_0, w_1, ..., w_T are averaged as

- ``sma``: uniformly over the steps from ``average_start`` on (EoA, arXiv 2110.10832; DiWA), of
  LP-FT's over those of its second phase;
- ``ema``: w_avg = m w_avg + (1 - m) w, with w_avg = w_0 at first;
- ``beta``: by the density of Beta(b, b) at (t + 1/2) / (T + 1) (CLIPood, arXiv 2302.00864);
- ``swad``: along the valley of the validation loss (`SWAD`).

WiSE-FT (arXiv 2109.01903) then takes (1 - alpha) w_0 + alpha w_avg. All in float32.

SWAD, Cha et al., arXiv 2102.08604; khanrc/swad, domainbed/swad.py (LossValley) and
lib/swa_utils.py. From each checkpoint to the next a segment is the uniform mean of the weights
after its steps, in float32. The loss of the weights at its end decides whether it joins the final
mean, in which segments count alike, however many steps they have. Training goes on where the valley
has ended, as a job has a fixed number of steps.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


def average(default: str = "none", source: str = "ours") -> Hparam:
    """The hyperparameter that says which average of the weights predicts."""
    return choice(
        "average",
        *("none", "sma", "ema", "beta", "swad"),
        default=default,
        elsewhere="none",
        meaning="which average of the weights predicts",
        source=source,
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
        meaning="the valley begins once the first of so many segments has the smallest loss",
        source="khanrc/swad, config.yaml",
    ),
    count(
        "swad_tolerance",
        6,
        1,
        meaning="the valley ends once so many segments are above the threshold",
        source="khanrc/swad, config.yaml",
    ),
    nonnegative(
        "swad_ratio",
        lambda conditions: 0.2 if conditions.dataset == "VLCS" else 0.3,
        meaning="how far the threshold is above the loss where the valley begins, as a share of it",
        source="khanrc/swad, README",
    ),
    fraction(
        "wise_alpha",
        1.0,
        meaning="the share of the trained weights in those that predict; the rest is the original",
    ),
)


def averaging_weight(step: int, hparams: Mapping[str, Any]) -> float:
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


class PredictionWeights:
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
        weight = averaging_weight(step, self._hparams)
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


class Mean:
    """A running mean of weights by name. Until the first ones are added it is ``weights``."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.weights = dict(weights or {})
        self.count = count

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take some weights into the mean."""
        if not self.count:
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            for name, tensor in self.weights.items():
                tensor.lerp_(weights[name].detach(), 1 / (self.count + 1))
        self.count += 1


class Segment(NamedTuple):
    """The mean of the weights between two checkpoints, and the loss of those at its end.

    ``number``: how many segments came before it.
    """

    number: int
    loss: float
    weights: dict[str, Tensor]


class LossValley:
    """Which segments the final mean consists of, decided checkpoint by checkpoint.

    ``converge``: of how many segments the first must have the smallest loss, so that the valley
    begins. ``tolerance``: how many must all exceed the threshold, so that it ends. ``ratio``: how
    far the threshold is above the mean loss of those ``converge`` segments, as a share of it.

    As in the released code, a segment may join more than once: a short queue lets the same one join
    at each checkpoint until ``tolerance`` segments are there. Those that join as the valley begins
    join again as the oldest of the queue; and the one of the smallest loss counts only where it
    joins itself.
    """

    def __init__(self, converge: int, tolerance: int, ratio: float) -> None:
        self.converge = converge
        self.tolerance = tolerance
        self.ratio = ratio
        self.threshold = math.inf
        self.is_dead = False
        self._count = 0
        self._latest: deque[Segment] = deque(maxlen=max(converge, tolerance))
        self._lowest: int | None = None  # the number of the segment where the valley begins
        self._joined = Mean()

    def add(self, loss: float, weights: dict[str, Tensor]) -> None:
        """Take the next segment, which nobody changes from now on."""
        if self.is_dead:
            return
        self._latest.append(Segment(self._count, loss, weights))
        self._count += 1

        if self._lowest is None:
            self._begin_if_converged()
        elif self._tolerated()[0].number >= self._lowest:
            self._follow()

    def chosen(self) -> dict[str, Tensor]:
        """Name -> the weights that SWAD would choose if training ended here.

        Before the valley begins these are the last segment's.
        """
        if self._lowest is None:
            return self._latest[-1].weights

        final = Mean(self._joined.weights, self._joined.count)
        rest = [] if self.is_dead else self._tolerated()[1:]
        if final.count and rest:
            final = copy.deepcopy(final)  # which joins in place
        while rest and self._smallest(rest) <= self.threshold:
            final.add(rest.pop(0).weights)
        return final.weights

    def state(self) -> dict[str, Any]:
        """What `load` needs, in plain types and tensors."""
        return {
            "threshold": self.threshold,
            "is_dead": self.is_dead,
            "count": self._count,
            "latest": [list(segment) for segment in self._latest],
            "lowest": self._lowest,
            "joined": self._joined.weights,
            "joined_count": self._joined.count,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.threshold = state["threshold"]
        self.is_dead = state["is_dead"]
        self._count = state["count"]
        self._latest.clear()
        self._latest.extend(Segment(*fields) for fields in state["latest"])
        self._lowest = state["lowest"]
        self._joined = Mean(state["joined"], state["joined_count"])

    def _tolerated(self) -> list[Segment]:
        """The last ``tolerance`` segments, fewer at first."""
        return [*self._latest][-self.tolerance :]

    @staticmethod
    def _smallest(segments: Sequence[Segment]) -> float:
        return min(segment.loss for segment in segments)

    def _begin_if_converged(self) -> None:
        """Begin the valley if the first of the last ``converge`` segments has the smallest loss."""
        window = [*self._latest][-self.converge :]
        losses = [segment.loss for segment in window]
        if len(window) < self.converge or np.argmin(losses) != 0:
            return

        self._lowest = window[0].number
        self.threshold = float(np.mean(losses)) * (1 + self.ratio)
        self._joined = Mean(window[0].weights)
        for segment in self._first_joining(window):
            self._joined.add(segment.weights)

    def _first_joining(self, window: Sequence[Segment]) -> list[Segment]:
        """The segments that join as the valley begins.

        With a ``tolerance`` above ``converge`` they are those of the former that are not among the
        last of the latter, and one more; without those up to the last loss above the threshold, and
        without one more.
        """
        surplus = self.tolerance - self.converge
        if surplus <= 0:
            return [*window[1 : 1 - surplus]]

        earlier = self._tolerated()[: surplus + 1]
        above = [place for place, s in enumerate(earlier) if s.loss > self.threshold]
        start = above[-1] + 1 if above else 0
        return earlier[start + 1 :]

    def _follow(self) -> None:
        """Let the oldest segment join, or end the valley where all exceed the threshold."""
        tolerated = self._tolerated()
        if self._smallest(tolerated) > self.threshold:
            self.is_dead = True
            self._latest.clear()
        else:
            self._joined.add(tolerated[0].weights)


class SWAD(PredictionWeights):
    """The weights that SWAD chooses, and what of them and the original ones predicts.

    ``trained``: name -> parameter, which the optimizer moves in place. The segments are kept in the
    main memory. Before the first checkpoint, and in LP-FT's first phase, the trained weights
    predict.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], hparams: Mapping[str, Any]) -> None:
        super().__init__(trained, {**hparams, "average": "none"})
        self._lp_steps = hparams["lp_steps"]
        self._segment = Mean()
        self._valley = LossValley(
            converge=hparams["swad_converge"],
            tolerance=hparams["swad_tolerance"],
            ratio=hparams["swad_ratio"],
        )

    def add(self, step: int) -> None:
        """Take the weights after ``step`` steps into the segment."""
        if step > self._lp_steps and not self._valley.is_dead:
            self._segment.add(self._trained)

    def at_checkpoint(self, validation_loss: float) -> None:
        """End the segment, with the loss of the trained weights on the training out-splits.

        A job that resumes in a checkpoint comes here twice; the second time no step is new.
        """
        if not self._segment.count:
            return

        weights = {name: tensor.cpu() for name, tensor in self._segment.weights.items()}
        self._segment = Mean()
        self._valley.add(validation_loss, weights)
        self._average = self._on_device(self._valley.chosen())
        self.version += 1

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the copies with the module, but for the segments that have ended."""
        super().apply(fn)
        segment = self._segment.weights
        self._segment.weights = {name: fn(tensor) for name, tensor in segment.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs: the trained weights, the segments, and the final mean."""
        segment = {"weights": self._segment.weights, "count": self._segment.count}
        return {**super().state_dict(), "segment": segment, "valley": self._valley.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict({**state, "average": {}})
        self._average = self._on_device(state["average"])
        segment = state["segment"]
        self._segment = Mean(self._on_device(segment["weights"]), segment["count"])

        valley = state["valley"]
        joined = {name: tensor.cpu() for name, tensor in valley["joined"].items()}
        self._valley.load({**valley, "joined": joined})
        self.version += 1

    def _on_device(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each of the weights on the device of the parameter of its name."""
        return {name: tensor.to(self._trained[name].device) for name, tensor in weights.items()}
