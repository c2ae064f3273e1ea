"""Confusion matrix and calibration error against a computation from their definitions."""

import numpy as np
import pytest
import torch

from domainbed_carft.cli import runs
from domainbed_carft.runs.evaluate import Tally


def drawn(seed, n, classes):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.3), n)
    labels = generator.integers(0, classes - 1, n)  # the last class has no picture
    return probabilities, labels


def by_definition(probabilities, labels):
    """Guo et al. 2017, equation 3, one bin after another."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).mean()
            error += inside.mean() * abs(accuracy - confidence[inside].mean())
    return error


@pytest.mark.parametrize("seed", range(4))
def test_against_the_definitions(seed):
    probabilities, labels = drawn(seed, 403, 4)
    predicted = probabilities.argmax(axis=1)
    tally = Tally(4)
    for part in np.array_split(np.arange(403), 7):
        tally.add(torch.tensor(probabilities[part]).log(), torch.tensor(labels[part]))
    assert tally.count == 403
    assert tally.accuracy == (predicted == labels).mean()
    assert tally.ece == pytest.approx(by_definition(probabilities, labels), abs=1e-12)
    for true in range(4):
        for guess in range(4):
            expected = sum(1 for t, p in zip(labels, predicted) if (t, p) == (true, guess))
            assert tally.confusion[true, guess] == expected
    found = tally.by_class()
    for true in range(3):
        of_class = predicted[labels == true]
        assert found[true]["pictures"] == len(of_class)
        assert found[true]["accuracy"] == (of_class == true).mean()
    assert found[3] == {"pictures": 0, "accuracy": None}


def test_known_values():
    """Two pictures at confidence 0.8, one right: gap 0.3; two at 1.0, both right: gap 0."""
    tally = Tally(2)
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]]).double()
    tally.add(probabilities.log(), torch.tensor([0, 1, 1, 1]))
    assert tally.ece == pytest.approx(0.5 * 0.3)
    assert tally.confusion.tolist() == [[1, 0], [1, 2]]


def test_of_nothing_there_is_nothing():
    tally = Tally(2)
    assert (tally.count, tally.accuracy, tally.ece) == (0, None, None)


def test_the_batch_is_that_of_train():
    from domainbed.lib import training

    assert training.EVALUATION_BATCH_SIZE == runs.BATCH_SIZE
