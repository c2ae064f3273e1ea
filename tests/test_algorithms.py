"""The algorithms on a small CLIP with random weights, and on OpenAI's exact shapes."""

import io
import math
import shutil

import pytest
import torch
from conftest import random_clip
from test_backbone import as_archive
from torchvision import transforms

from domainbed_carft.clips import openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET
from domainbed_carft.method import algorithms
from domainbed_carft.runs.saved import open_run

CLASSES = ["dog", "cat", "owl"]
CONTEXTS = ["a photo of a {}", "a sketch of a {}", "a dark {}", "a toy {}"]
MANY_CONTEXTS = [f"photo {number} of a {{}}" for number in range(28)]  # as FDAlign needs them


def settings(weights, algorithm="CARFT", **overrides):
    values = algorithms.hparam_values(algorithm, "Debug28")
    values.update(data_augmentation=True, class_balanced=False)
    values.update(clip_backbone=str(weights), class_names=CLASSES, contexts=CONTEXTS)
    values.update(warmup_steps=2, total_steps=20, drift_every=2)
    values["lp_steps"] = min(values["lp_steps"], 2)
    if algorithm == "FDAlign":
        values["contexts"] = MANY_CONTEXTS
    return {**values, **overrides}


def build(algorithm_class, input_shape, num_classes, num_domains, hparams):
    """The algorithm as every host builds it."""
    return algorithm_class(input_shape, num_classes, num_domains, hparams)


def make(weights, algorithm="CARFT", seed=0, **overrides):
    torch.manual_seed(seed)
    algorithm_class = getattr(algorithms, algorithm)
    hparams = settings(weights, algorithm, **overrides)
    return build(algorithm_class, (3, 28, 28), len(CLASSES), 2, hparams)


def minibatches(seed=0, n=6, size=28):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, 3, size, size, generator=generator),
            torch.randint(0, len(CLASSES), (n,), generator=generator),
        )
        for _ in range(2)
    ]


def train(algorithm, steps):
    return [algorithm.update(minibatches(seed)) for seed in range(steps)]


def same_state(a, b):
    a_state = a.state_dict()
    b_state = b.state_dict()
    return a_state.keys() == b_state.keys() and all(
        torch.equal(a_state[key], b_state[key]) for key in a_state
    )


def dumped(algorithm):
    """What DomainBed's train saves, through a file."""
    buffer = io.BytesIO()
    content = {
        "args": {"algorithm": type(algorithm).__name__, "dataset": "Debug28", "test_envs": [0]},
        "model_input_shape": (3, 28, 28),
        "model_num_classes": len(CLASSES),
        "model_num_domains": 2,
        "model_hparams": algorithm.hparams,
        **algorithm.recorded_facts(),
        "model_dict": algorithm.state_dict(),
    }
    torch.save(content, buffer)
    return buffer


def reopened(algorithm, folder):
    """A run that was saved in ``folder`` and opened again."""
    (folder / "model.pkl").write_bytes(dumped(algorithm).getbuffer())
    return open_run(folder / "model.pkl")


def test_carft_measures_drift_every_step_and_fine_tuning_every_few(random_tiny):
    assert all("loss_kl" in values for values in train(make(random_tiny), 4))
    measured = ["loss_kl" in v for v in train(make(random_tiny, "CLIPFineTune"), 5)]
    assert measured == [True, False, True, False, True]
    never = make(random_tiny, "CLIPFineTune", drift_every=0)
    assert never.original is None and "loss_kl" not in train(never, 1)[0]


