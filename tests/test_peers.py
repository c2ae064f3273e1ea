"""CAR-FT's peers: training, prediction, and rejected hyperparameters."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_clip
from test_algorithms import FEW, RN50, SMALL, make, minibatches, reopened, train

from domainbed_carft.clips import backbone
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import (
    algorithms,
    averages,
    encoders,
    fd_align,
    objective,
    penalties,
    prompts,
    resolution,
    starft,
    text_encoder,
)

IMAGES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(9))


def logits(algorithm):
    algorithm.eval()
    with torch.no_grad():
        class_logits = algorithm.predict(IMAGES)
    algorithm.train()
    return class_logits


@pytest.mark.parametrize(
    ("name", "overrides", "is_folded"),
    [
        ("CARFT", {}, True),
        ("CARFT", {"head_scale": "outside"}, False),
        ("CARFT", {"head_init": "random"}, False),
        ("CLIPLinearProbe", {}, False),
    ],
)
def test_only_a_head_that_contains_the_scale_trains_its_bias(
    random_tiny, name, overrides, is_folded
):
    algorithm = make(random_tiny, name, **overrides)
    factor = 1.0 if is_folded else float(algorithm.logit_scale)
    assert float(algorithm.head_factor) == pytest.approx(factor)
    train(algorithm, 1)
    assert bool(algorithm.head.bias.abs().sum() > 0) == is_folded


def test_lp_ft_trains_the_head_and_then_the_encoder_with_a_new_warm_up(random_tiny):
    algorithm = make(random_tiny, "CLIPLPFT", lp_steps=3)
    projection = algorithm.encoder.proj.detach().clone()
    rates = []
    for seed in range(5):
        rates.append(algorithm.optimizer.param_groups[0]["lr"])
        algorithm.update(minibatches(seed))
        assert torch.equal(algorithm.encoder.proj, projection) == (seed < 3)

    rate = algorithm.hparams["lr"]
    assert rates == pytest.approx([rate / 3] * 4 + [2 * rate / 3])


def test_probing_moves_class_embeddings_by_the_rate_for_heads_with_and_without_the_scale(
    random_tiny,
):
    """A first step of Adam moves each weight by its rate, up to the sign of the gradient."""
    for head_scale in ("folded", "outside"):
        algorithm = make(random_tiny, "CLIPLPFT", lp_steps=3, lp_lr=1e-2, head_scale=head_scale)
        is_folded = head_scale == "folded"
        scale = algorithm.logit_scale if is_folded else torch.tensor(1.0)
        start = algorithm.head.weight.detach() / scale
        algorithm.update(minibatches(0))
        moved = (algorithm.head.weight.detach() / scale - start).abs()
        torch.testing.assert_close(moved.median(), torch.tensor(1e-2), rtol=1e-3, atol=0)


def test_cosine_of_lp_ft_ends_at_zero_with_the_last_step(random_tiny):
    warmup, probing, total = 2, 3, 10
    algorithm = make(
        random_tiny, "CLIPLPFT", lp_steps=probing, total_steps=total, warmup_steps=warmup
    )
    rates = []
    for seed in range(total):
        algorithm.update(minibatches(seed))
        rates.append(algorithm.optimizer.param_groups[0]["lr"])

    cosine = [(1 + np.cos(np.pi * step / 5)) / 2 for step in range(6)]
    assert rates[probing + warmup - 1 :] == pytest.approx(
        [algorithm.hparams["lr"] * share for share in cosine], abs=1e-12
    )


@pytest.mark.parametrize("kind", ["sma", "ema", "beta"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_saved_weights_are_the_average_interpolated_with_the_original(random_tiny, kind, alpha):
    overrides = {"average": kind, "average_start": 2, "ema": 0.7, "wise_alpha": alpha}
    algorithm = make(random_tiny, **overrides)
    twin = make(random_tiny)
    expected = {n: p.detach().clone() for n, p in twin.named_parameters()}
    start = copy.deepcopy(expected)
    for step in range(1, 6):
        for trained in (algorithm, twin):
            trained.update(minibatches(step))
        weight = averages.averaging_weight(step, algorithm.hparams)
        for name, parameter in twin.named_parameters():
            expected[name] += weight * (parameter.detach() - expected[name])

    mixed = {n: (1 - alpha) * start[n] + alpha * expected[n] for n in expected}
    state = algorithm.state_dict()
    for name, tensor in mixed.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_trains_in_bf16(random_tiny, name):
    exact = train(make(random_tiny, name), 2)
    rounded = train(make(random_tiny, name, amp="bf16"), 2)
    for expected, actual in zip(exact, rounded):
        assert expected["loss"] != actual["loss"]
        assert actual["loss"] == pytest.approx(expected["loss"], rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head_init": "random", "wise_alpha": 0.5}, "wise_alpha is 0.5, expected 1 with head_"),
        ({"average": "sma", "average_start": 20}, "average_start is 20, expected less than total"),
        ({"algorithm": "CLIPood", "lp_steps": 3}, "lp_steps is 3, expected 0: only CLIPLPFT"),
        ({"algorithm": "FLYP", "margin": 0.1}, "margin is 0.1, expected 0: only CLIPood has"),
        ({"algorithm": "CARFT", "contexts": ["a {}"]}, "a list of 1 template; expected at least"),
        ({"algorithm": "StarFT", "contexts": ["a {}"]}, "a list of 1 template; expected at least"),
        ({"algorithm": "FLYP", "micro_batch": 4}, "micro_batch is 4, expected 0: FLYP contrasts"),
        ({"algorithm": "CaRot", "micro_batch": 4}, "micro_batch is 4, expected 0: CaRot contrasts"),
        ({"algorithm": "CLIPLoRA", "lora_rank": 0}, "lora_rank is 0, expected at least 1: CLIPL"),
        (
            {"algorithm": "CLIPLPFT", "lp_steps": 18},
            "expected less than total_steps - lp_steps = 2; otherwise the learning rate",
        ),
        (
            {"algorithm": "CLIPLPFT", "lp_steps": 20},
            "lp_steps is 20, expected less than total_steps = 20",
        ),
        ({"class_names": []}, r"class_names is \[\], expected 'dataset:NAME', a shipped list"),
        ({"class_names": ["cat", "dog"]}, "gives 2 class names .* 3 classes"),
        ({"beta": 11}, "beta is 11, expected a number in"),
        ({"wise_alpha": 1.5}, r"wise_alpha is 1\.5, expected a number in \[0, 1\]"),
        ({"lora_dropout": 1}, r"lora_dropout is 1, expected a number in \[0, 1\)"),
        ({"swad_tolerance": 0}, "swad_tolerance is 0, expected a whole number >= 1"),
        ({"lr": 0}, "lr is 0, expected a number > 0"),
        ({"kl_direction": "forward"}, "kl_direction is 'forward', expected one of 'original"),
        ({"average": "ema", "swad": True}, "average is 'ema', expected 'none' with this DomainB"),
        ({"algorithm": "FLYP", "lora_rank": 2}, "lora_rank is 2, expected 0: FLYP has no LoRA"),
        ({"algorithm": "CLIPLinearProbe", "lora_rank": 2}, "expected 0: CLIPLinearProbe has no"),
        ({"sp_weight": 0.5, "lora_rank": 2}, r"sp_weight is 0\.5, expected 0 with LoRA"),
        ({"compile_blocks": True, "lora_rank": 2}, "compile_blocks is True, expected False with"),
    ],
)
def test_contradictory_hparams_are_rejected(random_tiny, overrides, message):
    with pytest.raises(CarftError, match=message):
        make(random_tiny, **overrides)


def test_missing_class_names_are_an_error_that_names_the_hparam():
    with pytest.raises(CarftError, match="set the hparam class_names to a list .*'dataset:PACS'"):
        algorithms.CARFT((3, 28, 28), 3, 2, {"clip_backbone": "tiny"})


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("CLIPFineTune", {}), ("FLYP", {}), ("CARFT", {"kl_weight": 0, "ldifs_weight": 10.0})],
)
def test_single_context_is_valid_without_the_kl(random_tiny, tmp_path, name, overrides):
    single = ["a photo of a {}."]
    algorithm = make(random_tiny, name, contexts=single, **overrides)
    values = train(algorithm, 2)
    assert all({"loss_kl", "context_agreement"}.isdisjoint(step) for step in values)
    assert reopened(algorithm, tmp_path).contexts == single


def test_flyp_head_follows_changes_of_the_text_encoder(random_tiny):
    algorithm = make(random_tiny, "FLYP")
    start = copy.deepcopy(algorithm.state_dict())
    before = logits(algorithm)
    train(algorithm, 2)

    assert not torch.allclose(logits(algorithm), before)

    algorithm.load_state_dict(start)
    torch.testing.assert_close(logits(algorithm), before)


def compute_average(kind, weights, **hparams):
    """Return the average after w_0, w_1, ..., computed step by step."""
    settings = {"average": kind, "total_steps": len(weights) - 1, "lp_steps": 0, **hparams}
    average = weights[0]
    for step, now in enumerate(weights[1:], 1):
        average = average + averages.averaging_weight(step, settings) * (now - average)
    return average


def test_weight_averages_equal_their_closed_forms():
    weights = np.random.default_rng(0).normal(size=41)
    total = 40
    assert compute_average("sma", weights, average_start=11) == pytest.approx(weights[11:].mean())
    assert compute_average("sma", weights, average_start=40) == weights[40]
    # LP-FT averages only steps of its second phase.
    after_probing = compute_average("sma", weights, average_start=0, lp_steps=10)
    assert after_probing == pytest.approx(weights[11:].mean())

    m = 0.9
    expected = m**total * weights[0]
    expected += sum((1 - m) * m ** (total - t) * weights[t] for t in range(1, total + 1))
    assert compute_average("ema", weights, ema=m) == pytest.approx(expected)

    for b in (0.1, 0.5, 1.0):
        at = (np.arange(total + 1) + 0.5) / (total + 1)
        density = at ** (b - 1) * (1 - at) ** (b - 1)
        expected = (density * weights).sum() / density.sum()
        assert compute_average("beta", weights, beta=b) == pytest.approx(expected)
    hparams = {"average": "beta", "total_steps": total, "beta": 0.5}
    assert averages.averaging_weight(total + 1, hparams) == 0


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Return the path of a small random ResNet."""
    path = tmp_path_factory.mktemp("resnet") / "resnet.pt"
    torch.save(random_clip(**{**RN50, **FEW, **SMALL}).state_dict(), path)
    return path


