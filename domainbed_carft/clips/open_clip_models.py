"""open_clip's checkpoints: found, checked, built, and rebuilt from a saved run.

The hub is asked only for a name that the user gives, never for one in a file. Nothing in a folder
or a repository is run, and its numbers take no memory before the weights confirm them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.clips import open_clip_sizes, open_clip_tokenizers
from domainbed_carft.clips.pictures import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, Preprocessing
from domainbed_carft.errors import CarftError, PassingError, brief, imported
from domainbed_carft.files import parsing, weights
from domainbed_carft.text import unknown

PREFIX = "open_clip:"
LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# The weights of a folder, the first that is there: as open_clip prefers them.
_WEIGHTS = (
    WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth",
)  # fmt: skip
_SMALL_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}

Config = Mapping[str, Any]  # of an open_clip_config.json: model_cfg and preprocess_cfg


def load(name: str) -> dict[str, Any]:
    """Fields of `backbone.Backbone` for ``name``, with PREFIX; in float32 and eval mode on the CPU.

    Raises CarftError as `check`, for a failed download, and files that do not fit each other.
    """
    config, path = configuration(name), _weights(name)
    shapes = open_clip_sizes.tensor_shapes(path)
    try:
        if _is_foreign(name):  # the sizes of open_clip's own table are known
            model_config = config["model_cfg"]
            open_clip_sizes.require_fit(model_config, shapes, lambda: _built(config))
        model = _built(config)
        package().load_checkpoint(model, str(path))
        size, dim = preprocessing(config).resolution, config["model_cfg"]["embed_dim"]
        with torch.no_grad():
            features = model.eval().visual(torch.zeros(1, 3, size, size))
        if getattr(features, "shape", None) != (1, dim):
            raise ValueError(f"its image encoder gives no feature of {dim} numbers a picture")
    except Exception as error:  # what other files make of open_clip: any type
        raise CarftError(f"{path} does not fit its architecture ({brief(error)})") from error
    tokenizer = _tokenizer(name, config["model_cfg"]["text_cfg"])
    return {
        "model": model.eval().requires_grad_(False),
        "digest": weights.sha256(path),
        "path": path,
        "preprocessing": preprocessing(config),
        "dim": config["model_cfg"]["embed_dim"],
        "tokenize": functools.partial(open_clip_tokenizers.tokenize, tokenizer),
        "architecture": json.dumps(config, sort_keys=True),
        "revision": path.parent.name if path.parent.parent.name == "snapshots" else "",
        "tokenizer": tokenizer,
    }


def package() -> Any:
    return imported("open_clip", "'open_clip_torch>=3,<4'")


def check(name: str) -> None:
    """Raise CarftError for what is wrong as far as it shows without asking the hub."""
    package() if name.startswith(PREFIX + HUB) else configuration(name)


def configuration(name: str) -> Config:
    """The configuration of ``name``, as in an open_clip_config.json; asks the hub for a HUB name.

    Raises CarftError if there is none, for a model that this package cannot use, and for a file
    that takes its text encoder from another repository.
    """
    open_clip, place = package(), name.removeprefix(PREFIX)
    if not _is_foreign(name):
        return checked(_of_the_table(open_clip, *place.partition("/")[::2]), name)

    path = _file(name, (CONFIG,))
    try:
        found = parsing.parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CarftError(f"{path} cannot be read ({error}); expected open_clip's JSON") from error
    config = checked(found, name)
    if elsewhere := config["model_cfg"]["text_cfg"].get("hf_model_name"):
        raise CarftError(
            f"{path} takes its text encoder from {str(elsewhere)[:80]!r}, which is not looked up: "
            "no hub is asked for a name in a file. If open_clip lists the model, use "
            f"{PREFIX}NAME/TAG"
        )
    return config


def preprocessing(config: Config) -> Preprocessing:
    """What a model wants of pictures. Raises CarftError for what our transforms do not do."""
    how = {name: value for name, value in config["preprocess_cfg"].items() if value is not None}
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    side = size[0] if isinstance(size, list) and len({*size}) == 1 else size
    interpolation = how.get("interpolation", "bicubic")
    resize = how.get("resize_mode", "shortest")
    mean, std = (_numbers(how.get(n, d)) for n, d in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    known = interpolation in [*INTERPOLATIONS] and resize in ["shortest", "squash"]
    if not (known and type(side) is int and len(mean) == len(std) == 3 and all(std)):
        wanted = {"image_size": size, **how}
        raise CarftError(
            f"the model wants pictures as {repr(wanted)[:200]}; expected square ones, bicubic or "
            "bilinear, shortest or squash, mean and std of three channels"
        )
    return Preprocessing(side, interpolation, resize, mean, std)


def image_encoder(config: Config) -> Any:
    """An untrained image encoder of this `checked` configuration.

    Nothing is run or asked that it may name: the text encoder is left out, and timm builds only
    models of its own list. Raises an exception of any type for sizes that do not fit.
    """
    return _built({"model_cfg": {**config["model_cfg"], "text_cfg": _SMALL_TEXT}}).visual


def checked(config: Any, name: str) -> Config:
    """``config`` with its two parts. Raises CarftError for what is no model, or none for us."""
    parts = config if isinstance(config, dict) else {}
    model, how = parts.get("model_cfg"), parts.get("preprocess_cfg") or {}
    found: Any = model if isinstance(model, dict) else {}
    vision, text, dim = (found.get(key) for key in ("vision_cfg", "text_cfg", "embed_dim"))
    if [type(one) for one in (how, vision, text, dim)] != [dict, dict, dict, int]:
        raise CarftError(
            f"{name} has no image or no text encoder; expected the configuration of a CLIP with "
            "model_cfg, and in it embed_dim, vision_cfg and text_cfg"
        )
    words, tower, fault = text.get("tokenizer_kwargs") or {}, vision.get("timm_model_name"), ""
    if "multimodal_cfg" in found or vision.get("output_tokens") or text.get("output_tokens"):
        fault = "is a CoCa, whose encoders return tokens, too; expected a CLIP or a SigLIP"
    elif size_problem := open_clip_sizes.size_problem(found):
        fault = size_problem
    elif tower and not _is_timms(tower):
        fault = f"has an image encoder {str(tower)[:80]!r}, which timm does not know"
    elif not isinstance(words, dict) or not {*words} <= {"clean", "strip_sep_token", "language"}:
        fault = f"has tokenizer_kwargs {str(words)[:80]!r}, of which some may run code"
    if fault:
        raise CarftError(f"{name} {fault}")
    return {"model_cfg": found, "preprocess_cfg": how}


def save(folder: Path, state: Mapping[str, Tensor], architecture: str, tokenizer: Any) -> None:
    """Write a model into ``folder`` so that ``local-dir:`` loads it, tokenizer included."""
    from safetensors.torch import save_file

    (folder / CONFIG).write_text(json.dumps(json.loads(architecture), indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    if hasattr(tokenizer, "save_pretrained"):  # OpenAI's is in the package
        tokenizer.save_pretrained(folder)


def _of_the_table(open_clip: Any, name: str, tag: str) -> Config:
    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise CarftError(unknown("model of open_clip", name, open_clip.list_models()))
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise CarftError(unknown(f"tag of open_clip's {name}", tag, tags))
    trained, computes = (bool(one.get("quick_gelu")) for one in (known, model_cfg))
    right = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
    if trained != computes and right != name:
        raise CarftError(
            f"the weights {tag!r} were trained with another activation than {name!r} computes, "
            f"which gives other features; use {PREFIX}{right}/{tag}"
        )
    image = ("mean", "std", "interpolation", "resize_mode")
    wanted = {key: known[key] for key in image if key in known}
    return {"model_cfg": model_cfg, "preprocess_cfg": wanted}


def _is_foreign(name: str) -> bool:
    """Whether the configuration of ``name`` is a file, and not from open_clip's own table."""
    return name.removeprefix(PREFIX).startswith((LOCAL, HUB))


