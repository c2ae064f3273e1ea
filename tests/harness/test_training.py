"""What the training asks of an algorithm at a step and at a checkpoint."""

from __future__ import annotations

import pytest
import torch
from domainbed import algorithms
from domainbed.scripts import train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")


def comparable_records(folder):
    """The records without what differs between any two runs."""
    records = fakes.records(folder)
    for record in records:
        del record["args"]
        del record["step_time"]
        del record["evaluation_time"]
    return records


class Deferred(fakes.LinearSGD):
    """Leaves its values on the device."""

    def step_on_device(self, minibatches):
        values = fakes.LinearSGD.update(self, minibatches)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def update(self, minibatches, unlabeled=None):
        raise AssertionError("step_on_device should be called, which does not wait for the device")


def test_values_left_on_the_device_reach_the_records_unchanged(tmp_path, monkeypatch):
    assert train.main(fakes.quick(tmp_path / "plain")) == 0
    monkeypatch.setattr(algorithms, "LinearSGD", Deferred)
    assert train.main(fakes.quick(tmp_path / "deferred")) == 0

    records = comparable_records(tmp_path / "plain")
    assert len(records) == 4
    assert comparable_records(tmp_path / "deferred") == records


class Changed(Deferred):
    """A subclass that knows nothing of `step_on_device`."""

    def update(self, minibatches, unlabeled=None):
        return {"loss": 7.0}


def test_an_overridden_update_is_used_instead_of_an_inherited_step_on_device(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Changed)
    assert train.main(fakes.quick(tmp_path)) == 0
    assert [record["loss"] for record in comparable_records(tmp_path)] == [7.0] * 4


class Constant(fakes.LinearSGD):
    """Learns nothing, and counts the items it predicts."""

    is_constant = True
    item_count = 0

    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.1}  # which no float32 is

    def predict(self, x):
        type(self).item_count += len(x)
        return super().predict(x)


def test_an_algorithm_that_never_changes_is_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Constant)
    assert train.main(fakes.quick(tmp_path)) == 0

    assert Constant.item_count == 3 * 16  # each item of Debug28's three environments
    accuracies = [
        {name: value for name, value in record.items() if name.endswith("_acc")}
        for record in comparable_records(tmp_path)
    ]
    assert len(accuracies[0]) == 6
    assert accuracies == [accuracies[0]] * 4
    assert [record["loss"] for record in comparable_records(tmp_path)] == [0.1] * 4