def test_penalties_compare_stem_and_four_stages_of_a_resnet(resnet):
    encoder = backbone.load(str(resnet)).model.visual
    modules = [encoder.avgpool, *(getattr(encoder, f"layer{stage}") for stage in (1, 2, 3, 4))]
    expected = []
    for module in modules:
        module.register_forward_hook(
            lambda module, inputs, output: expected.append(output.flatten(2).permute(0, 2, 1))
        )
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        encoded = encoders.encode(encoder, images, False, {"miro": penalties.MIROPenalty.places})

    assert len(encoded.activations["miro"]) == 5
    assert all(map(torch.equal, encoded.activations["miro"], expected))

    algorithm = make(resnet, "CLIPMIRO")
    statistics = {name: buffer.clone() for name, buffer in algorithm.encoder.named_buffers()}
    rates = [group["lr"] for group in algorithm.optimizer.param_groups]
    assert rates[-1] / rates[0] == pytest.approx(10)  # MIRO's variances
    assert algorithm.optimizer.param_groups[-1]["weight_decay"] == 0
    values = train(algorithm, 2)
    assert values[0]["loss_miro"] == pytest.approx(5 * np.log(0.1) / 2, rel=1e-4)
    assert all(torch.equal(b, statistics[n]) for n, b in algorithm.encoder.named_buffers())


