"""The peers' formulas against float64 by hand, their gradients, and their values at the start."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_clip
from test_algorithms import make, minibatches, train

from domainbed_carft.clips import backbone
from domainbed_carft.method import (
    algorithms,
    averages,
    clipood,
    encoders,
    flyp,
    penalties,
    text_encoder,
)

N = 6
K = 4
D = 5
SMALL_RESNET = dict(
    embed_dim=32,
    image_resolution=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=16,
    vision_patch_size=None,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def normal():
    """Standard normal arrays of a shape, from one generator."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.normal(size=shape)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def check_gradients(function, *arguments):
    """Gradients of a scalar function against central differences in float64."""
    assert torch.autograd.gradcheck(function, arguments, eps=1e-6, atol=1e-6)


def test_the_margin_is_added_to_wrong_classes(normal):
    """CLIPood: the softmax of s (f - lambda t_y) . t_k, which is ours up to a constant a row."""
    features = unit(normal(N, D))
    texts = unit(normal(K, D))
    labels = np.arange(N) % K
    scale = 30.0
    margin = 0.3
    rows = [(features[n] - margin * texts[labels[n]]) @ texts.T for n in range(N)]
    expected = torch.tensor(scale * np.stack(rows))

    logits = torch.tensor(scale * features @ texts.T)
    label_tensor = torch.tensor(labels)
    class_texts = torch.tensor(texts)
    shift = scalar(scale * margin)
    shifted = clipood.margin_logits(logits, label_tensor, class_texts, shift)

    np.testing.assert_allclose(shifted.softmax(1), expected.softmax(1), rtol=1e-12)

    unshifted = clipood.margin_logits(logits, label_tensor, class_texts, scalar(0.0))
    assert torch.equal(unshifted, logits)

    def loss(logits):
        shifted = clipood.margin_logits(logits, label_tensor, class_texts, shift)
        return F.cross_entropy(shifted, label_tensor)

    check_gradients(loss, logits.clone().requires_grad_())


def test_l2_sp_equals_numpys_distance_of_weights(normal):
    matrix = normal(3, 2)
    matrix_0 = normal(3, 2)
    bias = normal(7)
    bias_0 = normal(7)
    pairs = list(zip(tensors(matrix, bias), tensors(matrix_0, bias_0)))
    expected = ((matrix - matrix_0) ** 2).sum() + ((bias - bias_0) ** 2).sum()

    assert penalties.weight_distance(pairs).item() == pytest.approx(expected, rel=1e-12)
    check_gradients(lambda x, y: penalties.weight_distance([(x, y)]), *pairs[0])


def test_feature_distillation_equals_numpys_distance(normal):
    f = normal(N, D)
    f0 = normal(N, D)
    expected = np.mean(2 - 2 * (unit(f) * unit(f0)).sum(axis=1))
    features, features_0 = tensors(f, f0)
    distance = penalties.feature_distance(features, features_0)

    assert distance.item() == pytest.approx(expected, rel=1e-12)
    check_gradients(lambda x: penalties.feature_distance(x, features_0.detach()), features)
    assert penalties.feature_distance(features, features).item() == 0


@pytest.mark.parametrize(("axis", "dim"), [("channel", 2), ("token", 1)])
def test_ldifs_equals_numpys(normal, axis, dim):
    tuned, original = ([normal(N, 3, D), normal(N, 3, D)] for _ in range(2))
    scaled = [
        [array / np.linalg.norm(array, axis=dim, keepdims=True) for array in arrays]
        for arrays in (tuned, original)
    ]
    expected = np.mean([(a - b) ** 2 for a, b in zip(*scaled)])
    activations = tensors(*tuned)
    activations_0 = [tensor.detach() for tensor in tensors(*original)]
    distance = penalties.ldifs(activations, activations_0, axis)

    assert distance.item() == pytest.approx(expected, rel=1e-12)
    check_gradients(lambda *x: penalties.ldifs(x, activations_0, axis), *activations)
    assert penalties.ldifs(activations, activations, axis).item() == 0


def test_the_default_of_ldifs_is_as_much_smaller_than_the_released_code_as_the_page_says():
    """On "tiny" with weights that have moved by a fifth of their size."""
    original = backbone.load("tiny").model.visual
    tuned = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=generator)
        pictures = torch.randn(16, 3, 48, 48, generator=generator)
        now, start = (
            encoders.encode(
                encoder, pictures, False, {"ldifs": penalties.LDIFSPenalty.places}
            ).activations["ldifs"]
            for encoder in (tuned, original)
        )
    ours, released = (float(penalties.ldifs(now, start, axis)) for axis in ("channel", "token"))

    page = (Path(__file__).parents[1] / "docs" / "methods" / "ldifs.md").read_text("utf-8")
    (stated_share,) = re.findall(r"of it on ViT-B/16, and (0\.\d+) on `tiny`", page)
    assert ours / released == pytest.approx(float(stated_share), rel=0.1)


