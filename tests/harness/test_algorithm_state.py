"""An algorithm's state is taken out and put back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from domainbed import algorithms, hparams_registry
from domainbed.lib import algorithm_state
from torch import nn

from domainbed_carft.jobs.algorithms import ALGORITHMS


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
    return algorithm_state.capture(
        algorithm, initial_structure or algorithm_state.structure(algorithm)
    )


def written_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def are_equal(a, b):
    """Whether two states are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(are_equal, a, b))
    return a == b


def assert_goes_on(first, second, step, count):
    """Trained, stored and put back into another, it goes on there as here, to the bit.

    `count`: how many steps it takes before, and after.
    """
    initial_structure = algorithm_state.structure(first)
    for _ in range(count):
        step(first)

    algorithm_state.restore(second, written_and_read(captured(first, initial_structure)))
    assert are_equal(captured(first), captured(second))

    for algorithm in (first, second):
        torch.manual_seed(7)
        for _ in range(count):
            step(algorithm)
    assert are_equal(captured(first, initial_structure), captured(second, initial_structure))


def test_a_restored_algorithm_trains_on_to_the_same_weights():
    first = Stateful()
    second = Stateful()
    assert_goes_on(first, second, lambda algorithm: algorithm.step(), count=3)

    assert (second.number, second.linear.step_count, len(second.queue)) == (9, 6, 6)
    assert second.optimizer.param_groups[0]["params"][0] is second.linear.weight
    (temperature,) = second.temperature_optimizer.param_groups[0]["params"]
    assert temperature is second.temperature


@pytest.mark.parametrize("name", ["ERM", *ALGORITHMS])
def test_every_algorithm_resumes_from_its_state(name):
    shape = (3, 28, 28)
    pictures = [(torch.randn(2, *shape), torch.tensor([0, 1])) for _ in range(2)]

    def built(seed):
        hparams = hparams_registry.default_hparams(name, "Debug28") | {"lr": 1e-3}
        if name != "ERM":
            hparams |= {"clip_backbone": "tiny", "total_steps": 9, "warmup_steps": 2}
            hparams |= {"class_names": ["cat", "dog"]}
            hparams |= {"contexts": "imagenet" if name == "FDAlign" else "emoji"}
            hparams |= {"lp_steps": min(3, hparams["lp_steps"])}
        torch.manual_seed(seed)
        algorithm_class = algorithms.get_algorithm_class(name)
        return algorithm_class(shape, 2, 2, hparams)

    assert_goes_on(built(0), built(1), lambda algorithm: algorithm.update(pictures), count=2)


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


def test_restored_tensors_return_to_the_device(device):
    first = Stateful()
    second = Stateful()
    first.queue = [torch.ones(2, device=device)]
    algorithm_state.restore(second, written_and_read(captured(first)))
    assert second.queue[0].device == first.queue[0].device