def test_lora_of_a_resnet_is_rejected(resnet):
    with pytest.raises(CarftError, match="lora_rank is 2, which needs .* Set lora_rank to 0"):
        make(resnet, "CLIPLoRA")


def test_text_encoder_equals_clip_for_full_and_short_texts(random_tiny):
    import clip

    loaded = backbone.load(str(random_tiny))
    model = loaded.model
    tokens = clip.tokenize(["a cat", "a dog that is asleep"], model.context_length)
    encoder = text_encoder.TextEncoder(model)
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens), model.encode_text(tokens))
        torch.testing.assert_close(encoder(tokens[:, :9]), model.encode_text(tokens))

    torch.manual_seed(3)
    first, second = (text_encoder.RandomTexts(loaded)(5, 8) for _ in range(2))
    assert first.shape == (5, model.text_projection.shape[1]) and not torch.equal(first, second)


def test_lipsum_draws_texts_of_eight_words_of_the_whole_vocabulary(random_tiny):
    algorithm = make(random_tiny, "LipsumFT")
    (penalty,) = algorithm.terms.active
    drawn = []
    encoder = penalty.random_texts.encoder
    encoder.register_forward_pre_hook(lambda module, inputs: drawn.append(inputs[0]))
    algorithm.update(minibatches())

    (tokens,) = drawn
    start, end = 49406, 49407  # of a text, in CLIP's vocabulary
    assert tokens.shape == (80, 1 + 8 + 1)
    assert set(tokens[:, 0].tolist()) == {start} and set(tokens[:, -1].tolist()) == {end}
    words = tokens[:, 1:-1]
    assert 0 <= words.min() < 500 and start - 500 < words.max() < start


