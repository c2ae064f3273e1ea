"""The weights between the original CLIP and a run, in one copy of the model.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903: (1 - alpha) times the
zero-shot weights plus alpha times the fine-tuned ones, encoder and head. With linear layers the
share grows from alpha in the first block to 1 in the last; see `layer_shares`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.algorithms import TEXT_TRAINING
from domainbed_carft.method import objective, prompts
from domainbed_carft.runs import layer_shares
from domainbed_carft.runs.saved import TrainedRun, original_clip

# Algorithms whose runs are no end of a line from the original CLIP.
UNFIT_ALGORITHMS = {
    "CLIPZeroShot": "which trains nothing; expected one that does",
    **dict.fromkeys(
        TEXT_TRAINING, "whose head is made by its text encoder; set wise_alpha before training"
    ),
}


class _MovedTensor(NamedTuple):
    """A tensor that training changed: the one that predicts, and copies of both ends.

    ``depth``: as `layer_shares.depths` has it.
    """

    current: Tensor
    tuned: Tensor
    original: Tensor
    depth: float


class Interpolation:
    """A run's algorithm, which `set` moves to any point between the original CLIP and the run.

    ``original``: the CLIP that the run started from, as in `saved.original_clip`; the algorithm is
    moved to ``device``. ``layers``: one of `layer_shares.LAYERS`. Raises CarftError for
    UNFIT_ALGORITHMS and a random head, for linear layers of weights that are already between a
    CLIP and a run, and as `saved.original_clip` and `layer_shares.depths`.
    """

    def __init__(
        self,
        run: TrainedRun,
        device: torch.device,
        original: str | None = None,
        layers: str = layer_shares.UNIFORM,
    ) -> None:
        _require_fit(run, layers)
        encoder_depths = layer_shares.depths(run.algorithm.encoder, layers)
        weights_of_original = original_weights(run, original)
        self.algorithm = run.algorithm.to(device)

        # What training has not moved stays as it is, to the bit.
        state = self.algorithm.state_dict()  # the very tensors that predict
        self._moved = [
            _MovedTensor(
                current=state[name],
                tuned=state[name].clone(),
                original=weights.to(device),
                depth=encoder_depths.get(name.removeprefix("encoder."), 0.0),  # of the head 0
            )
            for name, weights in weights_of_original.items()
            if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
        ]

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Make the algorithm predict with alpha's weights; those of 0 and 1 are exact copies."""
        for tensor in self._moved:
            share = alpha + (1 - alpha) * tensor.depth
            if share == 0.0:
                tensor.current.copy_(tensor.original)
            elif share == 1.0:
                tensor.current.copy_(tensor.tuned)
            else:
                # No fused operation: the same bits on every device.
                tensor.current.copy_(tensor.original * (1 - share)).add_(tensor.tuned * share)

    def state(self) -> dict[str, Tensor]:
        """A copy of the algorithm's state dict as it is set now, on the CPU."""
        state = self.algorithm.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _require_fit(run: TrainedRun, layers: str) -> None:
    algorithm = run.args["algorithm"]
    reason = UNFIT_ALGORITHMS.get(algorithm)
    if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
        reason = "which started from a random head; expected one with head_init 'zero-shot'"
    if reason:
        raise CarftError(f"{run.path} is a run of {algorithm}, {reason}")

    if run.layers == layer_shares.LINEAR:
        raise CarftError(
            f"{run.path} was saved by carft wise-ft --layers linear; expected the run that it was "
            "made from"
        )
    if layers == layer_shares.LINEAR and reached_alpha(run) != 1.0:
        raise CarftError(
            f"--layers linear: {run.path} is already between the original CLIP and a run (alpha "
            f"{reached_alpha(run):g}); expected the run itself, or --layers uniform"
        )


def original_weights(run: TrainedRun, original: str | None) -> dict[str, Tensor]:
    """The zero-shot CLIP's encoder and head, under the names of the run's state dict.

    The head has the scale of the run's. ``original`` and what is raised: as `saved.original_clip`.
    """
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
