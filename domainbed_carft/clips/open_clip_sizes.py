"""Sizes in open_clip's configurations: whether a CLIP has them, and whether its weights do.

A configuration is a few numbers that somebody wrote. Memory is only taken for sizes that the header
of the weights, which is as large as its file, confirms tensor by tensor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.errors import imported
from domainbed_carft.files import weights

Shape = tuple[int, ...]

# None of open_clip's models comes near these.
_LARGEST = 16384  # any other number of an encoder
_DIMENSIONS = 8192  # of the joint embedding
_LAYERS = 512
_PIXELS = 1024  # a side
_PATCHES = 2**14
_POSITIONS = 2**24  # numbers in the image encoder's positional embedding
_CONTEXT_LENGTH = 2048
_VOCABULARY = 2**22
_TENSORS = 10_000
# open_clip interpolates positional embeddings to another resolution or context length.
_INTERPOLATED = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
_MOST_INTERPOLATED = 16  # times as many numbers as in the file


def size_problem(model_config: Mapping[str, Any]) -> str:
    """What is wrong with the numbers in a ``model_cfg``, for a person; "" if nothing is.

    ``embed_dim`` is a whole number, ``vision_cfg`` and ``text_cfg`` are mappings.
    """
    return (
        _limit_problem(model_config)
        or _section_problem(model_config)
        or _patch_problem(model_config["vision_cfg"])
    )


def _limit_problem(model_config: Mapping[str, Any]) -> str:
    vision = model_config["vision_cfg"]
    text = model_config["text_cfg"]
    image_size = vision.get("image_size", 224)
    sides = image_size if isinstance(image_size, list) else [image_size]
    layers = vision.get("layers", 12)
    stages = layers if isinstance(layers, list) else [layers]

    limits = [
        ("embed_dim", [model_config["embed_dim"]], _DIMENSIONS),
        ("vision_cfg.image_size", sides, _PIXELS),
        ("vision_cfg.layers", stages, _LAYERS),
        ("vision_cfg.width", [vision.get("width", 768)], _LARGEST),
        ("vision_cfg.head_width", [vision.get("head_width", 64)], _LARGEST),
        ("vision_cfg.patch_size", [_patch_size(vision)], _LARGEST),
        ("text_cfg.layers", [text.get("layers", 12)], _LAYERS),
        ("text_cfg.width", [text.get("width", 512)], _LARGEST),
        ("text_cfg.heads", [text.get("heads", 8)], _LARGEST),
        ("text_cfg.context_length", [text.get("context_length", 77)], _CONTEXT_LENGTH),
        ("text_cfg.vocab_size", [text.get("vocab_size", 49408)], _VOCABULARY),
    ]

    for name, numbers, largest in limits:
        if not numbers or not all(type(n) is int and 0 < n <= largest for n in numbers):
            value = numbers if len(numbers) != 1 else numbers[0]
            return f"has the {name} {_brief(value)}; expected whole numbers from 1 to {largest:,}"
    return ""


def _section_problem(model_config: Mapping[str, Any]) -> str:
    """What is wrong with any other number, of which none is larger than the largest known ones."""
    for section, limit in (("vision_cfg", _LARGEST), ("text_cfg", _VOCABULARY)):
        for name, value in model_config[section].items():
            if isinstance(value, (int, float)) and not abs(value) <= limit:
                return f"has the {section}.{name} {_brief(value)}; expected at most {limit:,}"
    return ""


def _patch_problem(vision: Mapping[str, Any]) -> str:
    image_size = vision.get("image_size", 224)
    sides = image_size if isinstance(image_size, list) else [image_size]
    patch_size = _patch_size(vision)
    patches = (sides[0] // patch_size) * (sides[-1] // patch_size)
    positions = patches * vision.get("width", 768)
    if _has_positions(vision) and (patches > _PATCHES or positions > _POSITIONS):
        return f"cuts a picture into {patches:,} patches; no CLIP has so many of such a width"
    return ""


def require_fit(
    model_config: Mapping[str, Any], shapes: Mapping[str, Shape], build: Callable[[], Any]
) -> None:
    """Raise ValueError unless a model of this `model_cfg` can hold weights of these ``shapes``.

    ``build`` makes the model; it is called on torch's meta device, which takes no memory for
    tensors. Raises an exception of any type where no such model can be made.
    """
    if len(shapes) > _TENSORS:
        raise ValueError(f"the weights have {len(shapes):,} tensors, expected at most {_TENSORS:,}")
    layers = _layers(model_config)
    if layers > len(shapes):
        raise ValueError(
            f"the configuration has {layers} layers, the weights only {len(shapes)} tensors"
        )

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
        state = _as_open_clip_reads(model, shapes)
    for name, tensor in model.state_dict().items():
        _require_same_shape(name, tuple(tensor.shape), state)


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """The shape of each tensor in a file of weights, under the names that open_clip reads.

    Raises CarftError for a file that is damaged or may be code.
    """
    if path.suffix == ".safetensors":
        return weights.safetensors_shapes(path)
    content = weights.load_weights(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {
        str(name).removeprefix("module."): tuple(value.shape)
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    }


def _require_same_shape(name: str, expected: Shape, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless open_clip can load the tensor ``name`` of the weights."""
    size = math.prod(expected)
    if name not in state:
        if size > 1:  # open_clip fills in a missing bias of the logits
            raise ValueError(f"the weights have no {name}, which the configuration has")
        return

    shape = tuple(state[name].shape)
    is_interpolated = (
        name in _INTERPOLATED
        and shape[1:] == expected[1:]
        and size <= _MOST_INTERPOLATED * math.prod(shape)
    )
    is_scalar = size == math.prod(shape) == 1
    if not (shape == expected or is_interpolated or is_scalar):
        raise ValueError(
            f"{name} has the shape {list(shape)} in the weights, {list(expected)} in the "
            "configuration"
        )


def _as_open_clip_reads(model: Any, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Tensors without memory, under the names that open_clip gives them when it loads weights."""
    factory = imported("open_clip.factory", "'open_clip_torch>=3,<4'")

    state: dict[str, Tensor] = {name: torch.empty(shape) for name, shape in shapes.items()}
    state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    return state


def _has_positions(vision: Mapping[str, Any]) -> bool:
    """Whether the image encoder is open_clip's own transformer, not a ResNet or one of timm."""
    return not vision.get("timm_model_name") and not isinstance(vision.get("layers", 12), Sequence)


def _layers(model_config: Mapping[str, Any]) -> int:
    """The layers of both encoders; those of an image encoder of timm's are not in the numbers."""
    vision = model_config["vision_cfg"]
    count: int = model_config["text_cfg"].get("layers", 12)
    if not vision.get("timm_model_name"):
        stages = vision.get("layers", 12)
        count += sum(stages) if isinstance(stages, list) else stages
    return count


def _patch_size(vision: Mapping[str, Any]) -> Any:
    patch_size = vision.get("patch_size", 16)
    return 16 if patch_size is None else patch_size  # None: a ResNet, which has no patches


def _brief(value: Any) -> str:
    return repr(value)[:80]
