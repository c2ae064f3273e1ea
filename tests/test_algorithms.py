"""Algorithms on a small CLIP model with random weights, and on OpenAI's exact shapes."""

import math
import shutil

import pytest
import torch
from conftest import random_clip
from helpers.algorithms import (
    FEW,
    RN50,
    SMALL,
    VIT_B_16,
    as_archive,
    make,
    minibatches,
    reopened,
    train,
)
from torchvision import transforms

from domainbed_carft.clips import openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET


def test_drift_is_measured_each_step_by_carft_and_every_drift_every_steps_by_others(random_tiny):
    assert all("loss_kl" in values for values in train(make(random_tiny), 4))
    measured = ["loss_kl" in v for v in train(make(random_tiny, "CLIPFineTune"), 5)]
    assert measured == [True, False, True, False, True]
    never = make(random_tiny, "CLIPFineTune", drift_every=0)
    assert never.original is None and "loss_kl" not in train(never, 1)[0]


def test_clip_input_undoes_normalisation_resizes_and_normalises():
    mean, std, clip_mean, clip_std = (
        torch.tensor(v).view(3, 1, 1) for v in (*IMAGENET, CLIP_MEAN, CLIP_STD)
    )
    raw = torch.rand(2, 3, 224, 224)
    clip_input = CLIPInput(48)((raw - mean) / std)
    small = transforms.functional.resize(
        raw, [48, 48], transforms.InterpolationMode.BICUBIC, antialias=True
    )

    torch.testing.assert_close(clip_input, (small - clip_mean) / clip_std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "trained_parts"),
    [
        ("CARFT", {"encoder", "head"}),
        ("CLIPFineTune", {"encoder", "head"}),
        ("CLIPood", {"encoder"}),
        ("CLIPLPFT", {"encoder", "head"}),
        ("CLIPLoRA", {"encoder", "lora"}),
        ("CLIPLinearProbe", {"head"}),
        ("CLIPZeroShot", set()),
    ],
)
def test_algorithm_trains_only_its_parts(random_tiny, name, trained_parts):
    algorithm = make(random_tiny, name, head_init="random")
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    train(algorithm, 4)
    after = algorithm.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[0] for k in changed} == trained_parts
    if name == "CLIPLoRA":
        merged = {k for k in changed if k.startswith("encoder.")}
        assert all(k.endswith("attn.in_proj_weight") for k in merged)

    # A head that is never trained is zero-shot, also if a sweep sets head_init for all algorithms.
    zero_shot_head = make(random_tiny, "CLIPZeroShot").head.weight
    assert torch.equal(before["head.weight"], zero_shot_head) == ("head" not in trained_parts)


@pytest.mark.parametrize("name", ["CARFT", "FLYP", "CLIPLoRA", "CLIPLinearProbe"])
def test_saved_run_predicts_without_the_clip_checkpoint(name, random_tiny, tmp_path):
    weights = shutil.copy(random_tiny, tmp_path / "weights.pt")
    algorithm = make(weights, name, average="ema")
    train(algorithm, 2)
    weights.unlink()
    restored = reopened(algorithm, tmp_path).algorithm

    x = torch.randn(5, 3, 28, 28)
    assert type(restored).__name__ == name and not restored.training
    torch.testing.assert_close(restored.predict(x), algorithm.eval().predict(x))
    assert torch.equal(restored.context_weights, algorithm.context_weights)
    with pytest.raises(CarftError, match="can predict but not train"):
        restored.update(minibatches())


@pytest.mark.parametrize(
    ("name", "matrix"), [("CARFT", "head.weight"), ("FLYP", "text.text_projection")]
)
def test_biases_norms_and_embeddings_have_no_weight_decay(random_tiny, name, matrix):
    algorithm = make(random_tiny, name)
    names = {id(p): n for n, p in algorithm.named_parameters()}
    decayed, no_decay = (
        {names[id(p)] for p in group["params"]} for group in algorithm.optimizer.param_groups
    )

    assert [g["weight_decay"] for g in algorithm.optimizer.param_groups] == [0.1, 0.0]
    assert {matrix, "encoder.proj", "encoder.conv1.weight"} <= decayed
    assert all("bias" not in n and "ln_" not in n and "embedding" not in n for n in decayed)
    assert {"encoder.class_embedding", "encoder.positional_embedding"} <= no_decay

    every = make(random_tiny, name, weight_decay_all=True).optimizer.param_groups
    assert [g["weight_decay"] for g in every] == [0.1]


def test_learning_rate_follows_warm_up_and_schedule(random_tiny):
    def rates(**overrides):
        algorithm = make(random_tiny, "CLIPLinearProbe", lr=1.0, total_steps=12, **overrides)
        learning_rates = []
        for seed in range(12):
            learning_rates.append(algorithm.optimizer.param_groups[0]["lr"])
            algorithm.update(minibatches(seed))
        return learning_rates

    warm = [1 / 3, 2 / 3]
    cosine = [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]

    assert rates(warmup_steps=2) == pytest.approx(warm + cosine)
    assert rates(warmup_steps=2, lr_schedule="constant") == pytest.approx(warm + [1.0] * 10)
    assert rates(warmup_steps=0)[0] == 1.0


def test_gradients_are_clipped_to_grad_clip(random_tiny):
    def norm(**overrides):
        algorithm = make(random_tiny, **overrides)
        train(algorithm, 1)
        return math.sqrt(sum(float((p.grad**2).sum()) for p in algorithm.parameters()))

    assert norm(grad_clip=0.0) > 0.1
    assert norm(grad_clip=0.01) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "shape",
    [
        # The full sizes take 4 GB of memory.
        pytest.param({**VIT_B_16, **FEW}, id="ViT, small"),
        pytest.param({**RN50, **FEW, **SMALL}, id="ResNet, small"),
        pytest.param(VIT_B_16, id="ViT-B/16", marks=pytest.mark.slow),
        pytest.param(RN50, id="RN50", marks=pytest.mark.slow),
    ],
)
def test_openai_archive_is_loaded_trained_saved_and_restored(shape, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    as_archive(random_clip(**shape), path)
    monkeypatch.setitem(openai.OPENAI_WEIGHTS, "RN50", ("RN50.pt", weights.sha256(path)))
    algorithm = make(path, lr=1e-5, amp="off")
    first, second = (algorithm.update(minibatches(seed, n=1, size=224)) for seed in range(2))

    assert first["loss_kl"] == 0.0 and first["context_agreement"] == 1.0
    assert second["loss_kl"] > 0.0 and all(math.isfinite(v) for v in second.values())

    algorithm.eval()
    path.unlink()
    restored = reopened(algorithm, tmp_path).algorithm
    tensors = [*algorithm.encoder.state_dict().values(), algorithm.head.weight]
    assert (tmp_path / "model.pkl").stat().st_size <= 1.05 * sum(p.nbytes for p in tensors)

    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(restored.predict(x), algorithm.predict(x))
