"""CLIP models in OpenAI's format, published or a user's file: located, verified, built; tokens."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError, TransientError, brief, get_module
from domainbed_carft.files import weights
from domainbed_carft.images.preprocessing import Preprocessing

# File name and SHA-256 of OpenAI's published weights (openai/CLIP, clip/clip.py).
OPENAI_WEIGHTS = {
    "RN50": ("RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    "RN101": ("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    "RN50x4": ("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    "RN50x16": ("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    "RN50x64": ("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    "ViT-B/32": ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": (
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
}

PUBLISHED = ("tiny", *OPENAI_WEIGHTS)
TINY_SHA256 = "2da2085a2fb7b15be7f92d98a09ecfe573528b7e1828dc2d06357175073341fe"

DEFAULT_RESOLUTION = 224  # side in pixels
RESOLUTIONS = {
    "tiny": 48,
    "RN50x4": 288,
    "RN50x16": 384,
    "RN50x64": 448,
    "ViT-L/14@336px": 336,
}
HEAD_WIDTH = 64  # of attention heads in all of OpenAI's models
RESNET_STRIDE = 32  # side in pixels of one position of the last stage
# A tensor whose last dimension is the width of a tower, for each kind of tower.
_WIDTH_TENSORS = (
    "visual.class_embedding",
    "visual.attnpool.c_proj.weight",
    "ln_final.weight",
)


def load(name: str) -> dict[str, Any]:
    """Return the fields of `backbone.Backbone` for ``name``, in float32 and eval mode on the CPU.

    Raises CarftError, with the path, as `verify_file`, for a file that is not a CLIP checkpoint,
    and for TorchScript programs other than OpenAI's.
    """
    path, digest = verify_file(name)
    state = _load_state(path, digest)
    try:
        model = _build(state).eval().requires_grad_(False)
    except Exception as error:  # build_model raises any type for other content
        raise CarftError(
            f"{path} is not a CLIP checkpoint in OpenAI's format ({brief(error)}); expected only "
            "the state dict of OpenAI's clip.model.CLIP, with keys such as visual.conv1.weight"
        ) from error

    if all(digest != find_published(published_name)[1] for published_name in PUBLISHED):
        print(
            f"CLIP weights: {path} is not an OpenAI checkpoint; assuming QuickGELU and 64-wide "
            "attention heads. For open_clip's checkpoints, use open_clip:NAME/TAG"
        )
    return {
        "model": model,
        "digest": digest,
        "path": path,
        "preprocessing": Preprocessing(int(model.visual.input_resolution)),
        "dim": model.text_projection.shape[1],
        "tokenize": functools.partial(tokenize, model),
    }


def verify_file(name: str) -> tuple[Path, str]:
    """Return the file for ``name`` and its SHA-256.

    Raises CarftError as `locate`, and for a wrong SHA-256.
    """
    path, expected = locate(name)
    digest = weights.cached_sha256(path)
    if expected and digest != expected:
        raise CarftError(
            f"{path} has the SHA-256 {digest}, expected {expected} for {name!r}. Delete the file, "
            "or to use it, give its path as clip_backbone"
        )
    return path, digest


def locate(name: str) -> tuple[Path, str | None]:
    """Return the file for ``name``, and its required SHA-256, None if it is a user's file.

    OpenAI's weights are downloaded if necessary. Raises CarftError if that fails, and for an
    unknown name.
    """
    if name in PUBLISHED:
        path, digest = find_published(name)
        if name in OPENAI_WEIGHTS and not path.is_file():
            _download(name, path)
        return path, digest
    if Path(name).is_file():
        return Path(name), None

    raise CarftError(
        f"clip_backbone is {name!r}, expected an existing file, open_clip:NAME/TAG, or one of: "
        f"{', '.join(PUBLISHED)}"
    )


def find_published(name: str) -> tuple[Path, str]:
    """Return the path and SHA-256 of the weights published as ``name``; the file can be missing."""
    if name == "tiny":
        return Path(str(resources.files("domainbed_carft") / "assets" / "tiny.pt")), TINY_SHA256
    file_name, digest = OPENAI_WEIGHTS[name]
    return Path("~/.cache/clip").expanduser() / file_name, digest


def _load_state(path: Path, digest: str) -> Any:
    # Loading TorchScript runs it, and it can write files: only OpenAI's archives are loaded.
    if all(digest != published for _, published in OPENAI_WEIGHTS.values()):
        return weights.load_weights(path)

    with warnings.catch_warnings():  # torch 2.13 deprecates the format OpenAI publishes
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path), map_location="cpu").state_dict()


def _build(state: Any) -> Any:
    """Return the CLIP model with this state dict, in float32; any exception for other content."""
    build_model = import_package().model.build_model
    for key in _WIDTH_TENSORS:
        width = state[key].shape[-1] if key in state else 0
        if width % HEAD_WIDTH:
            raise ValueError(
                f"{key!r} is {width} wide, which is not a multiple of {HEAD_WIDTH}; use "
                "open_clip:NAME/TAG or open_clip:local-dir:FOLDER for open_clip's weights"
            )

    state = {k: v.float() if torch.is_floating_point(v) else v for k, v in state.items()}
    with torch.device("meta"), warnings.catch_warnings():  # checks the shapes without memory
        warnings.simplefilter("ignore")
        build_model(dict(state))

    model = build_model(dict(state)).float()  # build_model rounds to half precision
    names = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in state.items() if name in names})
    return model


def build_image_encoder(shapes: Mapping[str, Sequence[int]]) -> Any:
    """Build an untrained image encoder of these shapes, following clip/model.py, build_model."""
    if "proj" in shapes:
        return _build_vision_transformer(shapes)
    return _build_resnet(shapes)


def _build_vision_transformer(shapes: Mapping[str, Sequence[int]]) -> Any:
    width, _, _, patch_size = shapes["conv1.weight"]
    grid = round((shapes["positional_embedding"][0] - 1) ** 0.5)
    layers = len({key for key in shapes if key.endswith(".attn.in_proj_weight")})
    return import_package().model.VisionTransformer(
        input_resolution=patch_size * grid,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=width // HEAD_WIDTH,
        output_dim=shapes["proj"][1],
    )


def _build_resnet(shapes: Mapping[str, Sequence[int]]) -> Any:
    stages = [f"layer{number}." for number in range(1, 5)]
    blocks = [{key.split(".")[1] for key in shapes if key.startswith(stage)} for stage in stages]
    width = shapes["layer1.0.conv1.weight"][0]
    grid = round((shapes["attnpool.positional_embedding"][0] - 1) ** 0.5)
    return import_package().model.ModifiedResNet(
        layers=tuple(map(len, blocks)),
        output_dim=shapes["attnpool.c_proj.weight"][0],
        heads=width * 32 // HEAD_WIDTH,  # the last stage is 32 times as wide as the first
        input_resolution=grid * RESNET_STRIDE,
        width=width,
    )


def tokenize(model: Any, prompts: Sequence[str]) -> Tensor:
    """Return the tokens (N, L) of prompts, with L of the longest; CarftError for one too long."""
    try:
        tokens: Tensor = import_package().tokenize(
            list(prompts), context_length=model.context_length
        )
    except RuntimeError as error:
        raise CarftError(
            f"a prompt is longer than the {model.context_length} tokens of this model ({error}); "
            "shorten the context or the class name"
        ) from error

    # The text encoder is causal and read at the end-of-text token, so padding changes nothing.
    last_end = int(tokens.argmax(dim=1).max())
    return tokens[:, : last_end + 1]


def _download(name: str, path: Path) -> None:
    """Download OpenAI's weights to ``path`` with their package, which verifies them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            import_package().load(name, device="cpu", download_root=temporary)
            os.replace(Path(temporary) / path.name, path)
    except (OSError, RuntimeError) as error:
        raise TransientError(
            f"the weights of {name!r} are not at {path}, and downloading them failed ({error}). On "
            f"a machine with internet access run python -c \"import clip; clip.load('{name}')\", "
            f"then copy ~/.cache/clip/{path.name} (SHA-256 {OPENAI_WEIGHTS[name][1]}) to {path}"
        ) from error


def import_package() -> Any:
    """Import OpenAI's clip, without its warning about pkg_resources, which users cannot fix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        return get_module("clip", "clip-anytorch 'setuptools>=77.0.3,<82'")
