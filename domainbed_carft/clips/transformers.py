"""Write a CLIP model as a folder for Hugging Face's transformers, which is not needed for it.

Names, configuration and files are those of transformers.CLIPModel (models/clip in transformers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from domainbed_carft.clips import openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.preprocessing import Preprocessing

WEIGHTS = "model.safetensors"

VOCABULARY_SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
PILLOW_RESAMPLING = {"bilinear": 2, "bicubic": 3}

# The parts of an open_clip configuration that transformers.CLIPModel has; others must be off.
_SUPPORTED = {
    "model_cfg": "embed_dim quick_gelu init_logit_scale vision_cfg text_cfg".split(),
    "vision_cfg": "image_size layers width head_width mlp_ratio patch_size patch_dropout".split(),
    "text_cfg": "context_length vocab_size width heads layers mlp_ratio".split(),
}

# Patterns of names in a state dict of clip or open_clip, and their replacements, in this order.
_RENAMED = {
    r"^visual\.proj$": "visual_projection.weight",
    r"^text_projection$": "text_projection.weight",
    r"^visual\.conv1": "vision_model.embeddings.patch_embedding",
    r"^visual\.class_embedding": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.ln_pre": "vision_model.pre_layrnorm",  # spelled like this
    r"^visual\.ln_post": "vision_model.post_layernorm",
    r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
    r"^token_embedding": "text_model.embeddings.token_embedding",
    r"^positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"^ln_final": "text_model.final_layer_norm",
    r"^transformer\.resblocks": "text_model.encoder.layers",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.c_fc\.": ".fc1.",
    r"\.c_proj\.": ".fc2.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
}


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    model_config: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> None:
    """Write weights, configuration, preprocessing and tokenizer into ``folder``.

    Args:
        folder: an existing folder.
        state: the state dict of a CLIP model of clip or open_clip.
        model_config: the ``model_cfg`` of its open_clip configuration, valid for
            `require_supported`.
        preprocessing: the transform of images.

    Raises:
        OSError: the folder cannot be written.
    """
    weights.save_tensors(folder / WEIGHTS, rename_tensors(state))
    contents = {
        "config.json": make_config(model_config, preprocessing.resolution),
        "preprocessor_config.json": make_preprocessor_config(preprocessing),
        **make_tokenizer(model_config["text_cfg"].get("context_length", 77)),
    }
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def require_supported(model_config: Mapping[str, Any], name: str) -> None:
    """Raise CarftError if transformers.CLIPModel has no architecture equal to that of ``name``."""
    sections = {"model_cfg": model_config, **model_config}
    reasons = [
        f"{section} has {key} {value!r:.80}"
        for section, supported in _SUPPORTED.items()
        for key, value in sections[section].items()
        if value and key not in supported
    ]
    if isinstance(model_config["vision_cfg"].get("layers"), list):
        reasons.insert(0, "its image encoder is a ResNet")
    if model_config["text_cfg"].get("vocab_size", VOCABULARY_SIZE) != VOCABULARY_SIZE:
        reasons.append("its vocabulary is not CLIP's")
    if reasons:
        raise CarftError(
            f"{name} cannot be exported for transformers, whose CLIPModel has no equal "
            f"architecture: {'; '.join(reasons[:3])}. Expected a ViT of OpenAI's design; export it "
            "without --format"
        )


def rename_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of transformers.CLIPModel."""
    renamed = {}
    for name, tensor in state.items():
        if name in ("visual.proj", "text_projection"):  # weights of linear layers there
            tensor = tensor.T
        for pattern, replacement in _RENAMED.items():
            name = re.sub(pattern, replacement, name)

        if ".attn.in_proj_" in name:
            for part, projected in zip("qkv", tensor.chunk(3)):
                renamed[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = projected
        else:
            renamed[name] = tensor.reshape(()) if name == "logit_scale" else tensor
    return renamed


def make_config(model_config: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return the content of config.json; missing values are open_clip's defaults."""
    vision = {"width": 768, "layers": 12, "patch_size": 16, **model_config["vision_cfg"]}
    text = {"width": 512, "heads": 8, "layers": 12, **model_config["text_cfg"]}
    dim = model_config["embed_dim"]
    shared = {
        "projection_dim": dim,
        "hidden_act": "quick_gelu" if model_config.get("quick_gelu") else "gelu",
    }

    def describe_transformer(tower: Mapping[str, Any], heads: int) -> dict[str, Any]:
        return {
            **shared,
            "hidden_size": tower["width"],
            "intermediate_size": int(tower["width"] * tower.get("mlp_ratio", 4)),
            "num_hidden_layers": tower["layers"],
            "num_attention_heads": heads,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            **describe_transformer(vision, vision["width"] // vision.get("head_width", 64)),
            "image_size": image_size,
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            "model_type": "clip_text_model",
            **describe_transformer(text, text["heads"]),
            "vocab_size": VOCABULARY_SIZE,
            "max_position_embeddings": text.get("context_length", 77),
            "bos_token_id": VOCABULARY_SIZE - 2,
            "eos_token_id": VOCABULARY_SIZE - 1,
        },
    }


def make_preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the content of preprocessor_config.json."""
    side = preprocessing.resolution
    square = {"height": side, "width": side}
    is_squashed = preprocessing.resize == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if is_squashed else {"shortest_edge": side},
        "resample": PILLOW_RESAMPLING[preprocessing.interpolation],
        "do_center_crop": not is_squashed,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def make_tokenizer(context_length: int) -> dict[str, Any]:
    """Return the tokenizer's files: name to JSON or text. The vocabulary is in OpenAI's package."""
    tokenizer = openai.import_package().simple_tokenizer.SimpleTokenizer()
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    return {
        "vocab.json": tokenizer.encoder,
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "processor_class": "CLIPProcessor",
            "model_max_length": context_length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        },
    }
