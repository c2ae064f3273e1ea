"""An algorithm's state is taken out and put back, wherever the algorithm keeps it."""

from __future__ import annotations

import collections
import copy
import io
import random

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


def captured(algorithm, at_first=None):
    return algorithm_state.capture(algorithm, at_first or algorithm_state.places(algorithm))


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
    at_first = algorithm_state.places(first)
    for _ in range(3):
        first.step()
    algorithm_state.restore(second, written_and_read(captured(first, at_first)))
    assert same(captured(first), captured(second))
    for _ in range(3):
        first.step()
        second.step()
    states = [captured(one, at_first) for one in (first, second)]
    assert same(*states)
    paths = set(states[0])
    assert {"", "optimizers[0]", "schedule", "average.network", "noise", "queue"} <= paths
    assert {"came_later", "temperature", "counts", "last", "average.count"} <= paths


def test_who_refers_to_the_same_object_still_does():
    first, second = Scattered(), Scattered()
    first.step()
    algorithm_state.restore(second, captured(first))
    assert second.shared is second.hparams and second.hparams["seen"] == 1
    assert second.trained[0] is second.linear.weight
    (of_temperature,) = second.of_temperature.param_groups[0]["params"]
    assert of_temperature is second.temperature


def test_the_second_name_of_an_object_is_kept():
    """A tensor under two names that were None, and one that is trained."""
    first, second = Scattered(), Scattered()
    at_first = algorithm_state.places(first)
    first.last = first.linear.last = torch.ones(2)
    first.came_later = first.last
    first.average.count = torch.zeros(2, requires_grad=True)
    algorithm_state.restore(second, written_and_read(captured(first, at_first)))
    assert torch.equal(second.last, torch.ones(2))
    assert second.linear.last is second.last and second.came_later is second.last
    assert second.average.count.requires_grad and second.average.count.is_leaf


def set_in(name, value):
    return lambda algorithm: setattr(algorithm, name, value)


class Queue(collections.deque):
    """With attributes of its own beside what it holds."""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: setattr(a.average, "batches", iter([1])), r"average.batches \(a new Scattered"),
        (set_in("last", iter([1])), r"last \(a list_iterator\)"),
        (set_in("last", random.Random(1)), r"last \(a Random\)"),
        (set_in("last", Queue([1])), r"last \(this Queue was another thing at first\)|a Queue"),
        (lambda a: setattr(a.average, "late", 1), r"average.late \(a new Scattered has no such"),
        (lambda a: a.optimizers.append(a.of_temperature), "optimizers"),
        (set_in("last", torch.optim.SGD([torch.ones(1)], lr=1)), r"last \(this SGD was another"),
        (set_in("extra", nn.Linear(1, 1)), r" \(this Scattered was another thing at first\)"),
        (lambda a: a.register_buffer("late", torch.ones(2)), r"this Scattered was another thing"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(change, named):
    algorithm = Scattered()
    at_first = algorithm_state.places(algorithm)
    change(algorithm)
    with pytest.raises(algorithm_state.StateError, match=named):
        algorithm_state.capture(algorithm, at_first)


def test_arrays_and_filled_dicts_come_back_as_they_were():
    first, second = Scattered(), Scattered()
    for one in (first, second):
        one.table = collections.defaultdict(list)
    at_first = algorithm_state.places(first)
    first.table["a"].append(np.arange(3))
    first.made_later = np.ones((2, 2))
    algorithm_state.restore(second, written_and_read(captured(first, at_first)))
    assert isinstance(second.table, collections.defaultdict) and second.table["b"] == []
    assert np.array_equal(second.table["a"][0], np.arange(3))
    assert np.array_equal(second.made_later, np.ones((2, 2)))


def test_a_state_of_another_algorithm_is_refused():
    with pytest.raises(RuntimeError, match=r"linear.weight"):
        algorithm_state.restore(nn.Linear(2, 2), captured(Scattered()))
    with pytest.raises(algorithm_state.StateError, match="a new Linear has no such place"):
        algorithm_state.restore(nn.Linear(2, 2), {"networks[2]": 1})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_tensors_go_back_to_the_gpu():
    first, second = Scattered(), Scattered()
    at_first = algorithm_state.places(first)
    first.queue = [torch.ones(2, device="cuda")]
    file = io.BytesIO()
    torch.save(captured(first, at_first), file)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    algorithm_state.restore(second, state)
    assert second.queue[0].is_cuda
