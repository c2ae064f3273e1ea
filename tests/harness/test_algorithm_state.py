"""An algorithm's state is taken out and put back, wherever the algorithm keeps it."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from domainbed.lib import algorithm_state
from torch import nn


class Averaged:
    """A second network in an object that is no module."""

    def __init__(self, network):
        self.network = copy.deepcopy(network)
        self.count = 0


class Scattered(nn.Module):
    """Keeps its state in all the places in which algorithms of DomainBed do."""

    def __init__(self):
        super().__init__()
        self.hparams = {"lr": 0.1}
        self.shared = self.hparams
        self.linear = nn.Linear(3, 2)
        self.optimizers = [torch.optim.Adam(self.linear.parameters(), lr=0.1)]
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizers[0], 2)
        self.trained = list(self.linear.parameters())
        self.average = Averaged(self.linear)
        self.noise = torch.Generator()
        self.queue = []
        self.last = None
        self.temperature = torch.ones(1, requires_grad=True)
        self.of_temperature = torch.optim.SGD([self.temperature], lr=0.1)
        self.counts = np.zeros(2)
        self.number = np.int64(3)
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def step(self):
        x = torch.randn(4, 3, generator=self.noise)
        for optimizer in (*self.optimizers, self.of_temperature):
            optimizer.zero_grad()
        (self.linear(x) * self.temperature).square().sum().backward()
        for optimizer in (*self.optimizers, self.of_temperature):
            optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            averages = self.average.network.parameters()
            for mean, new in zip(averages, self.trained, strict=True):
                mean.lerp_(new, 0.5)
        self.average.count += 1
        self.queue.append(x.mean())
        self.last = (self.average.count, x)
        self.counts += self.number
        self.number += 1
        self.unsaved += x.mean()
        self.shared["seen"] = len(self.queue)
        self.came_later = float(x.sum())
        self.linear.bias.requires_grad_(self.average.count < 2)


def written_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_restored_algorithm_goes_on_as_the_other():
    torch.manual_seed(0)
    first = Scattered()
    torch.manual_seed(1)
    second = Scattered()
    for _ in range(3):
        first.step()
    algorithm_state.restore(second, written_and_read(algorithm_state.capture(first)))
    assert same(algorithm_state.capture(first), algorithm_state.capture(second))
    for _ in range(3):
        first.step()
        second.step()
    states = [algorithm_state.capture(one) for one in (first, second)]
    assert same(*states)
    paths = set(states[0])
    assert {"", "optimizers[0]", "schedule", "average.network", "noise", "queue"} <= paths
    assert {"came_later", "temperature", "counts", "last", "average.count"} <= paths


def test_who_refers_to_the_same_object_still_does():
    first, second = Scattered(), Scattered()
    first.step()
    algorithm_state.restore(second, algorithm_state.capture(first))
    assert second.shared is second.hparams and second.hparams["seen"] == 1
    assert second.trained[0] is second.linear.weight
    (of_temperature,) = second.of_temperature.param_groups[0]["params"]
    assert of_temperature is second.temperature


def test_what_cannot_be_stored_is_named():
    algorithm = Scattered()
    algorithm.average.batches = iter([1])
    message = r"Scattered keeps what cannot be stored: \['average.batches \(a list_iterator\)'\]"
    with pytest.raises(algorithm_state.StateError, match=message):
        algorithm_state.capture(algorithm)


def test_a_state_of_another_algorithm_is_refused():
    state = algorithm_state.capture(Scattered())
    with pytest.raises(Exception, match="linear.weight"):
        algorithm_state.restore(nn.Linear(2, 2), state)
    state = {"networks[2]": {"state of": "Linear", "dict": {}}}
    with pytest.raises(algorithm_state.StateError, match=r"Linear has no networks\[2\]"):
        algorithm_state.restore(nn.Linear(2, 2), state)
