"""What the training asks of an algorithm at a step and at a checkpoint."""

import itertools
import json
import os
import signal
from typing import ClassVar

import pytest
import torch
from domainbed import algorithms
from domainbed.lib import evaluation, preparation
from domainbed.scripts import train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")


class Deferred(fakes.LinearSGD):
    """Leaves its values on the device."""

    def step_on_device(self, minibatches):
        values = fakes.LinearSGD.update(self, minibatches)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def update(self, minibatches, unlabeled=None):
        raise AssertionError("step_on_device should be called, which does not wait for the device")


def test_values_left_on_the_device_reach_the_records_unchanged(tmp_path, monkeypatch):
    assert train.main(fakes.quick_arguments(tmp_path / "plain")) == 0
    monkeypatch.setattr(algorithms, "LinearSGD", Deferred)
    assert train.main(fakes.quick_arguments(tmp_path / "deferred")) == 0

    records = fakes.comparable_records(tmp_path / "plain")
    assert len(records) == 4
    assert fakes.comparable_records(tmp_path / "deferred") == records


class Changed(Deferred):
    """A subclass that knows nothing of `step_on_device`."""

    def update(self, minibatches, unlabeled=None):
        return {"loss": 7.0}


def test_an_overridden_update_is_used_instead_of_an_inherited_step_on_device(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Changed)
    assert train.main(fakes.quick_arguments(tmp_path)) == 0
    assert [record["loss"] for record in fakes.comparable_records(tmp_path)] == [7.0] * 4


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
    assert train.main(fakes.quick_arguments(tmp_path)) == 0

    assert Constant.item_count == 3 * 16  # each item of Debug28's three environments
    accuracies = [
        {name: value for name, value in record.items() if name.endswith("_acc")}
        for record in fakes.comparable_records(tmp_path)
    ]
    assert len(accuracies[0]) == 6
    assert accuracies == [accuracies[0]] * 4
    assert [record["loss"] for record in fakes.comparable_records(tmp_path)] == [0.1] * 4


class Choosing(fakes.LinearSGD):
    """Predicts with its weights as they were at the last checkpoint."""

    uses_validation_loss = True
    handed_over: ClassVar[list[tuple[float, torch.Tensor]]] = []

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("chosen", self.linear.weight.detach().clone())

    def at_checkpoint(self, validation_loss):
        self.chosen.copy_(self.linear.weight.detach())
        self.handed_over.append((validation_loss, self.linear.weight.detach().clone()))

    def trained_logits(self, x):
        return self.linear(x.flatten(1))

    def predict(self, x):
        return torch.nn.functional.linear(x.flatten(1), self.chosen)


@pytest.fixture
def handed_over(monkeypatch):
    """What `Choosing`, in LinearSGD's place, has been handed over, with its weights then."""
    monkeypatch.setattr(algorithms, "LinearSGD", Choosing)
    monkeypatch.setattr(Choosing, "handed_over", [])
    return Choosing.handed_over


def validation_loss(folder, weight, bias):
    """The mean over the training environments 1 and 2 of the loss on each one's out-split."""
    args = train.build_parser().parse_args(fakes.quick_arguments(folder))
    hparams = preparation.choose_hparams(args, {"batch_size": 4})
    preparation.seed_everything(0)  # Debug28 draws its images
    _, environments = preparation.load_environments(args, hparams)
    losses = []
    for environment in environments[1:]:
        images, labels = zip(*environment.out_split)
        logits = torch.stack(images).double().flatten(1) @ weight.double().T + bias.double()
        probabilities = logits.softmax(dim=1)[range(len(labels)), list(map(int, labels))]
        losses.append(-probabilities.log().mean())
    return float(sum(losses) / 2)


def test_the_validation_loss_of_the_trained_weights_comes_before_the_evaluation(
    tmp_path, handed_over
):
    assert train.main(fakes.quick_arguments(tmp_path)) == 0

    weights = torch.load(tmp_path / "model.pkl", weights_only=True)["model_dict"]
    assert len(handed_over) == 4
    last_loss, last_weight = handed_over[-1]
    assert torch.equal(weights["chosen"], last_weight)
    expected = validation_loss(tmp_path, last_weight, weights["linear.bias"])
    assert last_loss == pytest.approx(expected, rel=1e-5)
    assert len({loss for loss, _ in handed_over}) == 4

    # The newest weights are the best of an algorithm that chooses by itself.
    best = torch.load(tmp_path / "model_best.pkl", weights_only=True)
    assert best["best_step"] == 6
    assert torch.equal(best["model_dict"]["chosen"], last_weight)


def test_the_validation_loss_is_that_of_the_images_through_the_test_transform(
    images, tmp_path, handed_over
):
    # With constant weights the loss is constant; accuracies are those of augmented images.
    hparams = json.dumps({"batch_size": 4, "lr": 0})
    command = fakes.quick_arguments(
        tmp_path / "job", "--dataset", str(images), "--hparams", hparams
    )
    assert train.main(command) == 0

    losses = [loss for loss, _ in handed_over]
    assert len(losses) == 4 and len(set(losses)) == 1
    accuracies = {record["env1_in_acc"] for record in fakes.records(tmp_path / "job")}
    assert len(accuracies) > 1


@pytest.mark.parametrize("interrupted", ["accuracies", "validation_loss"])
def test_a_job_stopped_in_an_evaluation_gets_the_same_loss_once_more(
    tmp_path, handed_over, monkeypatch, interrupted
):
    assert train.main(fakes.quick_arguments(tmp_path / "whole")) == 0
    expected = [loss for loss, _ in handed_over]
    handed_over.clear()

    original = getattr(evaluation.Evaluator, interrupted)
    calls = itertools.count(1)

    def stop(evaluator):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator)

    monkeypatch.setattr(evaluation.Evaluator, interrupted, stop)
    assert train.main(fakes.quick_arguments(tmp_path / "stopped")) == 75
    assert train.main(fakes.quick_arguments(tmp_path / "stopped")) == 0

    repeated = expected[2:3] if interrupted == "accuracies" else []
    losses = [loss for loss, _ in handed_over]
    assert losses == [*expected[:2], *repeated, *expected[2:]]
    assert fakes.comparable_records(tmp_path / "stopped") == fakes.comparable_records(
        tmp_path / "whole"
    )
