"""From the ``model.pkl`` of a run to an algorithm that predicts; the CLIP is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from domainbed.algorithms import Algorithm

from domainbed_carft import algorithms, backbone, hparams, objective
from domainbed_carft.errors import CarftError

ENCODER = "encoder."


def load(path: Path | str) -> algorithms.CLIPAlgorithm:
    """The trained algorithm in a ``model.pkl`` that DomainBed's train saved, on the CPU.

    It predicts and does not train on, because neither the original encoder nor the optimizer is in
    the file. Raises CarftError for a file that is not a run of one of our algorithms.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    name = saved.get("args", {}).get("algorithm") if isinstance(saved, dict) else None
    if name not in hparams.ALGORITHMS:
        raise CarftError(
            f"{path} holds {name or 'no algorithm'}, which is not a run of "
            f"{', '.join(hparams.ALGORITHMS)}; expected the model.pkl that "
            "domainbed.scripts.train saved for one of these"
        )
    return _restore(getattr(algorithms, name), saved)


def _restore(
    cls: type[algorithms.CLIPAlgorithm], saved: dict[str, Any]
) -> algorithms.CLIPAlgorithm:
    state = saved["model_dict"]
    shapes = {k[len(ENCODER) :]: v.shape for k, v in state.items() if k.startswith(ENCODER)}
    algorithm = cls.__new__(cls)  # its __init__ would ask for the CLIP
    Algorithm.__init__(
        algorithm,
        saved["model_input_shape"],
        saved["model_num_classes"],
        saved["model_num_domains"],
        saved["model_hparams"],
    )
    weights = objective.ZeroShotWeights(state["head.weight"], state["context_weights"])
    with torch.random.fork_rng(devices=[]):
        encoder = backbone.empty_image_encoder(shapes)
        algorithm._set_up(encoder, weights, float(state["logit_scale"]))
    algorithm.load_state_dict(state)
    algorithm.restored = True
    return algorithm.eval()
