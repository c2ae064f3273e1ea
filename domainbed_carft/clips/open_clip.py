"""open_clip's checkpoints: located, checked, built by open_clip, and rebuilt from a saved run.

A folder or a repository is untrusted: none of its code is run, and names in its files are not
looked up.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.errors import CarftError, TransientError, brief, get_module
from domainbed_carft.files import weights
from domainbed_carft.images.plan import INTERPOLATIONS, RESIZES
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from domainbed_carft.suggestions import unknown

PREFIX = "open_clip:"
LOCAL = "local-dir:"
HUB = "hf-hub:"

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
PICKLED_WEIGHTS = "open_clip_pytorch_model.bin"
# Names of weights in a folder, in open_clip's order of preference.
WEIGHT_FILES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    PICKLED_WEIGHTS,
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
)

# A tokenizer's files: its settings, and the files downloaded from a hub repository.
SETTINGS = ("tokenizer_config.json", "config.json")
SMALL_FILES = ("*.json", "*.txt", "*.model")
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}  # others can run code

DEFAULT_IMAGE_SIZE = 224  # side in pixels
_SMALL_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}

Config = Mapping[str, Any]  # an open_clip_config.json: model_cfg and preprocess_cfg


def import_package() -> Any:
    """Import open_clip; CarftError with the pip command if that fails."""
    return get_module("open_clip", "'open_clip_torch>=3,<4'")


def load(name: str) -> dict[str, Any]:
    """Return the fields of `backbone.Backbone` for ``name``, in float32 and eval mode on the CPU.

    ``name`` starts with PREFIX. Raises CarftError as `check`, for a failed download, and for files
    that do not fit each other.
    """
    config = load_configuration(name)
    path = find_weights(name)
    model = _load_model(config, path)
    tokenizer = _load_tokenizer(name, config["model_cfg"]["text_cfg"])
    return {
        "model": model.requires_grad_(False),
        "digest": weights.cached_sha256(path),
        "path": path,
        "preprocessing": read_preprocessing(config),
        "dim": config["model_cfg"]["embed_dim"],
        "tokenize": functools.partial(tokenize, tokenizer),
        "architecture": json.dumps(config, sort_keys=True),
        "revision": get_revision(path),
        "tokenizer": tokenizer,
    }


def check(name: str) -> None:
    """Raise CarftError for problems that can be found without the hub."""
    if name.startswith(PREFIX + HUB):
        import_package()
    else:
        load_configuration(name)


# Files


def _parse_name(name: str) -> tuple[str, str]:
    """Return the model in open_clip's table and the tag of its weights, of open_clip:MODEL/TAG."""
    model, _, tag = name.removeprefix(PREFIX).partition("/")
    return model, tag


def _find_folder(name: str) -> Path | None:
    """Return the folder with configuration and tokenizer, None for a model in open_clip's table.

    It is the user's folder, or a repository's folder in the hub's cache. The hub is only contacted
    for a name given by the user, never for a name in a file.
    """
    location = name.removeprefix(PREFIX)
    if location.startswith(LOCAL):
        return Path(location.removeprefix(LOCAL))
    if not location.startswith(HUB):
        return None

    from huggingface_hub import snapshot_download

    repository = location.removeprefix(HUB)
    with _convert_hub_errors(name, CONFIG):
        return Path(snapshot_download(repository, allow_patterns=list(SMALL_FILES)))


def find_weights(name: str) -> Path:
    """Return the weights file of ``name``, downloaded from the hub if necessary.

    Raises CarftError if there is none.
    """
    open_clip = import_package()
    location = name.removeprefix(PREFIX)
    if location.startswith(LOCAL):
        folder = Path(location.removeprefix(LOCAL))
        present = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()]
        if not present:
            raise CarftError(f"{folder} has no {WEIGHTS}; expected {CONFIG} and {WEIGHTS}")
        return present[0]

    with _convert_hub_errors(name, "weights"):
        if location.startswith(HUB):
            repository = location.removeprefix(HUB)
            return Path(open_clip.pretrained.download_pretrained_from_hf(repository))
        pretrained = open_clip.get_pretrained_cfg(*_parse_name(name))
        return Path(open_clip.download_pretrained(pretrained))


