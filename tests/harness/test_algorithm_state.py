"""Capture and restore of an algorithm's state; carft check tests every method."""

import io

import numpy as np
import pytest
import torch
from domainbed import algorithms
from domainbed.lib import algorithm_state
from torch import nn
from torch.utils import _pytree as trees


class Stateful(algorithms.Algorithm):
    """Has the kinds of state that algorithms of DomainBed have."""

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


def save_and_load_state(algorithm, initial_structure=None):
    """Capture a state, write it to a file, and read it."""
    structure = initial_structure or algorithm_state.structure(algorithm)
    file = io.BytesIO()
    torch.save(algorithm_state.capture(algorithm, structure), file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def assert_equal(state, expected):
    """Assert that two states are bit-identical."""
    leaves, structure = trees.tree_flatten(state)
    expected_leaves, expected_structure = trees.tree_flatten(expected)
    assert structure == expected_structure
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        is_tensor = isinstance(expected_leaf, torch.Tensor)
        assert torch.equal(leaf, expected_leaf) if is_tensor else leaf == expected_leaf


def test_restored_algorithm_continues_to_the_same_weights():
    first = Stateful()
    initial_structure = algorithm_state.structure(first)
    for _ in range(3):
        first.step()
    second = Stateful()
    algorithm_state.restore(second, save_and_load_state(first, initial_structure))

    for algorithm in (first, second):
        torch.manual_seed(7)
        for _ in range(3):
            algorithm.step()
    states = [save_and_load_state(algorithm, initial_structure) for algorithm in (first, second)]
    assert_equal(*states)
    assert (second.number, second.linear.step_count, len(second.queue)) == (9, 6, 6)
    assert second.optimizer.param_groups[0]["params"][0] is second.linear.weight
    (temperature,) = second.temperature_optimizer.param_groups[0]["params"]
    assert temperature is second.temperature


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (lambda a: setattr(a, "last", iter([1])), r"last \(a list_iterator\)"),
        (lambda a: setattr(a, "last", [torch.ones(1, requires_grad=True)]), r"last \(a list\)"),
        (
            lambda a: a.register_buffer("late", torch.ones(2)),
            "before the first step.*: late. Create",
        ),
        (lambda a: setattr(a, "late", torch.optim.SGD(a.parameters())), ": late. Create them when"),
    ],
)
def test_capture_with_unrestorable_attribute_names_it(change, description):
    algorithm = Stateful()
    initial_structure = algorithm_state.structure(algorithm)
    change(algorithm)
    with pytest.raises(algorithm_state.StateError, match=description):
        algorithm_state.capture(algorithm, initial_structure)


class Iterating(algorithms.Algorithm):
    """Has an iterator, which cannot be stored, and stores its position by the hook."""

    next_number = None

    def __init__(self):
        super().__init__((3,), 2, 1, {})
        self.numbers = iter(range(9))

    def training_state(self):
        return self.next_number

    def load_training_state(self, stored):
        self.numbers = iter(range(stored, 9))


@pytest.mark.parametrize(("next_number", "expected"), [(None, 0), (5, 5)])
def test_training_state_hook_restores_unstorable_attribute(next_number, expected):
    algorithm = Iterating()
    algorithm.next_number = next_number
    restored = Iterating()
    algorithm_state.restore(restored, save_and_load_state(algorithm))
    assert next(restored.numbers) == expected


class WithLateOptimizer(Stateful):
    """Creates an optimizer at its first step, and stores it by the hooks."""

    late = None

    def step(self):
        super().step()
        self.late = self.late or torch.optim.SGD(self.linear.parameters(), lr=0.5, momentum=0.9)
        self.late.step()

    def training_state(self):
        return self.late and self.late.state_dict()

    def load_training_state(self, stored):
        self.late = torch.optim.SGD(self.linear.parameters(), lr=0.1)
        self.late.load_state_dict(stored)


def test_hooks_store_an_optimizer_created_after_the_start():
    first, second = WithLateOptimizer(), WithLateOptimizer()
    initial_structure = algorithm_state.structure(first)
    first.step()
    algorithm_state.restore(second, save_and_load_state(first, initial_structure))
    assert second.late.param_groups[0]["lr"] == 0.5
    assert second.late.param_groups[0]["params"][0] is second.linear.weight
    for algorithm in (first, second):
        torch.manual_seed(7)
        algorithm.step()
    states = [save_and_load_state(algorithm, initial_structure) for algorithm in (first, second)]
    assert_equal(*states)


def test_restored_tensor_in_a_list_returns_to_its_device(device):
    first = Stateful()
    second = Stateful()
    first.queue = [torch.ones(2, device=device)]
    algorithm_state.restore(second, save_and_load_state(first))
    assert second.queue[0].device == first.queue[0].device