def test_images_are_resized_between_the_two_normalisations():
    mean, std, clip_mean, clip_std = (
        torch.tensor(v).view(3, 1, 1) for v in (*IMAGENET, CLIP_MEAN, CLIP_STD)
    )
    raw = torch.rand(2, 3, 224, 224)
    got = CLIPInput(48)((raw - mean) / std)
    small = transforms.functional.resize(
        raw, [48, 48], transforms.InterpolationMode.BICUBIC, antialias=True
    )

    torch.testing.assert_close(got, (small - clip_mean) / clip_std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "trained_parts"),
    [
        ("CARFT", {"encoder", "head"}),
        ("CLIPFineTune", {"encoder", "head"}),
        ("CLIPood", {"encoder"}),
        ("CLIPLoRA", {"encoder", "lora"}),
        ("CLIPLinearProbe", {"head"}),
        ("CLIPZeroShot", set()),
    ],
)
def test_each_algorithm_trains_its_own_parameters_only(random_tiny, name, trained_parts):
    algorithm = make(random_tiny, name, head_init="random")
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    train(algorithm, 4)
    after = algorithm.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[0] for k in changed} == trained_parts
    if name == "CLIPLoRA":
        merged = {k for k in changed if k.startswith("encoder.")}
        assert all(k.endswith("attn.in_proj_weight") for k in merged)

    # One --hparams goes to all algorithms of a sweep: a head that is never trained stays zero-shot.
    zero_shot_head = make(random_tiny, "CLIPZeroShot").head.weight
    assert torch.equal(before["head.weight"], zero_shot_head) == ("head" not in trained_parts)


@pytest.mark.parametrize("name", ["CARFT", "FLYP", "CLIPLoRA", "CLIPLinearProbe"])
def test_a_saved_run_predicts_without_the_clip_it_started_from(name, random_tiny, tmp_path):
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
def test_weight_decay_spares_biases_norms_and_embeddings(random_tiny, name, matrix):
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


def test_learning_rates_follow_warm_up_and_schedule(random_tiny):
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


VIT_B_16 = dict(
    embed_dim=512,
    image_resolution=224,
    vision_layers=12,
    vision_width=768,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=512,
    transformer_heads=8,
    transformer_layers=12,
)
FEW = dict(
    vision_layers=2,
    vision_width=192,
    transformer_layers=1,
    transformer_width=64,
    transformer_heads=1,
)
SMALL = {"vision_layers": (1, 1, 1, 1), "vision_width": 16, "image_resolution": 64}
VIT_L_14 = {
    **VIT_B_16,
    "embed_dim": 768,
    "vision_layers": 24,
    "vision_width": 1024,
    "vision_patch_size": 14,
    "transformer_width": 768,
    "transformer_heads": 12,
}
RN50 = {
    **VIT_B_16,
    "embed_dim": 1024,
    "vision_layers": (3, 4, 6, 3),
    "vision_width": 64,
    "vision_patch_size": None,
}


@pytest.mark.parametrize(
    "shape",
    [
        # The whole ones take 4 GB of memory.
        pytest.param({**VIT_B_16, **FEW}, id="ViT, small"),
        pytest.param({**RN50, **FEW, **SMALL}, id="ResNet, small"),
        pytest.param(VIT_B_16, id="ViT-B/16", marks=pytest.mark.slow),
        pytest.param(RN50, id="RN50", marks=pytest.mark.slow),
        pytest.param(VIT_L_14, id="ViT-L/14", marks=pytest.mark.slow),
    ],
)
def test_openais_shapes_load_train_save_reload_and_predict(shape, tmp_path, monkeypatch):
    """As OpenAI publishes them, in TorchScript archives."""
    path = tmp_path / "weights.pt"
    as_archive(random_clip(**shape), path)
    monkeypatch.setitem(openai.OPENAI_WEIGHTS, "RN50", ("RN50.pt", weights.sha256(path)))
    algorithm = make(path, lr=1e-5, amp="off")
    first, second = (algorithm.update(minibatches(seed, n=1, size=224)) for seed in range(2))

    assert first["loss_kl"] == 0.0 and first["context_agreement"] == 1.0
    assert second["loss_kl"] > 0.0 and all(math.isfinite(v) for v in second.values())

    algorithm.eval()
    needed = sum(
        p.nbytes for p in [*algorithm.encoder.state_dict().values(), algorithm.head.weight]
    )
    path.unlink()
    restored = reopened(algorithm, tmp_path).algorithm

    assert (tmp_path / "model.pkl").stat().st_size <= 1.05 * needed

    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(restored.predict(x), algorithm.predict(x))
