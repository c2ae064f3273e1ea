"""Weights between the original CLIP and a fine-tuned run: WiSE-FT.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903: (1 - alpha) times the
zero-shot weights plus alpha times the fine-tuned ones, encoder and head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.method import backbone, objective, prompts
from domainbed_carft.runs.saved import Run, original_clip


class Interpolation:
    """A run's algorithm, to be set to any point between the original and itself.

    Three copies of the encoder are held on the device, however many alphas there are: the original,
    the fine-tuned, and the one that predicts. ``original`` is the file of the CLIP that the run
    started from, needed unless that is a published one. Raises CarftError for CLIPZeroShot, and
    where that CLIP is missing or another one.
    """

    def __init__(self, run: Run, device: torch.device, original: str | None = None) -> None:
        if not run.algorithm.trains_head:
            raise CarftError(
                f"{run.path} is a run of {run.args['algorithm']}, which trains nothing: there is "
                "nothing between its weights and the original's"
            )
        self.algorithm = run.algorithm.to(device)
        start = original_weights(run, original)
        state = self.algorithm.state_dict()  # of the very tensors that predict
        # What training has not moved stays as it is, to the bit.
        self._moved = {
            name: (state[name], state[name].clone(), weights.to(device))
            for name, weights in start.items()
            if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
        }

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Have the algorithm predict with alpha's weights; those of 0 and 1 are exact copies."""
        for current, tuned, original in self._moved.values():
            if alpha in (0.0, 1.0):
                current.copy_(tuned if alpha else original)
            else:
                # No fused operation: the same bits on every device.
                current.copy_(original * (1 - alpha)).add_(tuned * alpha)

    def state(self) -> dict[str, Tensor]:
        """A copy of the state dict as it is set now, on the CPU."""
        state = self.algorithm.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}


def original_weights(run: Run, file: str | None = None) -> dict[str, Tensor]:
    """The encoder of the CLIP that the run started from, and W_cls of its words as the head.

    By their names in the state dict, on the CPU: what `CLIPZeroShot` predicts with. Raises
    CarftError where the CLIP, ``file`` if given, is missing or another one.
    """
    clip_model = original_clip(run, file)
    words = prompts.prompts(run.contexts, run.classes)
    weights = objective.zero_shot_weights(backbone.text_features(clip_model, words))
    encoder = clip_model.model.visual.state_dict()
    original = {f"encoder.{key}": value for key, value in encoder.items()}
    original["head.weight"] = weights.classes
    if not _fits(run, original, weights.contexts):
        raise CarftError(
            f"{clip_model.path} is another CLIP than the one that {run.path} started from: it has "
            "other shapes, or gives other context weights. Name the right one with --original FILE"
        )
    return original


def _fits(run: Run, original: Mapping[str, Tensor], contexts: Tensor) -> bool:
    """Whether the context weights, which no training changes, are those of this CLIP."""
    state = {name: value.cpu() for name, value in run.algorithm.state_dict().items()}
    trained = {name for name in state if name.startswith(("encoder.", "head."))}
    if trained != set(original) or any(state[n].shape != v.shape for n, v in original.items()):
        return False
    # Text features of a GPU differ from a processor's in their last digits.
    recorded = state["context_weights"]
    return recorded.shape == contexts.shape and torch.allclose(recorded, contexts, atol=1e-3)
