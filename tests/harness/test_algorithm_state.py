"""An algorithm's state is taken out and put back; carft check does so with every method."""

import io

import numpy as np
import pytest
import torch
from domainbed import algorithms
from domainbed.lib import algorithm_state
from torch import nn
from torch.utils import _pytree as trees


class Stateful(algorithms.Algorithm):
    """Keeps its state as algorithms of DomainBed do."""

    def __init__(self):
        super().__init__((3,), 2, 1, {"lr": 0.1})
        self.linear = nn.Linear(3, 2)
        self.linear.norm_layer = nn.BatchNorm2d  # a class, as in torchvision's ResNets
        self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)

        self.temperature = torch.ones(1, requires_grad=True)
        self.temperature_optimizer = torch.optim.SGD([self.temperature], lr=0.1)

        self.queue = []
        self.number = np.int64(3)
        self.loss = nn.functional.mse_loss
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def step(self):
        x = torch.randn(4, 3)
        for optimizer in (self.optimizer, self.temperature_optimizer):
            optimizer.zero_grad()
        (self.linear(x) * self.temperature).square().sum().backward()
        for optimizer in (self.optimizer, self.temperature_optimizer):
            optimizer.step()
        self.schedule.step()

        self.queue.append(x.mean())
        self.number += 1
        self.linear.step_count = len(self.queue)
        self.unsaved += x.mean()
        self.came_later = (float(x.sum()), {"x": x})
        self.linear.bias.requires_grad_(len(self.queue) < 2)


def captured(algorithm, initial_structure=None):
    """The state, written and read."""
    structure = initial_structure or algorithm_state.structure(algorithm)
    file = io.BytesIO()
    torch.save(algorithm_state.capture(algorithm, structure), file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def assert_equal(state, expected):
    """Assert that two states are the same to the bit."""
    leaves, structure = trees.tree_flatten(state)
    expected_leaves, expected_structure = trees.tree_flatten(expected)
    assert structure == expected_structure
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        is_tensor = isinstance(expected_leaf, torch.Tensor)
        assert torch.equal(leaf, expected_leaf) if is_tensor else leaf == expected_leaf


def test_a_restored_algorithm_trains_on_to_the_same_weights():
    first = Stateful()
    initial_structure = algorithm_state.structure(first)
    for _ in range(3):
        first.step()
    second = Stateful()
    algorithm_state.restore(second, captured(first, initial_structure))

    for algorithm in (first, second):
        torch.manual_seed(7)
        for _ in range(3):
            algorithm.step()
    assert_equal(captured(first, initial_structure), captured(second, initial_structure))
    assert (second.number, second.linear.step_count, len(second.queue)) == (9, 6, 6)
    assert second.optimizer.param_groups[0]["params"][0] is second.linear.weight
    (temperature,) = second.temperature_optimizer.param_groups[0]["params"]
    assert temperature is second.temperature


def set_attribute(name, value):
    """Sets an attribute of an algorithm."""
    return lambda algorithm: setattr(algorithm, name, value)


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (set_attribute("last", iter([1])), r"last \(a list_iterator\)"),
        (set_attribute("last", [torch.ones(1, requires_grad=True)]), r"last \(a list\)"),
        (lambda a: a.register_buffer("late", torch.ones(2)), r"late \(changed since the start\)"),
    ],
)
def test_state_that_cannot_be_restored_is_refused_by_name(change, description):
    algorithm = Stateful()
    initial_structure = algorithm_state.structure(algorithm)
    change(algorithm)
    with pytest.raises(algorithm_state.StateError, match=description):
        algorithm_state.capture(algorithm, initial_structure)


class Answering(algorithms.Algorithm):
    """Keeps an iterator, which cannot be stored, and answers for it once something was counted."""

    next_number = None

    def __init__(self):
        super().__init__((3,), 2, 1, {})
        self.numbers = iter(range(9))

    def training_state(self):
        return self.next_number

    def load_training_state(self, stored):
        self.numbers = iter(range(stored, 9))


@pytest.mark.parametrize(("next_number", "expected"), [(None, 0), (5, 5)])
def test_an_algorithm_answers_for_attributes_that_cannot_be_stored(next_number, expected):
    answering = Answering()
    answering.next_number = next_number
    restored = Answering()
    algorithm_state.restore(restored, captured(answering))
    assert next(restored.numbers) == expected


def test_restored_tensors_return_to_the_device(device):
    first = Stateful()
    second = Stateful()
    first.queue = [torch.ones(2, device=device)]
    algorithm_state.restore(second, captured(first))
    assert second.queue[0].device == first.queue[0].device