def get_revision(path: Path) -> str:
    """Return the commit of the hub's repository of the cached file ``path``, "" for other files."""
    return path.parent.name if path.parent.parent.name == "snapshots" else ""


@contextmanager
def _convert_hub_errors(name: str, content: str) -> Iterator[None]:
    """Raise TransientError with instructions for offline use if the block fails.

    ``content`` is the part of ``name`` that is loaded, such as "weights".
    """
    try:
        yield
    except Exception as error:  # the hub's client and transformers raise a dozen types
        raise TransientError(
            f"{content} of {name!r} could not be loaded ({brief(error)}). On a machine with "
            "internet access, load it once and copy the hub's cache (HF_HOME), or save it as a "
            f"folder for {PREFIX}{LOCAL}FOLDER. SigLIP's tokenizer needs pip install transformers "
            "sentencepiece"
        ) from error


# Configurations


def load_configuration(name: str) -> Config:
    """Return the configuration of ``name``, as in an open_clip_config.json.

    The hub is contacted for a HUB name. Raises CarftError if there is no configuration, for a model
    that this package does not support, and for a file whose text encoder is in another repository.
    """
    import_package()
    folder = _find_folder(name)
    if folder is None:
        return check_configuration(_find_table_config(name), name)

    path = folder / CONFIG
    if not path.is_file():
        raise CarftError(f"{folder} has no {CONFIG}; expected {CONFIG} and {WEIGHTS}")
    config = check_configuration(_read_json(path), name)
    text_encoder = config["model_cfg"]["text_cfg"].get("hf_model_name")
    if text_encoder:
        raise CarftError(
            f"{path} takes its text encoder from {text_encoder!r:.80}, which is not looked up: "
            "names in files are never downloaded. If open_clip lists the model, use "
            f"{PREFIX}NAME/TAG"
        )
    return config


def check_configuration(config: Any, name: str) -> Config:
    """Return ``config`` with its two parts.

    Raises CarftError if it is not the configuration of a supported model.
    """
    parts = config if isinstance(config, dict) else {}
    preprocess_config = parts.get("preprocess_cfg") or {}
    model_config = parts.get("model_cfg")
    if not isinstance(model_config, dict):
        model_config = {}

    sections = [preprocess_config, model_config.get("vision_cfg"), model_config.get("text_cfg")]
    if (
        not all(type(section) is dict for section in sections)
        or type(model_config.get("embed_dim")) is not int
    ):
        raise CarftError(
            f"{name} has no image or no text encoder; expected the configuration of a CLIP model: "
            "model_cfg with embed_dim, vision_cfg and text_cfg"
        )

    problem = _config_problem(model_config)
    if problem:
        raise CarftError(f"{name} {problem}")
    return {"model_cfg": model_config, "preprocess_cfg": preprocess_config}


