"""What the training asks of an algorithm at a step and at a checkpoint."""

from __future__ import annotations

import pytest
import torch
from domainbed import algorithms
from domainbed.scripts import train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")


def records(folder):
    found = fakes.records(folder)
    for record in found:
        del record["args"], record["step_time"]
    return found


class Deferred(fakes.LinearSGD):
    """Leaves its values on the device."""

    def step_on_device(self, minibatches):
        found = fakes.LinearSGD.update(self, minibatches)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def update(self, minibatches, unlabeled=None):
        raise AssertionError("to be asked for what does not wait")


def test_values_left_on_the_device_are_the_same_in_the_records(tmp_path, monkeypatch):
    assert train.main(fakes.quick(tmp_path / "plain")) == 0
    monkeypatch.setattr(algorithms, "LinearSGD", Deferred)
    assert train.main(fakes.quick(tmp_path / "deferred")) == 0
    assert records(tmp_path / "deferred") == records(tmp_path / "plain")
    assert len(records(tmp_path / "plain")) == 4


class Changed(Deferred):
    """A subclass that knows nothing of `step_on_device`."""

    def update(self, minibatches, unlabeled=None):
        return {"loss": 7.0}


def test_an_update_that_a_subclass_changes_is_the_one_that_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Changed)
    assert train.main(fakes.quick(tmp_path)) == 0
    assert [record["loss"] for record in records(tmp_path)] == [7.0] * 4


class Constant(fakes.LinearSGD):
    """Learns nothing, and counts what it predicts."""

    is_constant = True
    predicted = 0

    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.1}  # which no float32 is

    def predict(self, x):
        type(self).predicted += len(x)
        return super().predict(x)


def test_what_nothing_changes_is_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Constant)
    assert train.main(fakes.quick(tmp_path)) == 0
    assert Constant.predicted == 3 * 16  # each item of Debug28's three environments
    accuracies = [
        {name: value for name, value in record.items() if name.endswith("_acc")}
        for record in records(tmp_path)
    ]
    assert len(accuracies[0]) == 6 and accuracies == [accuracies[0]] * 4
    assert [record["loss"] for record in records(tmp_path)] == [0.1] * 4
