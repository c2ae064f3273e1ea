"""An algorithm taken apart by a host: `classifier`, `featurizer` and `network`."""

import pytest
import torch
from test_algorithms import make, reopened, train

from domainbed_carft.method import hparams

PICTURES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(9))
SETTINGS = [
    *((name, {}) for name in hparams.ALGORITHMS),
    ("CARFT", {"average": "sma", "average_start": 1}),
    ("CARFT", {"average": "ema", "wise_alpha": 0.5, "checkpoint_blocks": True}),
    ("CLIPLinearProbe", {"average": "beta", "wise_alpha": 0.3}),
    ("CLIPLPFT", {"average": "sma", "head_scale": "outside"}),
    ("FLYP", {"average": "ema"}),
    ("CARFT", {"head_init": "random", "amp": "bf16"}),
]


def check_parts(algorithm):
    """The parts predict what the algorithm does, by the weights of its state dict."""
    algorithm.eval()
    featurizer = algorithm.featurizer
    classifier = algorithm.classifier
    with torch.no_grad():
        expected = algorithm.predict(PICTURES)
        features = featurizer(PICTURES)
        torch.testing.assert_close(classifier(features), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(algorithm.network(PICTURES), expected, rtol=0, atol=1e-6)

    state = algorithm.state_dict()
    named = dict(featurizer.named_parameters())

    assert named.keys() == {f"encoder.{name}" for name, _ in algorithm.encoder.named_parameters()}
    assert all(torch.equal(parameter, state[name]) for name, parameter in named.items())

    heads = dict(classifier.named_parameters())
    assert heads.keys() == {"weight", "bias"}
    assert all(torch.equal(parameter, state[f"head.{name}"]) for name, parameter in heads.items())
    assert featurizer.n_outputs == features.shape[1] == classifier.weight.shape[1]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_the_parts_predict_what_the_algorithm_does(random_tiny, tmp_path, name, settings):
    algorithm = make(random_tiny, name, **settings)
    keys = [*algorithm.state_dict()]
    check_parts(algorithm)
    trained = {id(parameter) for parameter in algorithm.parameters() if parameter.requires_grad}
    train(algorithm.train(), 4)
    check_parts(algorithm)

    assert [*algorithm.state_dict()] == keys
    assert not any("featurizer" in key or "classifier" in key for key in keys)
    assert {id(p) for p in algorithm.parameters() if p.requires_grad} == trained

    check_parts(reopened(algorithm, tmp_path).algorithm)


def test_the_parts_are_the_algorithms_own_where_the_trained_weights_predict(random_tiny):
    algorithm = make(random_tiny)
    trained = {id(parameter) for parameter in algorithm.parameters()}
    logits = torch.nn.Sequential(algorithm.featurizer, algorithm.classifier)
    assert {id(parameter) for parameter in logits.parameters()} <= trained
    logits(PICTURES).sum().backward()
    assert algorithm.encoder.proj.grad is not None and algorithm.head.weight.grad is not None


def test_reading_the_parts_leaves_training_as_it_is(random_tiny):
    settings = {"average": "ema", "wise_alpha": 0.5}
    measured = []
    for reads in (False, True):
        algorithm = make(random_tiny, **settings)
        first = train(algorithm, 2)
        if reads:
            algorithm.featurizer(PICTURES)
            [*algorithm.classifier.named_parameters()]
        measured.append([*first, *train(algorithm, 2)])

    assert measured[0] == measured[1]


@pytest.mark.parametrize("part", ["featurizer", "classifier", "network", "anything"])
@pytest.mark.parametrize("value", [None, "text", torch.nn.Identity()])
def test_what_a_host_assigns_is_what_it_reads(random_tiny, part, value):
    algorithm = make(random_tiny)
    expected = algorithm.predict(PICTURES)
    setattr(algorithm, part, value)
    assert getattr(algorithm, part) is value
    assert torch.equal(algorithm.predict(PICTURES), expected)

    delattr(algorithm, part)
    assert hasattr(algorithm, part) == (part != "anything")