def test_lipsum_equals_numpys(normal):
    f = normal(N, D)
    f0 = normal(N, D)
    u = normal(9, D)
    gaps = 20.0 * (unit(f) - unit(f0)) @ unit(u).T
    expected = np.mean([sum(gaps[n] ** 2) / (2 * 9) for n in range(N)])
    features, features_0, texts = tensors(f, f0, u)
    scale = scalar(20.0)
    loss = penalties.lipsum(features, features_0, texts, scale)

    assert loss.item() == pytest.approx(expected, rel=1e-12)
    check_gradients(
        lambda x: penalties.lipsum(x, features_0.detach(), texts.detach(), scale), features
    )
    assert penalties.lipsum(features, features, texts, scale).item() == 0


def test_miro_equals_numpys(normal):
    tuned, original = ([normal(N, 3, D), normal(N, 2, D)] for _ in range(2))
    raw = [normal(D), normal(D)]
    variances = [np.log1p(np.exp(b)) + 1e-5 for b in raw]
    expected = sum(
        np.mean((z - z0) ** 2 / v + np.log(v)) / 2 for z, z0, v in zip(tuned, original, variances)
    )
    activations = tensors(*tuned)
    activations_0 = [tensor.detach() for tensor in tensors(*original)]
    raw_variances = tensors(*raw)
    loss = penalties.variational(activations, activations_0, raw_variances)

    assert loss.item() == pytest.approx(expected, rel=1e-12)
    check_gradients(
        lambda *x: penalties.variational(x[:2], activations_0, x[2:]),
        *activations,
        *raw_variances,
    )


def test_the_initial_miro_loss_is_that_of_its_variances(normal):
    initial = [penalties.raw_variance(0.1, D) for _ in range(2)]
    assert F.softplus(initial[0])[0].item() + 1e-5 == pytest.approx(0.1, rel=1e-6)

    activations = [torch.tensor(normal(N, 3, D), dtype=torch.float32) for _ in range(2)]
    value = penalties.variational(activations, activations, initial).item()
    assert value == pytest.approx(2 * np.log(0.1) / 2, rel=1e-5)


@pytest.mark.parametrize("targets", ["same-class", "diagonal"])
def test_flyp_equals_numpys_contrastive_loss(normal, targets):
    f = unit(normal(N, D))
    t = unit(normal(N, D))
    labels = np.arange(N) // 2
    logits = 10.0 * f @ t.T
    losses = []
    for table in (logits, logits.T):
        logp = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        for n in range(N):
            partners = [n] if targets == "diagonal" else np.flatnonzero(labels == labels[n])
            losses.append(-np.mean(logp[n, partners]))

    features, texts = tensors(f, t)
    scale = scalar(10.0)
    label_tensor = torch.tensor(labels)
    loss = flyp.contrastive(flyp.pair_logits(features, texts, scale), label_tensor, targets)

    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-6)
    check_gradients(
        lambda x, y, z: flyp.contrastive(flyp.pair_logits(x, y, z), label_tensor, targets),
        features,
        texts,
        scale.requires_grad_(),
    )


