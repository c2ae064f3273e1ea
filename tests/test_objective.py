"""The formulas of CAR-FT and its siblings against float64 numpy."""

import numpy as np
import pytest
import torch

from domainbed_carft.errors import CarftError
from domainbed_carft.method import fd_align, objective, starft

M = 7
K = 5
N = 11
D = 32
SCALE = 100.0


def unit(v):
    return v / np.sqrt((v**2).sum(axis=-1, keepdims=True))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_weights(text):
    text = unit(text)
    return unit(text.mean(axis=0)), unit(text.mean(axis=1))


def numpy_kl(text, original, tuned, direction, scale):
    """From the text of reference: the sum over contexts, the mean over pictures."""
    _, w_ctx = numpy_weights(text)
    p0, p1 = (softmax(scale * unit(f) @ w_ctx.T) for f in (original, tuned))
    if direction == "fine-tuned||original":
        p0, p1 = p1, p0
    return (p0 * (np.log(p0) - np.log(p1))).sum(axis=1).mean()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(M, K, D)) + 2 * rng.normal(size=D)  # near-parallel, as CLIP's are
    original = rng.normal(size=(N, D))
    tuned = original + 0.3 * rng.normal(size=(N, D))
    return text, original, tuned


def test_class_and_context_weights_equal_numpys(data):
    text = data[0]
    weights = objective.zero_shot_weights(torch.as_tensor(text, dtype=torch.float32))
    for got, expected in zip(weights, numpy_weights(text)):
        assert np.abs(got.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("direction", objective.KL_DIRECTIONS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_context_kl_equals_numpys(data, direction, scale):
    text, original, tuned = data
    _, w_ctx = numpy_weights(text)
    weights, first, second = (torch.as_tensor(a).float() for a in (w_ctx, original, tuned))
    logits, logits_0 = (objective.context_logits(f, weights, scale) for f in (second, first))
    expected = numpy_kl(text, original, tuned, direction, scale)
    assert float(objective.context_kl(logits_0, logits, direction)) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(objective.context_kl(logits_0, logits_0, direction)) == 0.0


def test_no_nan_at_scale_100_in_bf16_autocast(data):
    text, original, tuned = (torch.as_tensor(a) for a in data)
    weights = objective.zero_shot_weights(text.float())
    encoder = torch.nn.Linear(D, D, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(1e3 * tuned.float())
        assert features.dtype == torch.bfloat16
        pair = (-original, features)
        contexts = [objective.context_logits(f, weights.contexts, SCALE) for f in pair]
        kl = objective.context_kl(*contexts, objective.KL_DIRECTIONS[0])

    kl.backward()
    assert bool(torch.isfinite(kl))
    assert bool(torch.isfinite(encoder.weight.grad).all())
    assert contexts[0].dtype == torch.float32


def test_agreement_is_the_share_of_equal_top_contexts():
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.1], [0.2, 0.1]])
    assert float(objective.context_agreement(a, b)) == 0.75


# What its siblings take the KL over


def test_kl_over_clusters_uses_cluster_centres_of_the_contexts():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    centres = unit(rng.normal(size=(3, D)))
    usual = np.concatenate([c + 1e-3 * rng.normal(size=(10, D)) for c in centres])
    odd = 4 * rng.normal(size=(10, D))
    contexts = torch.tensor(np.concatenate([odd, usual]), dtype=torch.float32)
    clusters = fd_align.clustered(contexts, 3)
    nearest = torch.cdist(torch.tensor(centres, dtype=torch.float32), clusters).min(dim=1).values

    assert clusters.shape == (3, D)
    assert float(nearest.max()) < 5e-3  # and so no odd one is among them
    with pytest.raises(
        CarftError, match="FD-Align makes 31 clusters .* these are 30 of 40; give more contexts"
    ):
        fd_align.clustered(contexts, 31)


def test_kl_over_other_captions_is_zero_if_all_pictures_have_one_class():
    logits, labels = torch.randn(6, 6), torch.zeros(6)
    masked = starft.without_own_class(logits, labels, labels)
    assert float(objective.context_kl(masked, masked + 1, objective.KL_DIRECTIONS[0])) == 0
