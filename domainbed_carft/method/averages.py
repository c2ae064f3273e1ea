"""Averages of the trained weights, used for prediction: moving averages, SWAD and WiSE-FT.

Over the steps 0 (the original), 1, ..., T the weights w_0, w_1, ..., w_T are averaged as

- ``sma``: uniformly over the steps from ``average_start`` on (EoA, arXiv 2110.10832; DiWA), for
  LP-FT over the steps of its second phase;
- ``ema``: w_avg = m w_avg + (1 - m) w, starting with w_avg = w_0;
- ``beta``: by the density of Beta(b, b) at (t + 1/2) / (T + 1) (CLIPood, arXiv 2302.00864);
- ``swad``: along the valley of the validation loss (`SWAD`).

WiSE-FT (arXiv 2109.01903) then takes (1 - alpha) w_0 + alpha w_avg. All in float32.

SWAD, Cha et al., arXiv 2102.08604; khanrc/swad, domainbed/swad.py (LossValley) and
lib/swa_utils.py. A segment is the uniform mean, in float32, of the weights after each step between
two checkpoints. The loss of the weights at its end decides whether it joins the final mean, in
which all segments have equal weight, regardless of their number of steps. Training continues after
the end of the valley because a job has a fixed number of steps.
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


def average(default: str = "none", source: str = "this package") -> Hparam:
    """Return the hyperparameter that chooses the average used for prediction."""
    return choice(
        "average",
        *("none", "sma", "ema", "beta", "swad"),
        default=default,
        elsewhere="none",
        meaning="the average of the weights used for prediction",
        source=source,
    )


# The defaults of all algorithms that do not declare others.
HPARAMS = (
    average(),
    count(
        "average_start",
        by_size(10, 100),
        meaning="the first step that sma averages",
        source="DiWA",
        changes_cost=False,
    ),
    fraction(
        "ema",
        by_size(0.9, 0.999),
        meaning="the share of the moving average that is kept at each step",
        changes_cost=False,
    ),
    Hparam(
        "beta",
        0.5,
        lambda v: is_positive(v) and v <= 10,
        "a number in (0, 10]",
        meaning="b of the density Beta(b, b) that weights the steps of beta",
        source="thuml/CLIPood, engine.py",
        changes_cost=False,
    ),
    count(
        "swad_converge",
        3,
        1,
        meaning="the valley begins if the first of this many segments has the smallest loss",
        source="khanrc/swad, config.yaml",
    ),
    count(
        "swad_tolerance",
        6,
        1,
        meaning="the valley ends if this many segments are all above the threshold",
        source="khanrc/swad, config.yaml",
    ),
    nonnegative(
        "swad_ratio",
        lambda conditions: 0.2 if conditions.dataset == "VLCS" else 0.3,
        meaning="the threshold's distance above the mean loss at the start of the valley, as a "
        "share of that loss",
        source="khanrc/swad, README",
    ),
    fraction(
        "wise_alpha",
        1.0,
        meaning="the share of the trained weights in prediction; the rest is the original weights",
    ),
)


def averaging_weight(step: int, hparams: Mapping[str, Any]) -> float:
    """Return the weight in [0, 1] of the weights after ``step`` steps in the average.

    Applied to each step from 1 on, w_avg += averaging_weight * (w - w_avg) gives the closed forms
    above. In ``beta``, whose density ends at ``total_steps``, later steps have weight 0.
    """
    kind = hparams["average"]
    if kind == "sma":
        lp_steps = hparams.get("lp_steps", 0)
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
    """The average of trained weights, interpolated with the original weights (WiSE-FT).

    Args:
        trained: name -> parameter, which the optimizer updates in place.
        hparams: ``average``, ``wise_alpha`` and the options of the average.

    Attributes:
        version: changes when the average changes between two steps.
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
        """Add the weights after ``step`` steps to the average."""
        if not self._average:
            return
        weight = averaging_weight(step, self._hparams)
        for name, tensor in self._average.items():
            tensor.lerp_(self._trained[name].detach(), weight)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return by name the weights used for prediction."""
        final = self._average or {name: p.detach() for name, p in self._trained.items()}
        if not self._start:
            return dict(final)
        alpha = self._hparams["wise_alpha"]
        return {
            name: torch.lerp(self._start[name], tensor, alpha) for name, tensor in final.items()
        }

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the copies together with the module, for example to another device."""
        for copies in (self._start, self._average):
            copies.update({name: fn(tensor) for name, tensor in copies.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the trained weights, which are not in the module's state dict."""
        trained = {name: tensor.detach() for name, tensor in self._trained.items()}
        return {"trained": trained, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the trained weights and the average from a `state_dict`."""
        for name, tensor in state["trained"].items():
            self._trained[name].copy_(tensor)
        for name, tensor in state["average"].items():
            self._average[name].copy_(tensor)


class Mean:
    """A running mean of named weights, equal to ``weights`` before the first `add`."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.weights = dict(weights or {})
        self.count = count

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        if not self.count:
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            for name, tensor in self.weights.items():
                tensor.lerp_(weights[name].detach(), 1 / (self.count + 1))
        self.count += 1


class Segment(NamedTuple):
    """The mean of the weights between two checkpoints, and the validation loss at its end."""

    number: int  # of earlier segments
    loss: float
    weights: dict[str, Tensor]


class LossValley:
    """The choice of segments for the final mean, updated at each checkpoint.

    As in the released code, a segment can join more than once: while the queue is shorter than
    ``tolerance``, the same segment joins at each checkpoint. Segments that join when the valley
    begins join again as the oldest of the queue, and the segment with the smallest loss counts only
    if it joins itself.

    Args:
        converge: the valley begins if the first of this many segments has the smallest loss.
        tolerance: the valley ends if this many segments all exceed the threshold.
        ratio: the threshold is (1 + ratio) times the mean loss of the ``converge`` segments.
    """

    def __init__(self, converge: int, tolerance: int, ratio: float) -> None:
        self.converge = converge
        self.tolerance = tolerance
        self.ratio = ratio
        self.threshold = math.inf
        self.is_dead = False
        self._count = 0
        self._latest: deque[Segment] = deque(maxlen=max(converge, tolerance))
        self._lowest: int | None = None  # number of the segment where the valley begins
        self._joined = Mean()

    def add(self, loss: float, weights: dict[str, Tensor]) -> None:
        """Add the next segment. Its weights must not be changed afterwards."""
        if self.is_dead:
            return
        self._latest.append(Segment(self._count, loss, weights))
        self._count += 1

        if self._lowest is None:
            self._try_to_begin()
        elif self._get_queue()[0].number >= self._lowest:
            self._advance()

    def choose_weights(self) -> dict[str, Tensor]:
        """Return by name the weights that SWAD would choose if training ended now.

        Before the valley begins, these are the weights of the last segment.
        """
        if self._lowest is None:
            return self._latest[-1].weights

        final = Mean(self._joined.weights, self._joined.count)
        queue = [] if self.is_dead else self._get_queue()[1:]
        if final.count and queue:
            final = copy.deepcopy(final)  # `Mean.add` changes tensors in place
        while queue and self._min_loss(queue) <= self.threshold:
            final.add(queue.pop(0).weights)
        return final.weights

    def state(self) -> dict[str, Any]:
        """Return the state for `load`, in plain types and tensors."""
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
        """Restore a `state`."""
        self.threshold = state["threshold"]
        self.is_dead = state["is_dead"]
        self._count = state["count"]
        self._latest.clear()
        self._latest.extend(Segment(*fields) for fields in state["latest"])
        self._lowest = state["lowest"]
        self._joined = Mean(state["joined"], state["joined_count"])

    def _get_queue(self) -> list[Segment]:
        """Return the last ``tolerance`` segments, fewer at the beginning."""
        return [*self._latest][-self.tolerance :]

    @staticmethod
    def _min_loss(segments: Sequence[Segment]) -> float:
        return min(segment.loss for segment in segments)

    def _try_to_begin(self) -> None:
        """Begin the valley if the first of the last ``converge`` segments has the smallest loss."""
        window = [*self._latest][-self.converge :]
        losses = [segment.loss for segment in window]
        if len(window) < self.converge or np.argmin(losses) != 0:
            return

        self._lowest = window[0].number
        self.threshold = float(np.mean(losses)) * (1 + self.ratio)
        self._joined = Mean(window[0].weights)
        for segment in self._get_initial_segments(window):
            self._joined.add(segment.weights)

    def _get_initial_segments(self, window: Sequence[Segment]) -> list[Segment]:
        """Return the segments that join when the valley begins.

        With ``tolerance`` > ``converge``: the last ``tolerance`` segments without the last
        ``converge``, but with one more segment; then without the segments up to the last loss above
        the threshold, and without the first of the rest.
        """
        surplus = self.tolerance - self.converge
        if surplus <= 0:
            return [*window[1 : 1 - surplus]]

        earlier = self._get_queue()[: surplus + 1]
        indices_above = [i for i, s in enumerate(earlier) if s.loss > self.threshold]
        start = indices_above[-1] + 1 if indices_above else 0
        return earlier[start + 1 :]

    def _advance(self) -> None:
        """Let the oldest segment join, or end the valley if all losses exceed the threshold."""
        tolerated = self._get_queue()
        if self._min_loss(tolerated) > self.threshold:
            self.is_dead = True
            self._latest.clear()
        else:
            self._joined.add(tolerated[0].weights)


class SWAD(PredictionWeights):
    """The weights chosen by SWAD, interpolated with the original weights (WiSE-FT).

    Segments are kept in CPU memory. The trained weights predict before the first checkpoint and in
    LP-FT's first phase.

    Args:
        trained: name -> parameter, which the optimizer updates in place.
        hparams: ``swad_converge``, ``swad_tolerance``, ``swad_ratio``, ``lp_steps`` and
            ``wise_alpha``.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], hparams: Mapping[str, Any]) -> None:
        super().__init__(trained, {**hparams, "average": "none"})
        self._lp_steps = hparams.get("lp_steps", 0)
        self._segment = Mean()
        self._valley = LossValley(
            converge=hparams["swad_converge"],
            tolerance=hparams["swad_tolerance"],
            ratio=hparams["swad_ratio"],
        )

    def add(self, step: int) -> None:
        """Add the weights after ``step`` steps to the segment."""
        if step > self._lp_steps and not self._valley.is_dead:
            self._segment.add(self._trained)

    def at_checkpoint(self, validation_loss: float) -> None:
        """End the segment, with the loss of the trained weights on the training out-splits.

        A job that resumes at a checkpoint calls this twice; the second call finds an empty segment.
        """
        if not self._segment.count:
            return

        weights = {name: tensor.cpu() for name, tensor in self._segment.weights.items()}
        self._segment = Mean()
        self._valley.add(validation_loss, weights)
        self._average = self._move_to_device(self._valley.choose_weights())
        self.version += 1

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the copies together with the module, except for ended segments."""
        super().apply(fn)
        segment = self._segment.weights
        self._segment.weights = {name: fn(tensor) for name, tensor in segment.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the trained weights, the segments and the final mean."""
        segment = {"weights": self._segment.weights, "count": self._segment.count}
        return {**super().state_dict(), "segment": segment, "valley": self._valley.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({**state, "average": {}})
        self._average = self._move_to_device(state["average"])
        segment = state["segment"]
        self._segment = Mean(self._move_to_device(segment["weights"]), segment["count"])

        valley = state["valley"]
        joined = {name: tensor.cpu() for name, tensor in valley["joined"].items()}
        self._valley.load({**valley, "joined": joined})
        self.version += 1

    def _move_to_device(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights, each on the device of the trained parameter with its name."""
        return {name: tensor.to(self._trained[name].device) for name, tensor in weights.items()}


def build(
    trained: Mapping[str, nn.Parameter], hparams: Mapping[str, Any]
) -> PredictionWeights | None:
    """Return the average or interpolation of these hparams; None if the trained weights predict."""
    if hparams["average"] == "swad":
        return SWAD(trained, hparams)
    if hparams["average"] != "none" or hparams["wise_alpha"] < 1:
        return PredictionWeights(trained, hparams)
    return None