def read_preprocessing(config: Config) -> Preprocessing:
    """Return the preprocessing of a model; CarftError if the transforms do not support it.

    It is read from the configuration because datasets are built before the model.
    """
    options = {key: value for key, value in config["preprocess_cfg"].items() if value is not None}
    size = config["model_cfg"]["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)
    side = size[0] if isinstance(size, list) and len({*size}) == 1 else size
    interpolation = options.get("interpolation", "bicubic")
    resize_mode = options.get("resize_mode", "shortest")
    mean = _parse_numbers(options.get("mean", CLIP_MEAN))
    std = _parse_numbers(options.get("std", CLIP_STD))

    if not (
        interpolation in INTERPOLATIONS
        and resize_mode in RESIZES
        and type(side) is int
        and side > 0
        and len(mean) == len(std) == 3
        and all(std)
    ):
        requested = {"image_size": size, **options}
        raise CarftError(
            f"the model needs images with {repr(requested)[:200]}; expected square images, bicubic "
            "or bilinear, shortest or squash, and mean and std of three channels"
        )
    return Preprocessing(side, interpolation, resize_mode, mean, std)


def _config_problem(model_config: Mapping[str, Any]) -> str:
    """Return the reason why this package does not support the model, to follow its name, or ""."""
    vision = model_config["vision_cfg"]
    text = model_config["text_cfg"]
    if "multimodal_cfg" in model_config or vision.get("output_tokens") or text.get("output_tokens"):
        return "is a CoCa model, whose encoders also return tokens; expected CLIP or SigLIP"

    # A tag such as "resnet18.hf-hub:ORG/REPO" would be looked up.
    timm_model = vision.get("timm_model_name")
    if timm_model and not re.fullmatch(r"\w+(\.\w+)?", str(timm_model), re.ASCII):
        return f"has the image encoder {timm_model!r:.80}, which is not a model name of timm"

    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or not {*options} <= TOKENIZER_OPTIONS:
        return (
            f"has tokenizer_kwargs {options!r:.80}, which could run code; expected only "
            f"{', '.join(sorted(TOKENIZER_OPTIONS))}"
        )
    return ""


def _find_table_config(name: str) -> Config:
    """Return the configuration of a model in open_clip's table, for one of its tags."""
    open_clip = import_package()
    model, tag = _parse_name(name)
    model_config = open_clip.get_model_config(model)
    if model_config is None:
        raise CarftError(unknown("model of open_clip", model, open_clip.list_models()))
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise CarftError(unknown(f"tag of open_clip's {model}", tag, tags))

    trained_quick = bool(pretrained.get("quick_gelu"))
    computes_quick = bool(model_config.get("quick_gelu"))
    fitting = f"{model}-quickgelu" if trained_quick else model.removesuffix("-quickgelu")
    if trained_quick != computes_quick and fitting != model:
        raise CarftError(
            f"the weights {tag!r} were trained with another activation than {model!r} computes, "
            f"so the features would be wrong; use {PREFIX}{fitting}/{tag}"
        )

    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess_config = {key: pretrained[key] for key in keys if key in pretrained}
    return {"model_cfg": model_config, "preprocess_cfg": preprocess_config}


def _parse_numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers as a tuple, () for any other value."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    return tuple(map(float, numbers)) if {*map(type, numbers)} <= {int, float} else ()


# Models


def build_image_encoder(config: Config) -> Any:
    """Build an untrained image encoder of a valid configuration on torch's default device.

    Names in the configuration are not looked up: the text encoder is replaced, and timm builds only
    models of its own list. Raises an exception of any type for sizes that do not fit.
    """
    return _create_model({"model_cfg": {**config["model_cfg"], "text_cfg": _SMALL_TEXT}}).visual


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    architecture: str,
    preprocessing: Preprocessing,
    tokenizer: Any,
) -> None:
    """Write a model with its tokenizer into ``folder``, for loading by ``local-dir:``.

    Args:
        folder: an existing folder.
        state: the state dict of the model.
        architecture: the model's configuration as JSON.
        preprocessing: the transform of images, which replaces that of the configuration.
        tokenizer: the model's tokenizer.

    Raises:
        OSError: the folder cannot be written.
    """
    config = json.loads(architecture)
    config["preprocess_cfg"] |= {
        "interpolation": preprocessing.interpolation,
        "resize_mode": preprocessing.resize,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights.save_tensors(folder / WEIGHTS, state)
    if hasattr(tokenizer, "save_pretrained"):  # OpenAI's is in the package
        tokenizer.save_pretrained(folder)


def _load_model(config: Config, path: Path) -> Any:
    """Return the model with the weights at ``path`` in eval mode; CarftError if they do not fit."""
    if path.suffix != ".safetensors":
        weights.load_weights(path)  # rejects files that open_clip would accept
    size = read_preprocessing(config).resolution
    dim = config["model_cfg"]["embed_dim"]
    try:
        model = _create_model(config, path)
        with torch.no_grad():
            features = model.eval().visual(torch.zeros(1, 3, size, size))
        if getattr(features, "shape", None) != (1, dim):
            raise ValueError(f"its image encoder does not return {dim} features per image")
    except Exception as error:  # open_clip raises any type for invalid files
        raise CarftError(f"{path} does not fit its architecture ({brief(error)})") from error
    return model


def _create_model(config: Config, path: Path | None = None) -> Any:
    """Build open_clip's model with the weights at ``path``, or with random weights.

    On torch's default device. open_clip gets a folder with only these two files.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / CONFIG).write_text(json.dumps(config), "utf-8")
        if path is not None:
            link = folder / (WEIGHTS if path.suffix == ".safetensors" else PICKLED_WEIGHTS)
            link.symlink_to(path.absolute())

        device = torch.empty(0).device
        with _silence_log():
            return import_package().create_model(
                f"{LOCAL}{folder}", device=device, pretrained_text=False
            )


@contextmanager
def _silence_log() -> Iterator[None]:
    """Suppress open_clip's log messages about models without weights."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


# Tokenizers


def tokenize(tokenizer: Callable[..., Tensor], prompts: Sequence[str]) -> Tensor:
    """Return the tokens (N, L) of prompts, with L the context length of the model.

    The full length is needed: SigLIP's text encoder has no causal mask and is read at the last
    position. Raises CarftError for a prompt that would be cut.
    """
    texts = list(prompts)
    length: int = tokenizer.context_length  # type: ignore[attr-defined]
    tokens = tokenizer(texts, context_length=length)
    longer_tokens = tokenizer(texts, context_length=length + 1)

    # A prompt that fits only gets one more padding token, at the beginning or at the end.
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0
    is_cut = longer_tokens.sum(dim=1) - tokens.sum(dim=1) != padding
    if is_cut.any():
        longest = texts[int(is_cut.nonzero()[0])]
        raise CarftError(
            f"the prompt {longest!r} is longer than the {length} tokens of this model; shorten the "
            "context or the class name"
        )
    return tokens


def _load_tokenizer(name: str, text_config: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a folder, of a hub repository, or of a model in open_clip's table.

    In a folder, only the presence of ``hf_tokenizer_name`` matters: the files are the folder's.
    """
    folder = _find_folder(name)
    # Without a name, open_clip uses its built-in CLIP tokenizer.
    options = {"trust_remote_code": False} if text_config.get("hf_tokenizer_name") else {}
    if folder is None:
        model, _ = _parse_name(name)
        with _convert_hub_errors(name, "the tokenizer"):
            return import_package().get_tokenizer(model, **options)

    if options:
        _require_plain_tokenizer(folder)
        options["local_files_only"] = True
    try:
        return import_package().get_tokenizer(f"{LOCAL}{folder}", **options)
    except Exception as error:  # transformers, tokenizers and sentencepiece raise a dozen types
        raise CarftError(
            f"the tokenizer in {folder} cannot be used ({brief(error)}). Save it again with "
            "save_pretrained; SigLIP's tokenizer needs pip install transformers sentencepiece"
        ) from error


def _require_plain_tokenizer(folder: Path) -> None:
    """Raise CarftError for a tokenizer that needs more than data from its folder."""
    # RAG's two tokenizers are in subfolders.
    patterns = [prefix + pattern for prefix in ("", "*/") for pattern in SMALL_FILES]
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        try:
            files.open_regular(path).close()
        except OSError as error:
            raise CarftError(f"{path} is not a tokenizer file: {error.strerror}") from error

        settings = _read_json(path) if path.name in SETTINGS else {}
        names = [key for key in settings if key == "init_inputs" or re.search("_files?$", key)]
        forbidden = [name for name in names if settings[name]]
        if '"auto_map"' in json.dumps(settings):  # at any depth
            forbidden.append("auto_map")
        if forbidden:
            raise CarftError(
                f"{path} has {forbidden[0]!r}, which refers to Python code or files. Code in a "
                "folder is never run, and no other files are opened; remove "
                f"{forbidden[0]!r}, or use another tokenizer"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; CarftError for other content."""
    try:
        content = json.loads(files.read_regular(path))
    except (OSError, ValueError) as error:
        raise CarftError(f"{path} cannot be read ({error}); expected a JSON object") from error
    if not isinstance(content, dict):
        raise CarftError(f"{path} contains a {type(content).__name__}; expected a JSON object")
    return content