def test_carots_terms_equal_numpys(normal):
    student = 3.0 * normal(N, N)
    teacher = 3.0 * normal(N, N)
    expected = 0.0
    for logits, targets in ((student, teacher), (student.T, teacher.T)):
        q = np.exp(targets) / np.exp(targets).sum(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected -= np.mean((q * log_p).sum(axis=1))
    student_logits, teacher_logits = tensors(student, teacher)
    loss = flyp.contrastive_distillation(student_logits, teacher_logits)

    assert loss.item() == pytest.approx(expected, rel=1e-12)
    check_gradients(
        lambda x: flyp.contrastive_distillation(x, teacher_logits.detach()), student_logits
    )

    p = normal(D, K)
    (projection,) = tensors(p)
    gap = np.sqrt(((p.T @ p - np.eye(K)) ** 2).sum())
    assert flyp.orthogonality(projection).item() == pytest.approx(gap, rel=1e-12)
    check_gradients(flyp.orthogonality, projection)

    rotation = np.linalg.qr(p)[0]
    assert flyp.orthogonality(torch.tensor(rotation)).item() == pytest.approx(0, abs=1e-12)


# Where they compare activations


def test_activations_are_taken_after_each_quarter_of_the_encoder(random_tiny):
    encoder = backbone.load(str(random_tiny)).model.visual
    blocks = encoder.transformer.resblocks
    depth = len(blocks)
    expected = [blocks[-(-depth * quarter // 4) - 1] for quarter in (1, 2, 3, 4)]

    assert penalties.MIROPenalty.places(encoder) == [encoder.conv1, *expected]

    modules = penalties.LDIFSPenalty.places(encoder)
    assert modules == [encoder.ln_pre, *expected]

    x = torch.randn(2, 3, encoder.input_resolution, encoder.input_resolution)
    with torch.no_grad(), encoders.record_activations(encoder, modules) as outputs:
        features = encoder(x)
    tokens = encoder.positional_embedding.shape[0]

    assert {tuple(output.shape[:2]) for output in outputs} == {(2, tokens)}

    with torch.no_grad():
        class_tokens = outputs[-1][:, 0]  # after all blocks
        head_output = encoder.ln_post(class_tokens) @ encoder.proj
        torch.testing.assert_close(head_output, features)
        encoder(x)

    assert len(outputs) == 5  # no hook is left behind


def test_miro_on_a_resnet_compares_the_end_of_the_stem_and_the_four_stages():
    """Against activations by hooks made by hand, in the shape (N, T, C) of a ViT's."""
    encoder = random_clip(**SMALL_RESNET).visual
    modules = [encoder.avgpool, *(getattr(encoder, f"layer{stage}") for stage in (1, 2, 3, 4))]
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for module in modules
    ]
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        encoder(pictures)
    for hook in hooks:
        hook.remove()

    with torch.no_grad():
        encoded = encoders.encode(encoder, pictures, False, {"miro": penalties.MIROPenalty.places})
    expected = [output.flatten(2).permute(0, 2, 1) for output in outputs]

    assert len(encoded.activations["miro"]) == 5
    assert all(map(torch.equal, encoded.activations["miro"], expected))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The weights of a small random ResNet."""
    path = tmp_path_factory.mktemp("resnet") / "resnet.pt"
    torch.save(random_clip(**SMALL_RESNET).state_dict(), path)
    return path


def test_miro_trains_on_a_resnet(resnet):
    algorithm = make(resnet, "CLIPMIRO")
    channels = [variance.numel() for variance in algorithm.terms.miro_variances]

    assert channels == [16, 64, 128, 256, 512]  # of the stem's end, not of conv1's 8

    values = train(algorithm, 2)
    assert values[0]["loss_miro"] == pytest.approx(5 * np.log(0.1) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("CARFT", {}),
        ("CLIPFineTune", {}),
        ("CLIPFineTune", {"head_init": "random"}),
        ("CLIPLinearProbe", {}),
        ("CaRot", {}),
    ],
)
def test_a_resnet_learns_at_the_rates_of_the_sweep_baselines(resnet, name, overrides):
    """On one batch the loss falls, and batch norm keeps CLIP's statistics."""
    rate = algorithms.hparam_values(name, "PACS")["lr"]
    algorithm = make(resnet, name, lr=rate, warmup_steps=0, **overrides)
    statistics = {n: b.clone() for n, b in algorithm.encoder.named_buffers()}
    losses = []
    for _ in range(6):
        torch.manual_seed(0)  # CaRot draws captions
        values = algorithm.update(minibatches(0))
        losses.append(values.get("loss_contrastive", values["loss"]))

    assert losses[-1] < losses[0]
    assert all(torch.equal(b, statistics[n]) for n, b in algorithm.encoder.named_buffers())


def test_the_text_encoder_by_itself_is_clips_also_of_short_texts(random_tiny):
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


# Averages


def running(kind, weights, **hparams):
    """The average after all of w_0, w_1, ... by the shares."""
    settings = {"average": kind, "total_steps": len(weights) - 1, "lp_steps": 0, **hparams}
    average = weights[0]
    for step, now in enumerate(weights[1:], 1):
        average = average + averages.share(step, settings) * (now - average)
    return average


def test_weight_averages_equal_their_closed_forms(normal):
    weights = normal(41)
    total = 40
    assert running("sma", weights, average_start=11) == pytest.approx(weights[11:].mean())
    assert running("sma", weights, average_start=40) == weights[40]

    m = 0.9
    by_hand = m**total * weights[0]
    by_hand += sum((1 - m) * m ** (total - t) * weights[t] for t in range(1, total + 1))

    assert running("ema", weights, ema=m) == pytest.approx(by_hand)

    for b in (0.1, 0.5, 1.0):
        at = (np.arange(total + 1) + 0.5) / (total + 1)
        density = at ** (b - 1) * (1 - at) ** (b - 1)
        expected = (density * weights).sum() / density.sum()
        assert running("beta", weights, beta=b) == pytest.approx(expected)
