"""Distributions over contexts at their limits; their formula is in test_method_formulas."""

import numpy as np
import pytest
import torch

from domainbed_carft.errors import CarftError
from domainbed_carft.method import fd_align, objective, starft

D = 32


def test_no_nan_at_scale_100_in_bf16_autocast():
    original = torch.randn(11, D, generator=torch.Generator().manual_seed(0))
    contexts = torch.nn.functional.normalize(original[:7], dim=-1)
    encoder = torch.nn.Linear(D, D, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(1e3 * original)
        assert features.dtype == torch.bfloat16
        logits = [objective.context_logits(f, contexts, 100.0) for f in (-original, features)]
        kl = objective.context_kl(*logits, objective.KL_DIRECTIONS[0])

    kl.backward()
    assert bool(torch.isfinite(kl))
    assert bool(torch.isfinite(encoder.weight.grad).all())
    assert logits[0].dtype == torch.float32


def test_agreement_is_the_share_of_equal_top_contexts():
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 0.1], [0.2, 0.1]])
    assert float(objective.context_agreement(a, b)) == 0.75


def test_kl_over_clusters_uses_cluster_centres_of_the_contexts():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(3, D))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
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
