"""The weights between the original CLIP and a run, in one copy of the model.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903: (1 - alpha) times the
zero-shot weights plus alpha times the fine-tuned ones, encoder and head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method import objective, prompts
from domainbed_carft.runs.saved import TrainedRun, original_clip

# Algorithms whose runs are no end of a line from the original CLIP.
UNFIT_ALGORITHMS = {
    "CLIPZeroShot": "which trains nothing; expected one that does",
    "FLYP": "whose head is made by its text encoder; set wise_alpha before training",
}


class _MovedTensor(NamedTuple):
    """A tensor that training changed: the one that predicts, and copies of both ends."""

    current: Tensor
    tuned: Tensor
    original: Tensor


class Interpolation:
    """A run's algorithm, which `set` moves to any point between the original CLIP and the run.

    ``original``: the CLIP that the run started from, as in `saved.original_clip`; the algorithm is
    moved to ``device``. Raises CarftError for CLIPZeroShot, FLYP and a random head, and as
    `saved.original_clip`.
    """

    def __init__(self, run: TrainedRun, device: torch.device, original: str | None = None) -> None:
        _require_fit(run)
        original_weights = _original_weights(run, original)
        self.algorithm = run.algorithm.to(device)

        # What training has not moved stays as it is, to the bit.
        state = self.algorithm.state_dict()  # the very tensors that predict
        self._moved = [
            _MovedTensor(state[name], state[name].clone(), weights.to(device))
            for name, weights in original_weights.items()
            if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
        ]

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Make the algorithm predict with alpha's weights; those of 0 and 1 are exact copies."""
        for tensor in self._moved:
            if alpha == 0.0:
                tensor.current.copy_(tensor.original)
            elif alpha == 1.0:
                tensor.current.copy_(tensor.tuned)
            else:
                # No fused operation: the same bits on every device.
                tensor.current.copy_(tensor.original * (1 - alpha)).add_(tensor.tuned * alpha)

    def state(self) -> dict[str, Tensor]:
        """A copy of the algorithm's state dict as it is set now, on the CPU."""
        state = self.algorithm.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _require_fit(run: TrainedRun) -> None:
    algorithm = run.args["algorithm"]
    reason = UNFIT_ALGORITHMS.get(algorithm)
    if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
        reason = "which started from a random head; expected one with head_init 'zero-shot'"
    if reason:
        raise CarftError(f"{run.path} is a run of {algorithm}, {reason}")


def _original_weights(run: TrainedRun, original: str | None) -> dict[str, Tensor]:
    """The zero-shot CLIP's encoder and head, under the names of the run's state dict."""
    clip = original_clip(run, original)
    text_features = backbone.text_features(clip, prompts.prompts(run.contexts, run.classes))
    head_scale = float(run.algorithm.logit_scale / run.algorithm.head_factor)

    weights = {f"encoder.{name}": w for name, w in clip.model.visual.state_dict().items()}
    weights["head.weight"] = head_scale * objective.zero_shot_weights(text_features).classes
    weights["head.bias"] = torch.zeros(len(run.classes))
    return weights


def reached_alpha(run: TrainedRun) -> float:
    """How far the run's own weights are from the original CLIP to what was fine-tuned.

    A soup is what was fine-tuned, whatever its runs were: its weights are at 1.
    """
    if run.alpha is not None:
        return run.alpha
    return 1.0 if run.soup is not None else float(run.hparams["wise_alpha"])
