"""The formulas against float64 numpy written from them, and their invariants."""

import numpy as np
import pytest
import torch

from domainbed_carft.method import objective

M, K, N, D = 7, 5, 11, 32
SCALE = 100.0


def unit(v):
    return v / np.sqrt((v**2).sum(axis=-1, keepdims=True))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_weights(text):
    text = unit(text)
    return unit(text.mean(axis=0)), unit(text.mean(axis=1))


def numpy_loss(text, original, tuned, labels, head, kl_weight, direction, scale):
    """Cross-entropy and KL from the text of reference: sums over contexts, means over pictures."""
    _, w_ctx = numpy_weights(text)
    class_p = softmax(SCALE * unit(tuned) @ head.T)
    cross_entropy = -np.log(class_p[np.arange(len(labels)), labels]).mean()
    p0, p1 = (softmax(scale * unit(f) @ w_ctx.T) for f in (original, tuned))
    if direction == "fine-tuned||original":
        p0, p1 = p1, p0
    kl = (p0 * (np.log(p0) - np.log(p1))).sum(axis=1).mean()
    return cross_entropy + kl_weight * kl, cross_entropy, kl


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(M, K, D)) + 2 * rng.normal(size=D)  # near-parallel, as CLIP's are
    original = rng.normal(size=(N, D))
    tuned = original + 0.3 * rng.normal(size=(N, D))
    return text, original, tuned, rng.integers(0, K, size=N)


def torch_loss(text, original, tuned, labels, kl_weight, direction, scale, dtype=torch.float32):
    text, original, tuned = (torch.as_tensor(a, dtype=dtype) for a in (text, original, tuned))
    weights = objective.zero_shot_weights(text)
    logits = SCALE * torch.nn.functional.normalize(tuned, dim=-1) @ weights.classes.T
    contexts = [objective.context_logits(f, weights.contexts, scale) for f in (original, tuned)]
    return objective.carft_loss(
        logits, torch.as_tensor(labels), *contexts, kl_weight=kl_weight, kl_direction=direction
    )


def test_weights_equal_numpy(data):
    text = data[0]
    ours = objective.zero_shot_weights(torch.as_tensor(text, dtype=torch.float32))
    for got, expected in zip(ours, numpy_weights(text)):
        assert np.abs(got.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("direction", objective.KL_DIRECTIONS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 3.5])
def test_loss_equals_numpy(data, direction, scale, kl_weight):
    text, original, tuned, labels = data
    head, _ = numpy_weights(text)
    expected = numpy_loss(text, original, tuned, labels, head, kl_weight, direction, scale)
    ours = torch_loss(text, original, tuned, labels, kl_weight, direction, scale)
    for got, value in zip(ours, expected):
        assert float(got) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("direction", objective.KL_DIRECTIONS)
def test_gradient_equals_finite_differences_of_numpy(data, direction):
    text, original, tuned, labels = data
    head, w_ctx = numpy_weights(text)
    features = torch.tensor(tuned, requires_grad=True)
    logits = SCALE * torch.nn.functional.normalize(features, dim=-1) @ torch.tensor(head).T
    # the product is in float32 by design; float64 here needs it written out
    to_logits = lambda f: 10.0 * torch.nn.functional.normalize(f, dim=-1) @ torch.tensor(w_ctx).T  # noqa: E731
    loss = objective.carft_loss(
        logits, torch.tensor(labels), to_logits(torch.tensor(original)), to_logits(features),
        kl_weight=2.0, kl_direction=direction,
    )  # fmt: skip
    loss.total.backward()
    step = 1e-5
    rng = np.random.default_rng(1)
    for n, d in zip(rng.integers(0, N, 20), rng.integers(0, D, 20)):
        up, down = tuned.copy(), tuned.copy()
        up[n, d] += step
        down[n, d] -= step
        high, low = (
            numpy_loss(text, original, t, labels, head, 2.0, direction, 10.0)[0] for t in (up, down)
        )
        assert float(features.grad[n, d]) == pytest.approx((high - low) / (2 * step), abs=1e-6)


def test_gradient_of_context_kl_through_context_logits(data):
    text, original, tuned, _ = data
    _, w_ctx = numpy_weights(text)
    weights = torch.tensor(w_ctx, dtype=torch.float32)
    features = torch.tensor(tuned, dtype=torch.float32, requires_grad=True)
    p0 = objective.context_logits(torch.tensor(original), weights, 10.0)
    kl = objective.context_kl(
        p0, objective.context_logits(features, weights, 10.0), objective.KL_DIRECTIONS[0]
    )
    kl.backward()
    # d KL(p0 || p1) / d logits = (p1 - p0) / N, then through the normalisation by hand
    f = tuned
    length = np.sqrt((f**2).sum(axis=1, keepdims=True))
    p = [softmax(10.0 * unit(v) @ w_ctx.T) for v in (original, tuned)]
    to_unit = 10.0 * (p[1] - p[0]) / N @ w_ctx
    expected = (to_unit - unit(f) * (to_unit * unit(f)).sum(axis=1, keepdims=True)) / length
    assert np.abs(features.grad.numpy() - expected).max() < 1e-6


def test_kl_is_zero_at_the_original_weights(data):
    text, original, _, labels = data
    for direction in objective.KL_DIRECTIONS:
        loss = torch_loss(text, original, original, labels, 1.0, direction, 100.0)
        assert float(loss.kl) == 0.0
        assert float(loss.total) == float(loss.cross_entropy)


def test_no_nan_at_scale_100_in_bf16_autocast(data):
    text, original, tuned, labels = (torch.as_tensor(a) for a in data)
    weights = objective.zero_shot_weights(text.float())
    encoder = torch.nn.Linear(D, D, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(1e3 * tuned.float())
        assert features.dtype == torch.bfloat16
        logits = SCALE * torch.nn.functional.normalize(features, dim=-1) @ weights.classes.T
        contexts = [
            objective.context_logits(f, weights.contexts, SCALE) for f in (-original, features)
        ]
        loss = objective.carft_loss(logits, labels, *contexts)
    loss.total.backward()
    assert all(bool(torch.isfinite(part)) for part in loss)
    assert bool(torch.isfinite(encoder.weight.grad).all())
    assert contexts[0].dtype == torch.float32


def test_agreement_counts_equal_top_contexts():
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.1], [0.2, 0.1]])
    assert float(objective.context_agreement(a, b)) == 0.75
