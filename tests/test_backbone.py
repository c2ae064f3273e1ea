"""CLIP models in OpenAI's format: exact weights, cached text features, and errors."""

import urllib.error
import warnings

import pytest
import torch
from conftest import TINY_SHAPE, random_clip
from helpers.algorithms import as_archive

from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip

PROMPTS = [
    ["a photo of a dog", "a photo of a cat"],
    ["a sketch of the dog!", "a sketch of the cat"],
]


def test_state_dict_and_archive_are_loaded_exactly_in_float32(random_tiny, tmp_path, monkeypatch):
    archive = tmp_path / "archive.pt"
    as_archive(random_clip(**TINY_SHAPE), archive)
    published = ("ViT-B-32.pt", weights.sha256(archive))
    monkeypatch.setitem(openai.OPENAI_WEIGHTS, "ViT-B/32", published)
    expected = torch.load(random_tiny, weights_only=True)
    assert not torch.equal(expected["visual.proj"], expected["visual.proj"].half().float())

    for path in (random_tiny, archive):
        loaded = backbone.load(str(path)).model
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected[name]) and tensor.dtype == torch.float32, name
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_text_features_equal_clip_on_full_length_text(random_tiny):
    loaded = backbone.load(str(random_tiny))
    features = backbone.encode_prompts(loaded, PROMPTS)
    assert features.shape == (2, 2, 128) and features.dtype == torch.float32

    with torch.no_grad():
        for m, row in enumerate(PROMPTS):
            expected = loaded.model.encode_text(clip.tokenize(row))
            torch.testing.assert_close(features[m], expected, rtol=1e-4, atol=1e-5)


def test_text_features_are_cached_by_weights_and_prompts(random_tiny, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(cache))
    loaded = backbone.load(str(random_tiny))
    first = backbone.encode_prompts(loaded, PROMPTS)
    torch.save(random_clip(seed=1, **TINY_SHAPE).state_dict(), tmp_path / "other.pt")
    other_features = backbone.encode_prompts(backbone.load(str(tmp_path / "other.pt")), PROMPTS)
    assert not torch.equal(other_features, first)
    backbone.encode_prompts(loaded, [[PROMPTS[0][0]], [PROMPTS[0][1]]])
    backbone.encode_prompts(loaded, [PROMPTS[0]])  # the same prompts in another shape
    assert len([*cache.rglob("*.pt")]) == 4

    monkeypatch.setattr(loaded.model, "encode_text", None)  # nothing is encoded again
    assert torch.equal(backbone.encode_prompts(loaded, PROMPTS), first)


def test_published_names_and_checksums_equal_openais():
    from clip.clip import _MODELS

    parts = {name: url.split("/") for name, url in _MODELS.items()}
    openai_weights = {name: (part[-1], part[-2]) for name, part in parts.items()}
    assert openai_weights == openai.OPENAI_WEIGHTS


def test_failed_download_error_names_path_and_checksum(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(clip, "load", offline)
    path = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    digest = openai.OPENAI_WEIGHTS["ViT-B/16"][1]
    with pytest.raises(CarftError, match=rf"no network.*\(SHA-256 {digest}\) to {path}"):
        backbone.load("ViT-B/16")


def test_other_weights_under_a_published_name_are_rejected(tmp_path, monkeypatch, random_tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    planted = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(random_tiny.read_bytes())
    with pytest.raises(CarftError, match=r"ViT-B-16.pt has the SHA-256 .*expected 5806e77c"):
        backbone.load("ViT-B/16")


def test_weights_of_another_model_are_rejected(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(CarftError, match=f"{path} is not a CLIP checkpoint in OpenAI's format"):
        backbone.load(str(path))


def test_prompt_that_is_too_long_is_rejected(random_tiny):
    with pytest.raises(CarftError, match="longer than the 77 tokens.*shorten"):
        backbone.encode_prompts(backbone.load(str(random_tiny)), [["dog " * 100]])