def test_context_kl_is_finite_at_scale_100_in_bf16_autocast():
    original = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    contexts = torch.nn.functional.normalize(original[:7], dim=-1)
    encoder = torch.nn.Linear(32, 32, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(1e3 * original)
        assert features.dtype == torch.bfloat16
        logits = [objective.context_logits(f, contexts, 100.0) for f in (-original, features)]
        kl = objective.context_kl(*logits, objective.KL_DIRECTIONS[0])

    kl.backward()
    assert torch.isfinite(kl) and torch.isfinite(encoder.weight.grad).all()
    assert logits[0].dtype == torch.float32


def test_context_agreement_is_the_share_of_equal_top_contexts():
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.1], [0.2, 0.1]])
    assert float(objective.context_agreement(a, b)) == 0.75


def test_cluster_centres_ignore_unusual_contexts():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(3, 32))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    usual = np.concatenate([c + 1e-3 * rng.normal(size=(10, 32)) for c in centres])
    unusual = 4 * rng.normal(size=(10, 32))
    contexts = torch.tensor(np.concatenate([unusual, usual]), dtype=torch.float32)
    clusters = fd_align.cluster_centres(contexts, 3)
    nearest = torch.cdist(torch.tensor(centres, dtype=torch.float32), clusters).min(dim=1).values

    assert clusters.shape == (3, 32)
    assert float(nearest.max()) < 5e-3


@pytest.mark.parametrize("dataset", [*TASKS, "PACS", "EmojiStyles", "ImageNet"])
def test_fd_align_has_enough_contexts_by_default_and_refuses_few(dataset):
    """20 centres are made from three quarters of at least 27 contexts."""
    resolved = resolution.resolve(algorithms.FDAlign, dataset, {})
    assert not resolved.problems
    assert len(prompts.parse_contexts(resolved.values["contexts"])) * 3 // 4 >= fd_align.CLUSTERS

    (problem,) = resolution.resolve(algorithms.FDAlign, dataset, {"contexts": "imagenet7"}).problems
    assert "a list of 7 templates; expected at least 27, all different" in str(problem)
    templates = [f"photo {number} of a {{}}" for number in range(27)]
    assert not resolution.resolve(algorithms.FDAlign, dataset, {"contexts": templates}).problems


def test_kl_over_other_captions_is_zero_if_all_images_have_the_same_class():
    logits, labels = torch.randn(6, 6), torch.zeros(6)
    masked = starft.mask_own_class(logits, labels, labels)
    assert float(objective.context_kl(masked, masked + 1, objective.KL_DIRECTIONS[0])) == 0