def _is_timms(tower: Any) -> bool:
    """Whether timm builds it by itself; "hf-hub:..." would be looked up there."""
    import timm

    plain = isinstance(tower, str) and re.fullmatch(r"\w+(\.\w+)?", tower, re.ASCII)
    return bool(plain) and timm.is_model(tower)


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers as a tuple, () for anything else."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    return tuple(map(float, numbers)) if {*map(type, numbers)} <= {int, float} else ()


def _weights(name: str) -> Path:
    open_clip, place = package(), name.removeprefix(PREFIX)
    if _is_foreign(name):
        return _file(name, _WEIGHTS)
    known = open_clip.get_pretrained_cfg(*place.partition("/")[::2])
    return Path(_of_the_hub(name, "weights", lambda: open_clip.download_pretrained(known)))


def _file(name: str, names: Sequence[str]) -> Path:
    """The first of ``names`` that a folder has, or a repository of the hub."""
    place = name.removeprefix(PREFIX)
    if place.startswith(LOCAL):
        folder = Path(place.removeprefix(LOCAL))
        if there := [folder / one for one in names if (folder / one).is_file()]:
            return there[0]
        raise CarftError(f"{folder} has no {names[0]}; expected {CONFIG} and {WEIGHTS}")
    from open_clip.pretrained import download_pretrained_from_hf as download

    file = names[0] if len(names) == 1 else None  # which looks for all of them
    found = _of_the_hub(name, names[0], lambda: download(place.removeprefix(HUB), filename=file))
    return Path(found)


