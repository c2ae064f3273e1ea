"""Any CLIP, of OpenAI's format or open_clip's: its facts, the model, its prompts encoded once."""

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
from domainbed_carft.text import progress

TEXT_BATCH = 256  # prompts encoded at once


class Backbone(NamedTuple):
    """A CLIP in float32 and eval mode on the CPU, the file it came from, and its SHA-256."""

    name: str
    model: Any  # clip.model.CLIP, open_clip.CLIP or open_clip.CustomTextCLIP
    digest: str
    path: Path
    preprocessing: Preprocessing  # what its image encoder wants
    dim: int  # D of its joint embedding
    tokenize: Callable[[Sequence[str]], Tensor]  # (N, L); CarftError for a prompt too long
    architecture: str = ""  # open_clip's configuration as JSON; shapes tell that of OpenAI's
    revision: str = ""  # of the hub's repository
    tokenizer: Any = None  # open_clip's

    @property
    def logit_scale(self) -> float:
        """exp of CLIP's learnt log temperature: 100 for OpenAI's models."""
        return float(self.model.logit_scale.detach().exp())


class ClipFacts(NamedTuple):
    """Which CLIP a name stands for, and what it wants of images."""

    digest: str  # SHA-256 of the weights
    revision: str  # of the hub's repository, else ""
    preprocessing: Preprocessing


def find_clip_facts(name: str, preprocessing: Preprocessing) -> ClipFacts:
    """The facts of a published CLIP or one of open_clip's, of which nothing is built.

    ``preprocessing`` is what `preprocessing` returned for it. A user's own file (`is_user_file`)
    would have to be loaded. Raises CarftError for an unknown name, a failed download, and a wrong
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

    In float32 on the CPU, exactly as in the file: ``clip.load`` gives half precision on a GPU,
    which turns to NaN when trained, and rounds float32 files through it. Raises CarftError for an
    unknown name, a failed download, a wrong SHA-256, and a file that is no CLIP or may be code.
    """
    loader = open_clip if name.startswith(open_clip.PREFIX) else openai
    backbone = Backbone(name, **loader.load(name))
    for key, value in backbone.model.state_dict().items():
        # A sum takes no copy, and is finite only where all values are; of huge ones it may not be.
        if not value.sum().isfinite() and not value.isfinite().all():
            raise CarftError(
                f"{backbone.path} has NaN or infinity in {key!r}; get a new copy of the weights"
            )
    return backbone


def find_preprocessing(name: str) -> Preprocessing:
    """What the CLIP ``name`` wants of images; an exception of any type if it cannot be read."""
    if name.startswith(open_clip.PREFIX):
        return open_clip.read_preprocessing(open_clip.load_configuration(name))

    if is_user_file(name):
        return load(name).preprocessing
    resolutions = openai.RESOLUTIONS
    return Preprocessing(resolutions.get(name, openai.DEFAULT_RESOLUTION))


def is_user_file(name: str) -> bool:
    """Whether the CLIP is a user's file in OpenAI's format, which has to be read for its facts."""
    return name not in openai.PUBLISHED and not name.startswith(open_clip.PREFIX)


def encode_prompts(backbone: Backbone, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Text features of M x K prompts: (M, K, D), float32, not normalised, on the CPU.

    Encoded in batches, on a GPU if there is one, and kept in the cache folder for later jobs.
    """
    flat = [prompt for row in prompts for prompt in row]
    tokens = backbone.tokenize(flat)
    key = hashlib.sha256("\0".join([backbone.digest, str(len(prompts)), *flat]).encode())
    if backbone.architecture:  # one file under two activations or tokenizers gives other features
        key.update(backbone.architecture.encode() + tokens.numpy().tobytes())

    path = files.cache_folder() / "text" / f"{key.hexdigest()}.pt"
    features = _load_cached(path)
    if features is None:
        features = _encode(backbone.model, tokens)
        with suppress(CarftError):  # a full cache costs time, never a job
            files.save(path, lambda temporary: torch.save(features, temporary))
    return features.view(len(prompts), len(prompts[0]), -1)


def build_image_encoder(
    shapes: Mapping[str, Sequence[int]], architecture: str = ""
) -> tuple[nn.Module, Preprocessing, int]:
    """An untrained image encoder whose state dict has these shapes (keys as in ``visual.*``).

    Also what it wants of images, and D of its features (N, D). Raises an exception of any type
    for shapes that are no such encoder's.
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
    """Text features (N, D) on the CPU, by the GPU if there is one."""
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
    """Cached features, else None: a damaged cache costs time, never a job."""
    with suppress(CarftError):
        return weights.load_weights(path)
    return None
