"""Find, verify and load a CLIP in OpenAI's format; encode prompts once and keep the features."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.errors import CarftError, PassingError, brief
from domainbed_carft.files import weights

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

TEXT_BATCH = 256  # prompts encoded at once
MOST_TENSORS = 2000  # in a CLIP: RN50x64, which has the most of OpenAI's, has some 1,400


@dataclass(frozen=True)
class Backbone:
    """A CLIP in float32 and eval mode on the CPU, the file it came from, and its SHA-256."""

    name: str
    model: Any  # clip.model.CLIP
    digest: str
    path: Path

    @property
    def logit_scale(self) -> float:
        """exp of CLIP's learnt log temperature: 100 for OpenAI's models."""
        return float(self.model.logit_scale.detach().exp())


def load(name: str) -> Backbone:
    """Load ``"tiny"``, one of OpenAI's names, or the path of a state dict or of OpenAI's archive.

    The weights are float32 on the CPU whatever the machine, exactly those of the file:
    ``clip.load`` gives half precision on a GPU, which turns to NaN when trained, and rounds
    float32 files through half precision. OpenAI's names are looked up in, and downloaded to,
    ``~/.cache/clip`` as OpenAI's own package does.

    Raises CarftError for an unknown name, a failed download (saying what to put where), a wrong
    SHA-256, a TorchScript archive that is not one of OpenAI's, and a file that is no CLIP.
    """
    path, expected = locate(name)
    digest = weights.sha256(path)
    if expected and digest != expected:
        raise CarftError(
            f"{path} has the SHA-256 {digest}, expected {expected} for {name!r}. Delete the file, "
            "or to use it, give its path as clip_backbone"
        )
    return Backbone(name, _read(path, digest), digest, path)


def text_features(backbone: Backbone, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Text features of M x K prompts: (M, K, D), float32, not normalised, on the CPU.

    Encoded once in batches, on a GPU if there is one, and kept in the cache folder under the digest
    of the weights and of the prompts, so that later jobs read them.
    """
    flat = [prompt for row in prompts for prompt in row]
    key = hashlib.sha256("\0".join([backbone.digest, str(len(prompts)), *flat]).encode())
    path = files.cache_folder() / "text" / f"{key.hexdigest()}.pt"
    features = _cached(path, (len(flat), backbone.model.text_projection.shape[1]))
    if features is None:
        features = _encode(backbone.model, flat)
        with suppress(CarftError):  # a full cache costs time, never a job
            files.save(path, lambda temporary: torch.save(features, temporary))
    return features.view(len(prompts), len(prompts[0]), -1)


