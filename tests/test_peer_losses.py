"""The peers' formulas against float64 by hand, their gradients, and their values at the start."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_clip
from test_algorithms import make, train

from domainbed_carft.clips import backbone
from domainbed_carft.method import activations, averages, peer_losses, text_encoder

N, K, D = 6, 4, 5
SMALL_RESNET = dict(
    embed_dim=32, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=16,
    vision_patch_size=None, context_length=77, vocab_size=49408, transformer_width=64,
    transformer_heads=1, transformer_layers=1,
)  # fmt: skip


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def drawn():
    draw = np.random.default_rng(0)
    return lambda *shape: draw.normal(size=shape)


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def by_differences(function, *arguments):
    """Gradients of a scalar function by central differences in float64."""
    assert torch.autograd.gradcheck(function, arguments, eps=1e-6, atol=1e-6)


def test_the_margin_gives_wrong_classes_a_head_start(drawn):
    """CLIPood: the softmax of s (f - lambda t_y) . t_k, which is ours up to a constant a row."""
    f, t = unit(drawn(N, D)), unit(drawn(K, D))
    labels, s, margin = np.arange(N) % K, 30.0, 0.3
    theirs = s * np.stack([(f[n] - margin * t[labels[n]]) @ t.T for n in range(N)])
    logits, classes = torch.tensor(s * f @ t.T), torch.tensor(t)
    ours = peer_losses.margin_logits(
        logits, torch.tensor(labels), classes, torch.tensor(s * margin)
    )

    np.testing.assert_allclose(ours.softmax(1), torch.tensor(theirs).softmax(1), rtol=1e-12)

    same = peer_losses.margin_logits(logits, torch.tensor(labels), classes, torch.tensor(0.0))
    assert torch.equal(same, logits)

    fixed = torch.tensor(labels), classes, torch.tensor(s * margin, dtype=torch.float64)
    by_differences(
        lambda x: F.cross_entropy(peer_losses.margin_logits(x, *fixed), fixed[0]),
        logits.clone().requires_grad_(),
    )


def test_distances_of_weights_and_features(drawn):
    a, b, c, d = drawn(3, 2), drawn(3, 2), drawn(7), drawn(7)
    pairs = list(zip(tensors(a, c), tensors(b, d)))
    expected = ((a - b) ** 2).sum() + ((c - d) ** 2).sum()

    assert peer_losses.weight_distance(pairs).item() == pytest.approx(expected, rel=1e-12)
    by_differences(lambda x, y: peer_losses.weight_distance([(x, y)]), *pairs[0])

    f, f0 = drawn(N, D), drawn(N, D)
    expected = np.mean(2 - 2 * (unit(f) * unit(f0)).sum(axis=1))
    now, start = tensors(f, f0)

    assert peer_losses.feature_distance(now, start).item() == pytest.approx(expected, rel=1e-12)
    by_differences(lambda x: peer_losses.feature_distance(x, start.detach()), now)
    assert peer_losses.feature_distance(now, now).item() == 0


@pytest.mark.parametrize(("axis", "dim"), [("channel", 2), ("token", 1)])
def test_ldifs(drawn, axis, dim):
    found, first = ([drawn(N, 3, D), drawn(N, 3, D)] for _ in range(2))
    scaled = [[a / np.linalg.norm(a, axis=dim, keepdims=True) for a in x] for x in (found, first)]
    expected = np.mean([(a - b) ** 2 for a, b in zip(*scaled)])
    now, start = tensors(*found), tensors(*first)

    assert peer_losses.ldifs(now, start, axis).item() == pytest.approx(expected, rel=1e-12)

    fixed = [tensor.detach() for tensor in start]
    by_differences(lambda *x: peer_losses.ldifs(x, fixed, axis), *now)
    assert peer_losses.ldifs(now, now, axis).item() == 0


def test_lipsum(drawn):
    f, f0, u, s = drawn(N, D), drawn(N, D), drawn(9, D), 20.0
    gaps = s * (unit(f) - unit(f0)) @ unit(u).T
    expected = np.mean([sum(gaps[n] ** 2) / (2 * 9) for n in range(N)])
    now, start, words = tensors(f, f0, u)
    scale = torch.tensor(s, dtype=torch.float64)

    assert peer_losses.lipsum(now, start, words, scale).item() == pytest.approx(expected, rel=1e-12)

    fixed = start.detach(), words.detach(), scale
    by_differences(lambda x: peer_losses.lipsum(x, *fixed), now)
    assert peer_losses.lipsum(now, now, words, scale).item() == 0


def test_miro(drawn):
    found, first = ([drawn(N, 3, D), drawn(N, 2, D)] for _ in range(2))
    raw = [drawn(D), drawn(D)]
    variances = [np.log1p(np.exp(b)) + 1e-5 for b in raw]
    expected = sum(
        np.mean((z - z0) ** 2 / v + np.log(v)) / 2 for z, z0, v in zip(found, first, variances)
    )
    now, start, b = tensors(*found), tensors(*first), tensors(*raw)

    assert peer_losses.variational(now, start, b).item() == pytest.approx(expected, rel=1e-12)

    fixed = [tensor.detach() for tensor in start]
    by_differences(lambda *x: peer_losses.variational(x[:2], fixed, x[2:]), *now, *b)

    at_start = [peer_losses.raw_variance(0.1, D) for _ in range(2)]
    assert F.softplus(at_start[0])[0].item() + 1e-5 == pytest.approx(0.1, rel=1e-6)

    both = [tensor.float() for tensor in now]
    value = peer_losses.variational(both, both, at_start).item()
    assert value == pytest.approx(2 * np.log(0.1) / 2, rel=1e-5)  # nothing but the variances


@pytest.mark.parametrize("targets", ["same-class", "diagonal"])
def test_flyp(drawn, targets):
    f, t, s, labels = unit(drawn(N, D)), unit(drawn(N, D)), 10.0, np.arange(N) // 2
    logits = s * f @ t.T
    losses = []
    for table in (logits, logits.T):
        logp = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        for n in range(N):
            partners = [n] if targets == "diagonal" else np.flatnonzero(labels == labels[n])
            losses.append(-np.mean(logp[n, partners]))

    now, words = tensors(f, t)
    scale = torch.tensor(s, dtype=torch.float64)
    loss = peer_losses.contrastive(now, words, torch.tensor(labels), scale, targets)

    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-6)

    of = torch.tensor(labels)
    scale.requires_grad_()
    by_differences(lambda x, y, z: peer_losses.contrastive(x, y, of, z, targets), now, words, scale)


# Where they look


def test_places_are_the_quarters_of_the_encoder_and_the_outputs_are_its_own(random_tiny):
    encoder = backbone.load(str(random_tiny)).model.visual
    blocks = encoder.transformer.resblocks
    depth = len(blocks)
    expected = [blocks[-(-depth * quarter // 4) - 1] for quarter in (1, 2, 3, 4)]

    assert activations.compared_modules(encoder, "miro") == [encoder.conv1, *expected]

    modules = activations.compared_modules(encoder, "ldifs")
    assert modules == [encoder.ln_pre, *expected]

    x = torch.randn(2, 3, encoder.input_resolution, encoder.input_resolution)
    with torch.no_grad(), activations.record_activations(encoder, modules) as seen:
        features = encoder(x)
    tokens = encoder.positional_embedding.shape[0]

    assert {tuple(one.shape[:2]) for one in seen} == {(2, tokens)}

    with torch.no_grad():
        again = encoder.ln_post(seen[-1][:, 0]) @ encoder.proj  # the class token after all blocks
        torch.testing.assert_close(again, features)
        encoder(x)

    assert len(seen) == 5  # no hook is left behind


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
        encoded = activations.encode(encoder, pictures, False, ["miro"])
    expected = [output.flatten(2).permute(0, 2, 1) for output in outputs]

    assert len(encoded[1]["miro"]) == 5
    assert all(map(torch.equal, encoded[1]["miro"], expected))


def test_miro_trains_on_a_resnet(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save(random_clip(**SMALL_RESNET).state_dict(), path)
    algorithm = make(path, "CLIPMIRO")
    channels = [variance.numel() for variance in algorithm.terms.miro_variances]

    assert channels == [16, 64, 128, 256, 512]  # of the stem's end, not of conv1's 8

    values = train(algorithm, 2)
    assert values[0]["loss_miro"] == pytest.approx(5 * np.log(0.1) / 2, rel=1e-4)


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


def test_running_averages_are_their_closed_forms(drawn):
    weights, total = drawn(41), 40
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
