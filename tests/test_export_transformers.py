"""`carft export --format transformers`: the folder as Hugging Face's library loads it."""

import html
import json
import re
import sysconfig

import ftfy
import numpy as np
import open_clip_folders
import pytest
import torch
from fake_checkout import run_python
from PIL import Image
from torch.nn.functional import normalize

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.clips import transformers as clips_transformers
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import export, saved

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

TEXTS = ["a photo of a cat", "An   Emoji's sketch of 12 dogs, café!", "x"]

# Without this package and the .pth files that would find it.
LOAD_ELSEWHERE = """
import sys
sys.path.append(sys.argv[1])
sys.modules["domainbed_carft"] = None  # to import it fails
import torch
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel
from transformers import CLIPVisionModelWithProjection

folder = sys.argv[2]
images, texts = torch.load(sys.argv[3])
clip = CLIPModel.from_pretrained(folder)
tokens = CLIPProcessor.from_pretrained(folder)(text=texts, padding=True, return_tensors="pt")
with torch.no_grad():
    output = clip(pixel_values=images, **tokens)
    pooled = CLIPVisionModel.from_pretrained(folder)(images).pooler_output
    vision = CLIPVisionModelWithProjection.from_pretrained(folder)(images)
torch.save({
    "images": vision.image_embeds,
    "pooled images": clip.visual_projection(pooled).detach(),
    "unit images": output.image_embeds,
    "unit texts": output.text_embeds,
    "logits": output.logits_per_image,
}, sys.argv[4])
"""


def load_elsewhere(folder, images, temporary):
    """Return what transformers computes of images and TEXTS in a process without this package."""
    torch.save((images, TEXTS), temporary / "inputs.pt")
    paths = [folder, temporary / "inputs.pt", temporary / "outputs.pt"]
    arguments = ["-I", "-S", "-c", LOAD_ELSEWHERE, sysconfig.get_path("purelib"), *paths]
    done = run_python(*map(str, arguments), cwd=temporary, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    return torch.load(temporary / "outputs.pt")


@pytest.mark.slow
def test_transformers_without_this_package_computes_the_features_of_the_run(trained, tmp_path):
    folder = tmp_path / "exported"
    assert cli.main(["export", str(trained), "-o", str(folder), "--format", "transformers"]) == 0
    run = saved.load_run(trained, device="cpu")
    original = backbone.load("tiny")
    side = original.preprocessing.resolution
    images = torch.randn(4, 3, side, side)
    computed = load_elsewhere(folder, images, tmp_path)

    with torch.no_grad():
        features = run.algorithm.encoder(images)
        texts = normalize(original.model.encode_text(original.tokenize(TEXTS)), dim=-1)
        assert not torch.allclose(features, original.model.encode_image(images), atol=1e-2)
    expected = {
        "images": features,
        "pooled images": features,
        "unit images": normalize(features, dim=-1),
        "unit texts": texts,
        "logits": original.logit_scale * normalize(features, dim=-1) @ texts.T,
    }
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def test_code_of_the_card_predicts_like_the_run(trained, tmp_path, monkeypatch):
    files = export.export(trained, tmp_path / "exported", format="transformers")
    run = saved.load_run(trained, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "exported" / "image.png")

    monkeypatch.chdir(tmp_path / "exported")
    load, classify = re.findall(r"^```python\n(.*?)^```", files.readme.read_text(), re.M | re.S)
    names = {}
    exec(load + classify, names)
    with torch.no_grad():
        expected = run.algorithm.predict(run.transform()(image)[None])
    torch.testing.assert_close(names["logits"], expected, rtol=0, atol=1e-3)  # up to 100
    assert json.loads(files.card.read_text())["format"] == "transformers folder"


def test_tokens_equal_those_of_clip_after_the_repair_that_clip_makes(tmp_path):
    for name, content in clips_transformers.make_tokenizer(77).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    tokenize = backbone.load("tiny").tokenize

    for text in ("salt &amp; pepper", "don\u2019t", "\ufb01ne", "\uff21\uff22", "na\u00c3\u00afve"):
        expected = [token for token in tokenize([text])[0].tolist() if token]
        assert tokenizer(text)["input_ids"] != expected, text
        assert tokenizer(html.unescape(ftfy.fix_text(text)))["input_ids"] == expected, text


def real_weights(name):
    is_missing = not openai.find_published(name)[0].exists()
    reason = f"needs OpenAI's {name}"
    return pytest.param(
        name, marks=[pytest.mark.weights, pytest.mark.skipif(is_missing, reason=reason)]
    )


@pytest.mark.parametrize(
    "name",
    [
        "random tiny",
        "quickgelu",
        "gelu",
        *map(real_weights, ("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")),
    ],
)
def test_features_equal_those_of_the_saved_clip_model(name, random_tiny, tmp_path):
    source = str(random_tiny) if name == "random tiny" else name
    if name in open_clip_folders.MODELS:
        source = open_clip_folders.write(tmp_path / "source", name)
    loaded = backbone.load(source)
    config = export.get_model_config(loaded)
    (tmp_path / "out").mkdir()
    clips_transformers.require_supported(config, name)
    clips_transformers.save(
        tmp_path / "out", loaded.model.state_dict(), config, loaded.preprocessing
    )

    clip, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    preprocess = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    side = loaded.preprocessing.resolution
    images = torch.rand(2, 3, side, side)
    options = {"padding": True, "do_rescale": False, "return_tensors": "pt"}
    inputs = preprocess(text=TEXTS, images=images, **options)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in loaded.preprocessing[-2:])
    torch.testing.assert_close(inputs.pixel_values, (images - mean) / std)
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out")
    text = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = clip(**inputs).logits_per_image
        computed = [vision(inputs.pixel_values).image_embeds, text(inputs.input_ids).text_embeds]
        image_features = loaded.model.encode_image(inputs.pixel_values)
        text_features = loaded.model.encode_text(loaded.tokenize(TEXTS))
    cosines = normalize(image_features, dim=-1) @ normalize(text_features, dim=-1).T
    expected = [image_features, text_features, loaded.logit_scale * cosines]
    torch.testing.assert_close([*computed, logits], expected, rtol=1e-5, atol=1e-5)