def _of_the_hub(name: str, what: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # of the hub's client and transformers, a dozen types
        raise PassingError(
            f"{what} of {name!r} could not be loaded ({brief(error)}). On a machine with internet "
            "access load it once and copy the hub's cache (HF_HOME), or save it as a folder for "
            f"{PREFIX}{LOCAL}FOLDER. SigLIP's needs pip install transformers sentencepiece"
        ) from error


def _built(config: Config) -> Any:
    """The model, with random weights."""
    open_clip = package()
    model = dict(config["model_cfg"])
    vision = {**model["vision_cfg"], "timm_model_pretrained": False}
    text = {**model["text_cfg"], "hf_model_pretrained": False}
    custom = model.pop("custom_text", False) or "hf_model_name" in text
    if elsewhere := text.get("hf_model_name"):  # in open_clip's own table
        transformers = imported("transformers", "transformers sentencepiece")
        # open_clip would ask on standard input whether it may run code; this refuses it.
        transformers.AutoConfig.from_pretrained(elsewhere, trust_remote_code=False)
    cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return cls(**{**model, "vision_cfg": vision, "text_cfg": text})


def _tokenizer(name: str, text_config: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder, of a repository of the hub, or of a model in open_clip's table."""
    place = name.removeprefix(PREFIX)
    if not _is_foreign(name):
        safe = {"trust_remote_code": False} if text_config.get("hf_tokenizer_name") else {}
        model = place.partition("/")[0]
        return _of_the_hub(name, "the tokenizer", lambda: package().get_tokenizer(model, **safe))

    if place.startswith(LOCAL):
        return open_clip_tokenizers.from_folder(Path(place.removeprefix(LOCAL)), text_config)
    if not text_config.get("hf_tokenizer_name"):
        return open_clip_tokenizers.of_openai(text_config)
    return open_clip_tokenizers.from_folder(_repository(name), text_config)


def _repository(name: str) -> Path:
    """The tokenizer's files of the repository that the user named, in the hub's cache."""
    from huggingface_hub import snapshot_download

    repository = name.removeprefix(PREFIX + HUB)
    patterns = [*open_clip_tokenizers.REPOSITORY_FILES]
    return Path(
        _of_the_hub(
            name, "the tokenizer", lambda: snapshot_download(repository, allow_patterns=patterns)
        )
    )
