"""CLIP models in OpenAI's format or open_clip's: their facts, the model, and encoded prompts."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from domainbed_carft import files
from domainbed_carft.clips import open_clip, openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.machine import devices
from domainbed_carft.progress_bar import progress

TEXT_BATCH = 256  # prompts encoded at once


class Backbone(NamedTuple):
    """A CLIP model in float32 and eval mode on the CPU, and its checkpoint."""

    name: str
    model: Any  # clip.model.CLIP, open_clip.CLIP or open_clip.CustomTextCLIP
    digest: str  # SHA-256 of the checkpoint
    path: Path
    preprocessing: Preprocessing  # of images for the image encoder
    dim: int  # D of the joint embedding
    tokenize: Callable[[Sequence[str]], Tensor]  # (N, L); CarftError for a prompt that is too long
    architecture: str = ""  # open_clip's configuration as JSON; "" for OpenAI's models
    revision: str = ""  # of the hub's repository
    tokenizer: Any = None  # open_clip's tokenizer

    @property
    def logit_scale(self) -> float:
        """exp of CLIP's learnt log temperature: 100 for OpenAI's models."""
        return float(self.model.logit_scale.detach().exp())


class ClipFacts(NamedTuple):
    """The checkpoint of a CLIP name, and the images that it expects."""

    digest: str  # SHA-256 of the weights
    revision: str  # of the hub's repository, "" for other checkpoints
    preprocessing: Preprocessing


def find_clip_facts(name: str, preprocessing: Preprocessing) -> ClipFacts:
    """Return the facts of a published or open_clip checkpoint without building the model.

    ``preprocessing`` is the result of `find_preprocessing`. A user's file (`is_user_file`) would
    have to be loaded. Raises CarftError for an unknown name, a failed download, and a wrong
    SHA-256.
    """
    if name.startswith(open_clip.PREFIX):
        path = open_clip.find_weights(name)
        revision = open_clip.get_revision(path)
        return ClipFacts(weights.cached_sha256(path), revision, preprocessing)

    _, digest = openai.verify_file(name)
    return ClipFacts(digest, "", preprocessing)


def load(name: str) -> Backbone:
    """Load ``"tiny"``, one of OpenAI's names, a file in OpenAI's format, or ``open_clip:...``.

    In float32 on the CPU, exactly as in the file: ``clip.load`` returns half precision on a GPU,
    which becomes NaN in training, and rounds float32 files to half precision. Raises CarftError for
    an unknown name, a failed download, a wrong SHA-256, and a file that is not a CLIP checkpoint or
    could run code.
    """
    loader = open_clip if name.startswith(open_clip.PREFIX) else openai
    backbone = Backbone(name, **loader.load(name))
    for key, value in backbone.model.state_dict().items():
        # A finite sum means finite values, and needs no copy; a sum of huge values can overflow.
        if not value.sum().isfinite() and not value.isfinite().all():
            raise CarftError(
                f"{backbone.path} has NaN or infinity in {key!r}; download the weights again"
            )
    return backbone


def find_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of the CLIP model ``name``; any exception if it cannot be read."""
    if name.startswith(open_clip.PREFIX):
        return open_clip.read_preprocessing(open_clip.load_configuration(name))

    if is_user_file(name):
        return load(name).preprocessing
    resolutions = openai.RESOLUTIONS
    return Preprocessing(resolutions.get(name, openai.DEFAULT_RESOLUTION))


def is_user_file(name: str) -> bool:
    """Return True for a user's file in OpenAI's format, whose facts are found by loading it."""
    return name not in openai.PUBLISHED and not name.startswith(open_clip.PREFIX)


def encode_prompts(backbone: Backbone, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return text features of M x K prompts: (M, K, D), float32, not normalised, on the CPU.

    They are encoded in batches, on a GPU if there is one, and cached for later jobs.
    """
    flat = [prompt for row in prompts for prompt in row]
    tokens = backbone.tokenize(flat)
    key = hashlib.sha256("\0".join([backbone.digest, str(len(prompts)), *flat]).encode())
    if backbone.architecture:  # features also depend on activation and tokenizer
        key.update(backbone.architecture.encode() + tokens.numpy().tobytes())

    path = files.cache_folder() / "text" / f"{key.hexdigest()}.pt"
    features = _load_cached(path)
    if features is None:
        features = _encode(backbone.model, tokens)
        with suppress(CarftError):  # a full cache must not end the job
            files.save(path, lambda temporary: torch.save(features, temporary))
    return features.view(len(prompts), len(prompts[0]), -1)


def build_image_encoder(
    shapes: Mapping[str, Sequence[int]], architecture: str = ""
) -> tuple[nn.Module, Preprocessing, int]:
    """Build an untrained image encoder whose state dict has these shapes (keys as in ``visual.*``).

    Args:
        shapes: name -> shape of each tensor.
        architecture: open_clip's configuration as JSON, "" for OpenAI's models.

    Returns:
        The encoder, its preprocessing, and D of its features (N, D).

    Raises:
        Exception: of any type, if the shapes do not fit.
    """
    build: Callable[[], Any] = functools.partial(openai.build_image_encoder, shapes)
    if architecture:
        config = open_clip.check_configuration(json.loads(architecture), "the architecture")
        build = functools.partial(open_clip.build_image_encoder, config)
    encoder = build()
    built_shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    differing = sorted(built_shapes.items() ^ shapes.items())
    if differing:
        raise ValueError(f"{differing[0][0]} does not fit the image encoder")

    if architecture:
        return encoder, open_clip.read_preprocessing(config), config["model_cfg"]["embed_dim"]
    return encoder, Preprocessing(int(encoder.input_resolution)), int(encoder.output_dim)


def _encode(model: Any, tokens: Tensor) -> Tensor:
    """Return text features (N, D) on the CPU, computed on the GPU if there is one."""
    device = devices.default_device()
    model.to(device)
    try:
        with torch.inference_mode():
            batches = tokens.split(TEXT_BATCH)
            bar = progress(batches, description="encoding prompts", unit="batch", delay=5)
            features = [model.encode_text(batch.to(device)).float().cpu() for batch in bar]
    finally:
        model.to("cpu")
    return torch.cat(features).clone()


def _load_cached(path: Path) -> Tensor | None:
    """Return cached features, None for a missing or damaged file, which only costs time."""
    with suppress(CarftError):
        return weights.load_weights(path)
    return None
