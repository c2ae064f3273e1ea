"""Small open_clip models with random weights in local folders, without network access."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

_MODELS_FOLDER = tempfile.TemporaryDirectory(prefix="carft-test-open-clip-")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
SIGLIP_LENGTH = 12
PIXELS = 64  # image size of the models below that are smaller than timm's
WORDS = "a photo sketch of the dog cat owl dark toy zero one wild long".split()
MODELS: dict[str, dict[str, Any]] = {
    "quickgelu": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 32},
        "text_cfg": TEXT,
    },
    "gelu": {
        "embed_dim": 32,
        # 40 wide heads, which cannot be derived from the width; OpenAI's format assumes 64.
        "vision_cfg": {
            "image_size": 48,
            "layers": 2,
            "width": 80,
            "head_width": 40,
            "patch_size": 16,
        },
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {  # timm's smallest
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": SIGLIP_LENGTH,
            "vocab_size": len(WORDS) + 2,
            "width": 64,
            "heads": 2,
            "hf_tokenizer_name": "nobody/asked",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
}
MODELS["pe-core"] = {  # its architecture, narrow and of four blocks
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        "image_size": PIXELS,
        "timm_model_name": "small_pe_core",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": None,
    },
    "text_cfg": {**TEXT, "context_length": 32},
}
MODELS["siglip-2"] = {
    **MODELS["siglip"],
    "vision_cfg": {
        **MODELS["siglip"]["vision_cfg"],
        "image_size": PIXELS,
        "timm_model_name": "small_siglip",
    },
    "text_cfg": {**MODELS["siglip"]["text_cfg"], "act_kwargs": {"approximate": "tanh"}},
}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "siglip": {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
}


def write(folder: Path, kind: str, **changed: Any) -> str:
    """Write a model of MODELS into ``folder`` and return its clip_backbone name.

    ``changed`` replaces parts of its configuration.
    """
    shutil.copytree(_built_model(kind, json.dumps(changed)), folder, dirs_exist_ok=True)
    return f"open_clip:local-dir:{folder}"


@functools.cache
def _built_model(kind: str, changed_as_json: str) -> Path:
    """Return a folder with this model, built once per process."""
    import open_clip
    from safetensors.torch import save_file

    _register_small_image_encoders()
    config = {**MODELS[kind], **json.loads(changed_as_json)}
    model_config = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        cls = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        model = cls(**model_config)
        for parameter in model.parameters():  # some start at 0
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.logit_scale.data.fill_(3.0)

    folder = Path(tempfile.mkdtemp(dir=_MODELS_FOLDER.name))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESSING.get(kind, {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder)
    return folder


@functools.cache
def _register_small_image_encoders() -> None:
    """Register small image encoders of PE-Core and SigLIP 2, with four narrow blocks, in timm."""
    import timm

    smaller = {"img_size": PIXELS, "embed_dim": 64, "depth": 4, "num_heads": 2}

    def small_pe_core(pretrained: bool = False, **options: Any) -> Any:
        return timm.models.eva.vit_pe_core_tiny_patch16_384(
            **smaller, ref_feat_shape=(4, 4), attn_pool_num_heads=2, **options
        )

    def small_siglip(pretrained: bool = False, **options: Any) -> Any:
        # SigLIP 2 has kept the image encoder of SigLIP.
        return timm.models.vision_transformer.vit_base_patch16_siglip_224(**smaller, **options)

    for entry_point in (small_pe_core, small_siglip):
        timm.models.register_model(entry_point)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per word, padded with the end of the text, as SigLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {"<unk>": 0, "</s>": 1, **{word: n for n, word in enumerate(WORDS, 2)}}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