PLAIN_VITS = [
    "ViT-B-32-quickgelu",
    "ViT-L-14-336-quickgelu",
    "ViT-B-16",
    "ViT-B-16-plus-240",
    "ViT-H-14-378",
    "ViT-g-14",
    "ViT-bigG-14",
    "ViT-S-32-alt",
]


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_names_and_shapes_of_published_sizes_equal_those_of_transformers(name):
    config = open_clip.get_model_config(name)
    clips_transformers.require_supported(config, name)
    with torch.device("meta"):
        state = clips_transformers.rename_tensors(open_clip.CLIP(**config).state_dict())
        content = clips_transformers.make_config(config, config["vision_cfg"]["image_size"])
        clip = transformers.CLIPModel(transformers.CLIPConfig(**content))
    expected = {key: tensor.shape for key, tensor in clip.state_dict().items()}
    assert {key: tensor.shape for key, tensor in state.items()} == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50-quickgelu", "its image encoder is a ResNet"),
        ("coca_ViT-B-32", "model_cfg has multimodal_cfg"),
        ("ViT-B-16-SigLIP", "model_cfg has custom_text True"),
        ("convnext_base", "vision_cfg has timm_model_name 'convnext_base'"),
        ("xlm-roberta-base-ViT-B-32", "text_cfg has hf_model_name 'xlm-roberta-base'"),
        ("ViT-H-14-CLIPA", "vision_cfg has no_ln_pre True"),
        ("ViT-M-16-alt", "vision_cfg has ls_init_value 0.0001"),
    ],
)
def test_other_architectures_are_rejected_with_the_reason(name, reason):
    config = open_clip.get_model_config(name)
    with pytest.raises(CarftError, match=f"^{name} cannot be exported .*{reason}"):
        clips_transformers.require_supported(config, name)
