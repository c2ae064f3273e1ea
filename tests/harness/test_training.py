"""What the training asks of an algorithm at a step and at a checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import signal
from typing import ClassVar

import numpy as np
import pytest
import torch
from domainbed import algorithms
from domainbed.lib import evaluation, preparation
from domainbed.scripts import train
from PIL import Image
from runs_jobs import write_pictures

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


class Choosing(fakes.LinearSGD):
    """Predicts with its weights as they were at the last checkpoint."""

    wants_validation_loss = True
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

    def update(self, minibatches, unlabeled=None):
        inputs = torch.cat([x for x, _ in minibatches])
        labels = torch.cat([y for _, y in minibatches])
        loss = torch.nn.functional.cross_entropy(self.trained_logits(inputs), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


@pytest.fixture
def handed_over(monkeypatch):
    """What `Choosing`, in LinearSGD's place, has been handed over, with its weights then."""
    monkeypatch.setattr(algorithms, "LinearSGD", Choosing)
    monkeypatch.setattr(Choosing, "handed_over", [])
    return Choosing.handed_over


def validation_loss(folder, weight, bias):
    """The mean over the training environments 1 and 2 of the loss on each one's out-split."""
    args = train.build_parser().parse_args(fakes.quick(folder))
    hparams = preparation.choose_hparams(args, {"batch_size": 4})
    preparation.seed_everything(0)  # Debug28 draws its pictures
    _, environments = preparation.load_environments(args, hparams)
    losses = []
    for environment in environments[1:]:
        pictures, labels = zip(*environment.out_split)
        logits = torch.stack(pictures).double().flatten(1) @ weight.double().T + bias.double()
        probabilities = logits.softmax(dim=1)[range(len(labels)), list(map(int, labels))]
        losses.append(-probabilities.log().mean())
    return float(sum(losses) / 2)


def test_the_validation_loss_of_the_trained_weights_comes_before_the_evaluation(
    tmp_path, handed_over
):
    assert train.main(fakes.quick(tmp_path)) == 0

    weights = torch.load(tmp_path / "model.pkl", weights_only=True)["model_dict"]
    assert len(handed_over) == 4
    last_loss, last_weight = handed_over[-1]
    assert torch.equal(weights["chosen"], last_weight)
    expected = validation_loss(tmp_path, last_weight, weights["linear.bias"])
    assert last_loss == pytest.approx(expected, rel=1e-5)
    assert len({loss for loss, _ in handed_over}) == 4


def test_the_validation_loss_is_that_of_the_pictures_through_the_test_transform(
    tmp_path, handed_over
):
    """As long as the weights stay, it is the same number; accuracies are of augmented pictures."""
    command = [
        *fakes.quick(tmp_path / "job", "--dataset", str(write_pictures(tmp_path / "noise"))),
        *("--hparams", json.dumps({"batch_size": 4, "lr": 0})),
    ]
    assert train.main(command) == 0

    losses = [loss for loss, _ in handed_over]
    assert len(losses) == 4 and len(set(losses)) == 1
    weights = torch.load(tmp_path / "job" / "model.pkl", weights_only=True)["model_dict"]
    expected = loss_of_test_pictures(command, weights)
    assert losses[0] == pytest.approx(expected, rel=1e-3)  # pixels are rounded

    accuracies = {record["env1_in_acc"] for record in fakes.records(tmp_path / "job")}
    assert len(accuracies) > 1


def loss_of_test_pictures(command, weights):
    """The validation loss by Pillow and float64: squashed to 224 px and normalised, no more."""
    args = train.build_parser().parse_args(command)
    _, environments = preparation.load_environments(args, preparation.choose_hparams(args, {}))
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    losses = []
    for environment in environments[1:]:
        split = environment.out_split
        samples = [split.underlying_dataset.samples[position] for position in split.keys]
        own_losses = []
        for path, label in samples:
            picture = Image.open(path).convert("RGB")
            squashed = picture.resize((224, 224), Image.Resampling.BILINEAR)
            pixels = (np.asarray(squashed) / 255 - mean) / std
            x = torch.from_numpy(pixels.transpose(2, 0, 1).reshape(-1))
            logits = weights["linear.weight"].double() @ x + weights["linear.bias"].double()
            own_losses.append(-float(logits.log_softmax(0)[label]))
        losses.append(sum(own_losses) / len(own_losses))
    return sum(losses) / len(losses)


def test_the_newest_weights_are_the_best_of_an_algorithm_that_chooses_by_itself(
    tmp_path, handed_over
):
    assert train.main(fakes.quick(tmp_path)) == 0
    best = torch.load(tmp_path / "model_best.pkl", weights_only=True)
    last = torch.load(tmp_path / "model.pkl", weights_only=True)
    assert best["best_step"] == 6
    assert all(
        torch.equal(best["model_dict"][n], last["model_dict"][n]) for n in last["model_dict"]
    )


@pytest.mark.parametrize("interrupted", ["accuracies", "validation_loss"])
def test_a_job_stopped_in_an_evaluation_gets_the_same_loss_once_more(
    tmp_path, handed_over, monkeypatch, interrupted
):
    assert train.main(fakes.quick(tmp_path / "whole")) == 0
    expected = [loss for loss, _ in handed_over]
    handed_over.clear()

    original = getattr(evaluation.Evaluator, interrupted)
    calls = itertools.count(1)

    def stop(evaluator):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator)

    monkeypatch.setattr(evaluation.Evaluator, interrupted, stop)
    assert train.main(fakes.quick(tmp_path / "stopped")) == 75
    assert train.main(fakes.quick(tmp_path / "stopped")) == 0

    repeated = expected[2:3] if interrupted == "accuracies" else []
    losses = [loss for loss, _ in handed_over]
    assert losses == [*expected[:2], *repeated, *expected[2:]]
    assert comparable_records(tmp_path / "stopped") == comparable_records(tmp_path / "whole")
