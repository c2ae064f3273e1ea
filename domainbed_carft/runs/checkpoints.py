"""From the ``model.pkl`` of a run to an algorithm that predicts; the CLIP is not needed.

A pickle can be a program; `files.load_weights` runs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from domainbed.algorithms import Algorithm

from domainbed_carft import files
from domainbed_carft.errors import CarftError, brief
from domainbed_carft.method import algorithms, backbone, hparams, objective

ENCODER = "encoder."

# What DomainBed's train saves beside the arguments, and what of it is needed.
PARTS = (
    *("model_input_shape", "model_num_classes", "model_num_domains"),
    *("model_hparams", "model_dict"),
)


def _is_of_ours(hparams: Any) -> bool:
    return (
        isinstance(hparams, dict)
        and isinstance(hparams.get("clip_backbone"), str)
        and isinstance(hparams.get("context_scale"), (str, int, float))
        and isinstance(hparams.get("protocol", ""), str)
    )


# What is gone by, of what may stand in such a file.
_FITS: dict[str, Callable[[Any], bool]] = {
    "model_input_shape": lambda shape: (
        isinstance(shape, (tuple, list)) and len(shape) == 3 and all(type(n) is int for n in shape)
    ),
    "model_hparams": _is_of_ours,
    "best_step": lambda step: type(step) is int,
    "wise_ft_step": lambda step: step is None or type(step) is int,
    "wise_ft_alpha": lambda alpha: isinstance(alpha, (int, float)) and 0 <= alpha <= 1,
}


def load(path: Path | str) -> algorithms.CLIPAlgorithm:
    """The trained algorithm in a ``model.pkl`` that DomainBed's train saved, on the CPU.

    It predicts and does not train on, because neither the original encoder nor the optimizer is in
    the file. Raises CarftError for a file that is not a run of one of our algorithms.
    """
    return restore(read(path), path)


def read(path: Path | str) -> dict[str, Any]:
    """What DomainBed's train saved: ``args`` and PARTS, tensors on the CPU.

    Raises CarftError for a file that is missing, cut, no file of torch's, that holds anything but
    plain data and tensors, or that is no run of one of our algorithms.
    """
    saved: dict[str, Any] = files.load_weights(path)
    _require_run(saved, path)
    return saved


def _require_run(saved: Any, path: Path | str) -> None:
    args = saved.get("args") if isinstance(saved, dict) else None
    name = args.get("algorithm") if isinstance(args, dict) else None
    if name not in hparams.ALGORITHMS:
        raise CarftError(
            f"{path} holds {name or 'no algorithm'}, which is not a run of "
            f"{', '.join(hparams.ALGORITHMS)}; expected the model.pkl that "
            "domainbed.scripts.train saved for one of these"
        )
    missing = [part for part in PARTS if part not in saved]
    if missing:
        raise CarftError(
            f"{path} has no {', '.join(missing)}; expected the model.pkl that "
            "domainbed.scripts.train saves, which has all of " + ", ".join(PARTS)
        )
    odd = [part for part, fits in _FITS.items() if part in saved and not fits(saved[part])]
    if odd:
        raise CarftError(
            f"{path} has {odd[0]} {str(saved[odd[0]])[:200]}, which no run of ours has; was it "
            "changed after domainbed.scripts.train had saved it?"
        )


def restore(saved: Mapping[str, Any], path: Path | str) -> algorithms.CLIPAlgorithm:
    """The algorithm in what ``read`` returned; ``path`` is where that was, for messages."""
    cls: type[algorithms.CLIPAlgorithm] = getattr(algorithms, saved["args"]["algorithm"])
    algorithm = cls.__new__(cls)  # its __init__ would ask for the CLIP
    Algorithm.__init__(
        algorithm,
        saved["model_input_shape"],
        saved["model_num_classes"],
        saved["model_num_domains"],
        saved["model_hparams"],
    )
    try:
        _put_in(algorithm, saved["model_dict"], saved["model_num_classes"])
    except Exception as error:  # what other tensors make of the encoder: any type
        raise CarftError(
            f"{path} does not hold the weights of a {cls.__name__} ({brief(error)}); was it "
            "changed after domainbed.scripts.train had saved it?"
        ) from error
    return algorithm.eval()


def _put_in(
    algorithm: algorithms.CLIPAlgorithm, state: Mapping[str, Any], num_classes: int
) -> None:
    shapes = {k[len(ENCODER) :]: v.shape for k, v in state.items() if k.startswith(ENCODER)}
    weights = objective.ZeroShotWeights(state["head.weight"], state["context_weights"])
    with torch.random.fork_rng(devices=[]):
        encoder = backbone.empty_image_encoder(shapes)
        expected = (num_classes, encoder.output_dim)
        if weights.classes.shape != expected or weights.contexts.shape[1:] != expected[1:]:
            raise ValueError(f"expected a head.weight of {expected} and context_weights like it")
        algorithm._set_up(encoder, weights, float(state["logit_scale"]))
    if "words" in state:  # not in runs that were saved before it was part of them
        algorithm.register_buffer("words", torch.empty_like(state["words"]))
    algorithm.load_state_dict(state)
    algorithm.restored = True
