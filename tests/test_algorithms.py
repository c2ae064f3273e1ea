"""The algorithms on a small CLIP with random weights, and on OpenAI's exact shapes."""

import io
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import random_clip
from domainbed.algorithms import Algorithm
from PIL import Image
from test_backbone import as_archive
from torchvision import transforms

from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.pictures.clip_input import CLIPInput
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET
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


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_meets_domainbeds_contract(name, random_tiny):
    algorithm = make(random_tiny, name)
    assert isinstance(algorithm, Algorithm)
    for values in train(algorithm, 3):
        assert all(type(v) is float and math.isfinite(v) for v in values.values())
        assert "loss" in values and ("loss_ce" in values or algorithm.trains_text)
    assert algorithm.predict(torch.randn(4, 3, 28, 28)).shape == (4, 3)

    algorithm.update(minibatches(), None)  # as DomainBed calls it
    algorithm.update(minibatches(), unlabeled=[torch.zeros(1)])  # as domain adaptation does
    with pytest.raises(CarftError, match=r"\['step', 'x'\]; expected update\(minibatches\)"):
        algorithm.update(x=[], step=3)


def test_carft_with_kl_weight_zero_equals_fine_tuning_to_the_bit(random_tiny):
    carft = make(random_tiny, "CARFT", kl_weight=0.0)
    plain = make(random_tiny, "CLIPFineTune")
    assert train(carft, 6) == train(plain, 6)
    assert same_state(carft, plain)
    assert not same_state(make(random_tiny), plain)


def test_loss_is_cross_entropy_plus_weighted_kl_of_the_two_encoders(random_tiny):
    algorithm = make(random_tiny, kl_weight=2.5)
    train(algorithm, 3)
    batches = minibatches(9)
    x, y = (torch.cat(part) for part in zip(*batches))
    original = make(random_tiny)
    with torch.no_grad():
        logits, original_logits = (a.context_logits(a.features(x)) for a in (algorithm, original))
        tuned_p, original_p = (z.double().softmax(dim=1) for z in (logits, original_logits))
        kl = (original_p * (original_p.log() - tuned_p.log())).sum(dim=1).mean()
        cross_entropy = torch.nn.functional.cross_entropy(algorithm.predict(x), y)
        agreement = (original_p.argmax(1) == tuned_p.argmax(1)).float().mean()

    values = algorithm.update(batches)
    assert values["loss_ce"] == pytest.approx(float(cross_entropy), rel=1e-5)
    # The step's float32 logits may be summed in another order: a few units in the last place, d.
    # That moves the KL by |p - q|_1 d for either model, and |p - q|_1 <= sqrt(2 KL) (Pinsker).
    d = 8 * torch.finfo(torch.float32).eps * float(logits.abs().max())
    assert values["loss_kl"] == pytest.approx(float(kl), abs=2 * math.sqrt(2 * kl) * d)
    assert values["loss"] == pytest.approx(values["loss_ce"] + 2.5 * values["loss_kl"], rel=1e-6)
    assert values["context_agreement"] == pytest.approx(float(agreement))


def test_carft_measures_drift_every_step_and_fine_tuning_every_few(random_tiny):
    assert all("loss_kl" in values for values in train(make(random_tiny), 4))
    measured = ["loss_kl" in v for v in train(make(random_tiny, "CLIPFineTune"), 5)]
    assert measured == [True, False, True, False, True]
    never = make(random_tiny, "CLIPFineTune", drift_every=0)
    assert never.original is None and "loss_kl" not in train(never, 1)[0]


