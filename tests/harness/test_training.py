"""Hooks of an algorithm at a step and at a checkpoint."""

import itertools
import json
import os
import shutil
import signal
from typing import ClassVar

import pytest
import torch
from domainbed import algorithms
from domainbed.lib import evaluation, preparation
from domainbed.scripts import train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")


class OnDevice(fakes.LinearSGD):
    """Leaves its values on the device."""

    def step_on_device(self, minibatches):
        values = fakes.LinearSGD.update(self, minibatches)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def update(self, minibatches, unlabeled=None):
        raise AssertionError("train must call step_on_device")


class OverridesUpdate(OnDevice):
    """Overrides `update` only."""

    def update(self, minibatches, unlabeled=None):
        return {"loss": 7.0}


def test_step_on_device_reaches_the_records_unless_update_is_overridden(tmp_path, monkeypatch):
    records = []
    for algorithm in (fakes.LinearSGD, OnDevice, OverridesUpdate):
        monkeypatch.setattr(algorithms, "LinearSGD", algorithm)
        assert train.main(fakes.quick_arguments(tmp_path / algorithm.__name__)) == 0
        records.append(fakes.comparable_records(tmp_path / algorithm.__name__))

    expected, on_device, overridden = records
    assert on_device == expected
    assert [record["loss"] for record in overridden] == [7.0] * 4


class Doubling(fakes.LinearSGD):
    """Has twice the loss at each step."""

    loss = 0.5

    def update(self, minibatches, unlabeled=None):
        self.loss *= 2
        return {"loss": self.loss}


def test_values_of_an_interval_are_means_over_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Doubling)
    assert train.main(fakes.quick_arguments(tmp_path, "--checkpoint_freq", "3")) == 0
    losses = [record["loss"] for record in fakes.records(tmp_path)]
    assert losses == [1.0, (2 + 4 + 8) / 3, (16 + 32 + 64) / 3]


def test_epochs_are_counted_by_the_smallest_in_split(images, tmp_path):
    """Upstream's count, which includes the test environment."""
    data = shutil.copytree(images, tmp_path / "images")
    first, *_ = sorted(folder for folder in data.iterdir() if folder.is_dir())
    for file in [*first.rglob("*.png")][:4]:
        file.unlink()  # 6 images are left, of which 5 are in the in-split
    words = ("--dataset", str(data), "--test_envs", "0")
    assert train.main(fakes.quick_arguments(tmp_path / "job", *words)) == 0
    epochs = {record["step"]: record["epoch"] for record in fakes.records(tmp_path / "job")}
    assert epochs == {step: pytest.approx(step * 4 / 5) for step in (0, 2, 4, 6)}


class Constant(fakes.LinearSGD):
    """Learns nothing, and counts the predicted items."""

    is_constant = True
    item_count = 0

    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.1}  # not exact in float32

    def predict(self, x):
        type(self).item_count += len(x)
        return super().predict(x)


def test_constant_algorithm_is_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Constant)
    assert train.main(fakes.quick_arguments(tmp_path)) == 0

    assert Constant.item_count == 3 * 16  # Debug28 has three environments of 16 items
    accuracies = [
        {name: value for name, value in record.items() if name.endswith("_acc")}
        for record in fakes.comparable_records(tmp_path)
    ]
    assert len(accuracies[0]) == 6
    assert accuracies == [accuracies[0]] * 4
    assert [record["loss"] for record in fakes.comparable_records(tmp_path)] == [0.1] * 4


class Choosing(fakes.LinearSGD):
    """Predicts with its weights at the last checkpoint."""

    uses_validation_loss = True
    calls: ClassVar[list[tuple[float, torch.Tensor]]] = []

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("chosen", self.linear.weight.detach().clone())

    def at_checkpoint(self, validation_loss):
        self.chosen.copy_(self.linear.weight.detach())
        self.calls.append((validation_loss, self.linear.weight.detach().clone()))

    def trained_logits(self, x):
        return self.linear(x.flatten(1))

    def predict(self, x):
        return torch.nn.functional.linear(x.flatten(1), self.chosen)


@pytest.fixture
def calls(monkeypatch):
    """Replace LinearSGD by `Choosing`, and collect each validation loss with the weights."""
    monkeypatch.setattr(algorithms, "LinearSGD", Choosing)
    monkeypatch.setattr(Choosing, "calls", [])
    return Choosing.calls


def validation_loss(folder, weight, bias):
    """Compute the mean loss on the out-splits of the training environments 1 and 2, in float64."""
    args = train.parse(fakes.quick_arguments(folder))[0]
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    hparams = algorithm_class.resolve_hparams(args.dataset, {"batch_size": 4}).values
    preparation.seed_everything(0)  # Debug28 draws its images
    _, environments = preparation.load_environments(args, hparams)
    losses = []
    for environment in environments[1:]:
        images, labels = zip(*environment.out_split)
        logits = torch.stack(images).double().flatten(1) @ weight.double().T + bias.double()
        probabilities = logits.softmax(dim=1)[range(len(labels)), list(map(int, labels))]
        losses.append(-probabilities.log().mean())
    return float(sum(losses) / 2)


def test_validation_loss_of_the_trained_weights_precedes_the_evaluation(tmp_path, calls):
    assert train.main(fakes.quick_arguments(tmp_path)) == 0

    weights = torch.load(tmp_path / "model.pkl", weights_only=True)["model_dict"]
    assert len(calls) == 4
    last_loss, last_weight = calls[-1]
    assert torch.equal(weights["chosen"], last_weight)
    expected = validation_loss(tmp_path, last_weight, weights["linear.bias"])
    assert last_loss == pytest.approx(expected, rel=1e-5)
    assert len({loss for loss, _ in calls}) == 4

    best = torch.load(tmp_path / "model_best.pkl", weights_only=True)
    assert best["best_step"] == 6
    assert torch.equal(best["model_dict"]["chosen"], last_weight)


def test_validation_loss_is_computed_without_augmentation(images, tmp_path, calls):
    # Constant weights give a constant loss, but varying accuracies on augmented images.
    hparams = json.dumps({"batch_size": 4, "lr": 0})
    command = fakes.quick_arguments(
        tmp_path / "job", "--dataset", str(images), "--hparams", hparams
    )
    assert train.main(command) == 0

    losses = [loss for loss, _ in calls]
    assert len(losses) == 4 and len(set(losses)) == 1
    accuracies = {record["env1_in_acc"] for record in fakes.records(tmp_path / "job")}
    assert len(accuracies) > 1


@pytest.mark.parametrize("interrupted", ["accuracies", "validation_loss"])
def test_job_stopped_in_an_evaluation_repeats_the_same_loss(
    tmp_path, calls, monkeypatch, interrupted
):
    assert train.main(fakes.quick_arguments(tmp_path / "whole")) == 0
    expected = [loss for loss, _ in calls]
    calls.clear()

    original = getattr(evaluation.Evaluator, interrupted)
    evaluations = itertools.count(1)

    def stop(evaluator):
        if next(evaluations) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator)

    monkeypatch.setattr(evaluation.Evaluator, interrupted, stop)
    assert train.main(fakes.quick_arguments(tmp_path / "stopped")) == 75
    assert train.main(fakes.quick_arguments(tmp_path / "stopped")) == 0

    repeated = expected[2:3] if interrupted == "accuracies" else []
    losses = [loss for loss, _ in calls]
    assert losses == [*expected[:2], *repeated, *expected[2:]]
    assert fakes.comparable_records(tmp_path / "stopped") == fakes.comparable_records(
        tmp_path / "whole"
    )