def empty_image_encoder(shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """An untrained image encoder whose state dict has these shapes (keys as in ``visual.*``).

    How a checkpoint is restored without the CLIP it started from. The rules by which OpenAI's
    format implies the architecture are those of openai/CLIP, clip/model.py, build_model. Raises
    an exception of any type for shapes that are no such encoder's, before they take memory.
    """
    if len(shapes) > MOST_TENSORS:
        raise ValueError(f"the image encoder has {len(shapes)} tensors")
    with torch.device("meta"):
        made = {key: value.shape for key, value in _image_encoder(shapes).state_dict().items()}
    if wrong := sorted(made.items() ^ shapes.items()):
        raise ValueError(f"{wrong[0][0]} does not fit the image encoder")
    return _image_encoder(shapes)


def _image_encoder(shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    with _clip_imported():
        from clip.model import ModifiedResNet, VisionTransformer
    if "proj" in shapes:
        width, _, _, patch = shapes["conv1.weight"]
        grid = round((shapes["positional_embedding"][0] - 1) ** 0.5)
        layers = len({k for k in shapes if k.endswith(".attn.in_proj_weight")})
        return VisionTransformer(patch * grid, patch, width, layers, width // 64, shapes["proj"][1])
    blocks = [
        len({k.split(".")[1] for k in shapes if k.startswith(f"layer{n}.")}) for n in range(1, 5)
    ]
    width = shapes["layer1.0.conv1.weight"][0]
    grid = round((shapes["attnpool.positional_embedding"][0] - 1) ** 0.5)
    output = shapes["attnpool.c_proj.weight"][0]
    return ModifiedResNet(tuple(blocks), output, width * 32 // 64, grid * 32, width)


def locate(name: str) -> tuple[Path, str | None]:
    """The file for ``name``, and the SHA-256 that it must have; None if any will do."""
    if name in PUBLISHED:
        path, sha = published(name)
        if name in OPENAI_WEIGHTS and not path.is_file():
            _download(name, path)
        return path, sha
    if Path(name).is_file():
        return Path(name), None
    raise CarftError(
        f"clip_backbone is {name!r}, expected an existing file or one of: {', '.join(PUBLISHED)}"
    )


def published(name: str) -> tuple[Path, str]:
    """Where the weights that are published as ``name`` belong, and their SHA-256."""
    if name == "tiny":
        return Path(str(resources.files("domainbed_carft") / "assets" / "tiny.pt")), TINY_SHA256
    file_name, sha = OPENAI_WEIGHTS[name]
    return Path("~/.cache/clip").expanduser() / file_name, sha


def _download(name: str, path: Path) -> None:
    """Fetch OpenAI's weights through their own package, which checks them; whole or not at all."""
    with _clip_imported():
        import clip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            clip.load(name, device="cpu", download_root=temporary)
            os.replace(Path(temporary) / path.name, path)
    except (OSError, RuntimeError) as error:
        raise PassingError(
            f"the weights of {name!r} are not at {path}, and downloading them failed ({error}). On "
            f"a machine with internet access run python -c \"import clip; clip.load('{name}')\", "
            f"then copy ~/.cache/clip/{path.name} (SHA-256 {OPENAI_WEIGHTS[name][1]}) to {path}"
        ) from error


def _read(path: Path, digest: str) -> Any:
    # To load TorchScript is to run it, and it can write files: none runs but OpenAI's own.
    if any(digest == sha for _, sha in OPENAI_WEIGHTS.values()):
        with warnings.catch_warnings():  # torch 2.13 deprecates the format OpenAI publishes
            warnings.simplefilter("ignore")
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:
        state = weights.load_weights(path)
    with _clip_imported():
        from clip.model import build_model
    try:
        if len(state) > MOST_TENSORS:
            raise ValueError(f"it has {len(state)} tensors")
        for key, value in state.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"{key!r} contains NaN or infinity")
        state = {k: v.float() if torch.is_floating_point(v) else v for k, v in state.items()}
        with torch.device("meta"), warnings.catch_warnings():  # without memory: do they fit?
            warnings.simplefilter("ignore")
            build_model(dict(state))
        model = build_model(dict(state)).float()  # rounds to half precision on its way
        model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()})
    except Exception as error:  # what other content makes of build_model: any type
        raise CarftError(
            f"{path} is not a CLIP in OpenAI's format ({brief(error)}); expected only the state "
            "dict of OpenAI's clip.model.CLIP, with keys such as visual.conv1.weight"
        ) from error
    return model.eval().requires_grad_(False)


def tokenize(model: Any, prompts: Sequence[str]) -> Tensor:
    """The tokens (N, L) of prompts, as few as the longest has; CarftError for one too long."""
    with _clip_imported():
        import clip
    try:
        tokens: Tensor = clip.tokenize(list(prompts), context_length=model.context_length)
    except RuntimeError as error:
        raise CarftError(
            f"a prompt is longer than the {model.context_length} tokens that CLIP reads "
            f"({error}); shorten the context or the class name"
        ) from error
    # The text encoder is causal and read at the end-of-text token, so padding changes nothing.
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def _encode(model: Any, prompts: Sequence[str]) -> Tensor:
    tokens = tokenize(model, prompts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    try:
        with torch.inference_mode():
            batches = tokens.split(TEXT_BATCH)
            progress = tqdm(batches, desc="encoding prompts", unit="batch", delay=5, disable=None)
            features = [model.encode_text(batch.to(device)).float().cpu() for batch in progress]
    finally:
        model.to("cpu")
    return torch.cat(features).clone()


def _cached(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Cached features of this shape, else None: a damaged cache costs time, never a job."""
    try:
        found = weights.load_weights(path)
    except CarftError:
        return None
    fits = isinstance(found, Tensor) and (found.dtype, found.shape) == (torch.float32, shape)
    return found if fits and found.isfinite().all() else None


@contextmanager
def _clip_imported():  # type: ignore[no-untyped-def]
    """Import OpenAI's package without its warning about pkg_resources, which users cannot fix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        try:
            yield
        except ImportError as error:
            raise CarftError(
                f"OpenAI's clip cannot be imported ({error}); run pip install clip-anytorch "
                "'setuptools>=77.0.3,<82' in this environment"
            ) from error
