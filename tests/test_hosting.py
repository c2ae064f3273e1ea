"""Parts of an algorithm used by hosts: `classifier`, `featurizer` and `network`."""

import pytest
import torch

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms

IMAGES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(9))
LABELS = torch.tensor([0, 1, 2, 0, 1])
SETTINGS = [
    *((name, {}) for name in ALGORITHMS),
    ("CARFT", {"average": "sma", "average_start": 1}),
    ("CARFT", {"average": "ema", "wise_alpha": 0.5, "checkpoint_blocks": True}),
    ("CLIPLinearProbe", {"average": "beta", "wise_alpha": 0.3}),
    ("CLIPLPFT", {"average": "sma", "average_start": 1, "lp_steps": 1, "head_scale": "outside"}),
    ("FLYP", {"average": "ema"}),
    ("CARFT", {"head_init": "random", "amp": "bf16"}),
]


@pytest.fixture
def make(random_tiny):
    def build(name="CARFT", **settings):
        torch.manual_seed(0)
        hparams = {"clip_backbone": str(random_tiny), "class_names": ["cat", "dog", "owl"]}
        hparams |= {"total_steps": 1000, "warmup_steps": 0, "lr": 1e-3, **settings}
        return getattr(algorithms, name)((3, 28, 28), 3, 2, hparams)

    return build


def check_parts(algorithm):
    """Assert that the parts predict like the algorithm, with weights of its state dict."""
    algorithm.eval()
    featurizer = algorithm.featurizer
    classifier = algorithm.classifier
    with torch.no_grad():
        expected = algorithm.predict(IMAGES)
        features = featurizer(IMAGES)
        torch.testing.assert_close(classifier(features), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(algorithm.network(IMAGES), expected, rtol=0, atol=1e-6)

    state = algorithm.state_dict()
    for part, prefix in ((featurizer, ""), (classifier, "head.")):
        parameters = dict(part.named_parameters())
        assert all(torch.equal(value, state[prefix + name]) for name, value in parameters.items())
    assert dict(classifier.named_parameters()).keys() == {"weight", "bias"}
    assert featurizer.n_outputs == features.shape[1] == classifier.weight.shape[1]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_parts_predict_like_algorithm_before_and_after_training(make, name, settings):
    algorithm = make(name, **settings)
    keys = [*algorithm.state_dict()]
    check_parts(algorithm)
    trained = {id(parameter) for parameter in algorithm.parameters() if parameter.requires_grad}
    algorithm.train()
    for _ in range(3):
        algorithm.update([(IMAGES, LABELS)] * 2)
    check_parts(algorithm)

    assert [*algorithm.state_dict()] == keys
    assert not any("featurizer" in key or "classifier" in key for key in keys)
    assert {id(p) for p in algorithm.parameters() if p.requires_grad} == trained


def test_gradients_of_parts_reach_weights_of_algorithm(make):
    algorithm = make()
    torch.nn.Sequential(algorithm.featurizer, algorithm.classifier)(IMAGES).sum().backward()
    assert algorithm.encoder.proj.grad is not None and algorithm.head.weight.grad is not None


@pytest.mark.parametrize("part", ["featurizer", "classifier", "network", "anything"])
@pytest.mark.parametrize("value", [None, torch.nn.Identity()])
def test_parts_can_be_assigned_and_deleted_by_host(make, part, value):
    algorithm = make()
    expected = algorithm.predict(IMAGES)
    setattr(algorithm, part, value)
    assert getattr(algorithm, part) is value
    assert torch.equal(algorithm.predict(IMAGES), expected)

    delattr(algorithm, part)
    assert hasattr(algorithm, part) == (part != "anything")
