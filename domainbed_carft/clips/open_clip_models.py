"""open_clip's checkpoints: checked, built, and rebuilt from a saved run.

Nothing in a folder or a repository is run, and its numbers take no memory before the weights
confirm them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.clips import open_clip_files, open_clip_sizes, open_clip_tokenizers
from domainbed_carft.clips.open_clip_files import CONFIG, HUB
from domainbed_carft.clips.open_clip_files import PREFIX as PREFIX
from domainbed_carft.clips.open_clip_files import WEIGHTS as WEIGHTS
from domainbed_carft.clips.open_clip_files import package as package
from domainbed_carft.errors import CarftError, brief, imported
from domainbed_carft.files import parsing, weights
from domainbed_carft.pictures.plan import INTERPOLATIONS, RESIZES
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from domainbed_carft.text import unknown

DEFAULT_IMAGE_SIZE = 224  # pixels a side
# Of a tokenizer; others may run code.
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
LONGEST_VALUE = 80  # characters of a value in a message
_SMALL_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}

Config = Mapping[str, Any]  # of an open_clip_config.json: model_cfg and preprocess_cfg


def load(name: str) -> dict[str, Any]:
    """Fields of `backbone.Backbone` for ``name``, with PREFIX; in float32 and eval mode on the CPU.

    Raises CarftError as `check`, for a failed download, and files that do not fit each other.
    """
    config = configuration(name)
    path = open_clip_files.weights_file(name)
    model = _load_model(name, config, path)
    tokenizer = _tokenizer(name, config["model_cfg"]["text_cfg"])
    return {
        "model": model.requires_grad_(False),
        "digest": weights.sha256(path),
        "path": path,
        "preprocessing": preprocessing(config),
        "dim": config["model_cfg"]["embed_dim"],
        "tokenize": functools.partial(open_clip_tokenizers.tokenize, tokenizer),
        "architecture": json.dumps(config, sort_keys=True),
        "revision": open_clip_files.revision_of(path),
        "tokenizer": tokenizer,
    }


def check(name: str) -> None:
    """Raise CarftError for what is wrong as far as it shows without asking the hub."""
    if name.startswith(PREFIX + HUB):
        package()
    else:
        configuration(name)


def configuration(name: str) -> Config:
    """The configuration of ``name``, as in an open_clip_config.json; asks the hub for a HUB name.

    Raises CarftError if there is none, for a model that this package cannot use, and for a file
    that takes its text encoder from another repository.
    """
    package()
    if not open_clip_files.has_own_config(name):
        return checked(_table_config(name), name)

    path = open_clip_files.config_file(name)
    try:
        content = parsing.parse_json(files.read_small(path))
    except (OSError, ValueError) as error:
        raise CarftError(f"{path} cannot be read ({error}); expected open_clip's JSON") from error

    config = checked(content, name)
    text_encoder = config["model_cfg"]["text_cfg"].get("hf_model_name")
    if text_encoder:
        raise CarftError(
            f"{path} takes its text encoder from {_brief(text_encoder)!r}, which is not looked "
            "up: no hub is asked for a name in a file. If open_clip lists the model, use "
            f"{PREFIX}NAME/TAG"
        )
    return config


def preprocessing(config: Config) -> Preprocessing:
    """What a model wants of pictures. Raises CarftError for what our transforms do not do."""
    options = {key: value for key, value in config["preprocess_cfg"].items() if value is not None}
    size = config["model_cfg"]["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)
    side = size[0] if isinstance(size, list) and len({*size}) == 1 else size
    interpolation = options.get("interpolation", "bicubic")
    resize_mode = options.get("resize_mode", "shortest")
    mean = _numbers(options.get("mean", CLIP_MEAN))
    std = _numbers(options.get("std", CLIP_STD))

    is_known = interpolation in INTERPOLATIONS and resize_mode in RESIZES
    if not (is_known and type(side) is int and len(mean) == len(std) == 3 and all(std)):
        requested = {"image_size": size, **options}
        raise CarftError(
            f"the model wants pictures as {repr(requested)[:200]}; expected square ones, bicubic "
            "or bilinear, shortest or squash, mean and std of three channels"
        )
    return Preprocessing(side, interpolation, resize_mode, mean, std)


def image_encoder(config: Config) -> Any:
    """An untrained image encoder of this `checked` configuration.

    Nothing is run or asked that it may name: the text encoder is left out, and timm builds only
    models of its own list. Raises an exception of any type for sizes that do not fit.
    """
    return _build({"model_cfg": {**config["model_cfg"], "text_cfg": _SMALL_TEXT}}).visual


def checked(config: Any, name: str) -> Config:
    """``config`` with its two parts. Raises CarftError for what is no model, or none for us."""
    parts = config if isinstance(config, dict) else {}
    preprocess_config = parts.get("preprocess_cfg") or {}
    model_config = parts.get("model_cfg")
    if not isinstance(model_config, dict):
        model_config = {}

    sections = [preprocess_config, model_config.get("vision_cfg"), model_config.get("text_cfg")]
    is_clip = all(type(section) is dict for section in sections)
    if not is_clip or type(model_config.get("embed_dim")) is not int:
        raise CarftError(
            f"{name} has no image or no text encoder; expected the configuration of a CLIP with "
            "model_cfg, and in it embed_dim, vision_cfg and text_cfg"
        )

    problem = _config_problem(model_config)
    if problem:
        raise CarftError(f"{name} {problem}")
    return {"model_cfg": model_config, "preprocess_cfg": preprocess_config}


def save(folder: Path, state: Mapping[str, Tensor], architecture: str, tokenizer: Any) -> None:
    """Write a model into ``folder`` so that ``local-dir:`` loads it, tokenizer included.

    Raises OSError if the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    (folder / CONFIG).write_text(json.dumps(json.loads(architecture), indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:  # which has the operating system's words in it
        raise OSError(str(error)) from error
    if hasattr(tokenizer, "save_pretrained"):  # OpenAI's is in the package
        tokenizer.save_pretrained(folder)


def _load_model(name: str, config: Config, path: Path) -> Any:
    """The model with the weights at ``path``, in eval mode; CarftError if they do not fit."""
    shapes = open_clip_sizes.tensor_shapes(path)
    model_config = config["model_cfg"]
    size = preprocessing(config).resolution
    dim = model_config["embed_dim"]
    try:
        if open_clip_files.has_own_config(name):  # the sizes of open_clip's own table are known
            open_clip_sizes.require_fit(model_config, shapes, lambda: _build(config))
        model = _build(config)
        package().load_checkpoint(model, str(path))

        with torch.no_grad():
            features = model.eval().visual(torch.zeros(1, 3, size, size))
        if getattr(features, "shape", None) != (1, dim):
            raise ValueError(f"its image encoder gives no feature of {dim} numbers a picture")
    except Exception as error:  # what other files make of open_clip: any type
        raise CarftError(f"{path} does not fit its architecture ({brief(error)})") from error
    return model


def _config_problem(model_config: Mapping[str, Any]) -> str:
    """Why this package cannot use the model, to follow its name; "" if it can."""
    vision = model_config["vision_cfg"]
    text = model_config["text_cfg"]
    if "multimodal_cfg" in model_config or vision.get("output_tokens") or text.get("output_tokens"):
        return "is a CoCa, whose encoders return tokens, too; expected a CLIP or a SigLIP"

    size_problem = open_clip_sizes.size_problem(model_config)
    if size_problem:
        return size_problem

    timm_model = vision.get("timm_model_name")
    if timm_model and not _is_timm_model(timm_model):
        return f"has an image encoder {_brief(timm_model)!r}, which timm does not know"

    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or not {*options} <= TOKENIZER_OPTIONS:
        return f"has tokenizer_kwargs {_brief(options)!r}, of which some may run code"
    return ""


def _table_config(name: str) -> Config:
    """The configuration of a model in open_clip's own table, under one of its tags."""
    open_clip = package()
    model, tag = open_clip_files.table_entry(name)
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
            f"which gives other features; use {PREFIX}{fitting}/{tag}"
        )

    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess_config = {key: pretrained[key] for key in keys if key in pretrained}
    return {"model_cfg": model_config, "preprocess_cfg": preprocess_config}


def _is_timm_model(model: Any) -> bool:
    """Whether timm builds it by itself; "hf-hub:..." would be looked up there."""
    import timm

    is_plain = isinstance(model, str) and re.fullmatch(r"\w+(\.\w+)?", model, re.ASCII)
    return bool(is_plain) and timm.is_model(model)


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers as a tuple, () for anything else."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    return tuple(map(float, numbers)) if {*map(type, numbers)} <= {int, float} else ()


def _brief(value: Any) -> str:
    return str(value)[:LONGEST_VALUE]


def _build(config: Config) -> Any:
    """The model, with random weights."""
    open_clip = package()
    model_config = dict(config["model_cfg"])
    vision = {**model_config["vision_cfg"], "timm_model_pretrained": False}
    text = {**model_config["text_cfg"], "hf_model_pretrained": False}
    is_custom = model_config.pop("custom_text", False) or "hf_model_name" in text

    text_encoder = text.get("hf_model_name")  # in open_clip's own table
    if text_encoder:
        transformers = imported("transformers", "transformers sentencepiece")
        # open_clip would ask on standard input whether it may run code; this refuses it.
        transformers.AutoConfig.from_pretrained(text_encoder, trust_remote_code=False)
    model_class = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    return model_class(**{**model_config, "vision_cfg": vision, "text_cfg": text})


def _tokenizer(name: str, text_config: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder, of a repository of the hub, or of a model in open_clip's table."""
    has_hub_tokenizer = bool(text_config.get("hf_tokenizer_name"))
    if not open_clip_files.has_own_config(name):
        model = open_clip_files.table_entry(name).model
        options = {"trust_remote_code": False} if has_hub_tokenizer else {}
        return open_clip_files.from_hub(
            name, "the tokenizer", lambda: package().get_tokenizer(model, **options)
        )

    folder = open_clip_files.local_folder(name)
    if folder is not None:
        return open_clip_tokenizers.from_folder(folder, text_config)
    if not has_hub_tokenizer:
        return open_clip_tokenizers.of_openai(text_config)
    return open_clip_tokenizers.from_folder(open_clip_files.tokenizer_folder(name), text_config)