def test_the_initial_model_equals_clips_zero_shot_classifier(random_tiny):
    """From a picture file, through CLIP's own preprocessing and through DomainBed's and ours."""
    import clip

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, size=(48, 48, 3), dtype=np.uint8))
    loaded = backbone.load(str(random_tiny))
    to_clip, to_domainbed = (
        transforms.Compose([transforms.ToTensor(), transforms.Normalize(*normalisation)])
        for normalisation in ((CLIP_MEAN, CLIP_STD), IMAGENET)
    )
    with torch.no_grad():
        tokens = [clip.tokenize([c.format(k) for k in CLASSES]) for c in CONTEXTS]
        text = torch.stack([loaded.model.encode_text(prompts) for prompts in tokens])
        text = text / text.norm(dim=-1, keepdim=True)
        head = text.mean(dim=0)
        head = head / head.norm(dim=-1, keepdim=True)
        feature = loaded.model.encode_image(to_clip(picture)[None])
        expected = loaded.logit_scale * (feature / feature.norm()) @ head.T
        for name in {*ALGORITHMS} - {"FDAlign"}:  # which needs more contexts
            got = make(random_tiny, name).predict(to_domainbed(picture)[None])
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_pictures_are_resized_between_the_two_normalisations():
    mean, std, clip_mean, clip_std = (
        torch.tensor(v).view(3, 1, 1) for v in (*IMAGENET, CLIP_MEAN, CLIP_STD)
    )
    raw = torch.rand(2, 3, 224, 224)
    got = CLIPInput(48)((raw - mean) / std)
    small = transforms.functional.resize(
        raw, [48, 48], transforms.InterpolationMode.BICUBIC, antialias=True
    )

    torch.testing.assert_close(got, (small - clip_mean) / clip_std, rtol=1e-4, atol=1e-4)


def test_each_algorithm_trains_its_own_parameters_only(random_tiny):
    for name, moves in {
        "CARFT": {"encoder", "head"},
        "CLIPFineTune": {"encoder", "head"},
        "CLIPLinearProbe": {"head"},
        "CLIPZeroShot": set(),
    }.items():
        algorithm = make(random_tiny, name, head_init="random")
        before = {k: v.clone() for k, v in algorithm.state_dict().items()}
        algorithm.train()
        train(algorithm, 4)
        after = algorithm.state_dict()

        assert {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])} == moves
        # One --hparams goes to all algorithms of a sweep: what is never trained stays zero-shot.
        probe = make(random_tiny, "CLIPLinearProbe")
        start = torch.equal(before["head.weight"], probe.head.weight)
        assert start == (name == "CLIPZeroShot")


def test_the_original_is_frozen_in_eval_mode_and_not_part_of_the_module(random_tiny):
    algorithm = make(random_tiny)
    before = {k: v.clone() for k, v in algorithm.original.encoder.state_dict().items()}
    algorithm.train()
    train(algorithm, 5)
    original = algorithm.original.encoder

    assert all(torch.equal(before[k], v) for k, v in original.state_dict().items())
    assert not original.training and algorithm.encoder.training

    parameters = {id(p) for p in algorithm.parameters()}
    assert not parameters & {id(p) for p in original.parameters()}

    optimised = {id(p) for g in algorithm.optimizer.param_groups for p in g["params"]}
    assert optimised == parameters
    assert algorithm.to("meta") is algorithm  # moved along, though it is no part
    assert {p.device.type for p in original.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_saved_run_predicts_without_the_clip_it_started_from(name, random_tiny, tmp_path):
    weights = shutil.copy(random_tiny, tmp_path / "weights.pt")
    algorithm = make(weights, name, average="ema")
    train(algorithm, 2)
    algorithm.eval()
    weights.unlink()
    restored = reopened(algorithm, tmp_path).algorithm

    assert type(restored).__name__ == name and not restored.training

    x = torch.randn(5, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(restored.predict(x), algorithm.predict(x))
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


def test_building_an_algorithm_draws_no_global_random_numbers(random_tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hparams = settings(random_tiny)
    assert algorithms.CARFT.wanted_pictures(hparams) is None  # asked of the CLIP's file
    build(algorithms.CARFT, (3, 28, 28), len(CLASSES), 2, hparams)
    assert torch.equal(torch.rand(3), expected)


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
