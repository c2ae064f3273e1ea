"""`carft check`: all methods have all properties, and a method with one fault fails."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import domainbed
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_checkout import REPO
from method_cases import CASES, PARAMETERS
from test_docs import blocks
from torch.overrides import TorchFunctionMode

from domainbed_carft import check, cli
from domainbed_carft.checks import check as checking
from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.properties import CHECKS
from domainbed_carft.checks.subject import Subject, get_gradients, minibatches, take_step
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.method import encoders
from domainbed_carft.method.baselines import CLIPFineTune
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.hparams import Hparam, by_size, fraction, positive

OWN_METHOD = REPO / "docs" / "howto" / "own-method.md"

NO_WEIGHT = {"zero-weight"}
CONTRASTS = {"zero-weight", "micro-batches"}
SKIPPED = {
    "CLIPFineTune": NO_WEIGHT,
    "CLIPLinearProbe": NO_WEIGHT,
    "CLIPZeroShot": {"zero-weight", "gradients"},
    "CLIPood": NO_WEIGHT,
    "CLIPWiSEFT": NO_WEIGHT,
    "CLIPLPFT": NO_WEIGHT,
    "CLIPLoRA": NO_WEIGHT,
    "FLYP": CONTRASTS,
    "CaRot": CONTRASTS,
    "linear probing first": NO_WEIGHT,
    "wise-ft of an average": NO_WEIGHT,
    "flyp with swad": CONTRASTS,
    "random head": {"class-order"},
}


def names_of(results, state):
    return {result.check for result in results if result.state == state}


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_method_has_every_property(case, random_tiny):
    name, options = CASES[case]
    hparams = {**options, "clip_backbone": str(random_tiny)}
    results = check(name, hparams=hparams, without=["device"])
    assert [result.check for result in results] == [name for name in CHECKS if name != "device"]
    assert names_of(results, "skipped") == SKIPPED.get(case, set())


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_method_computes_the_same_on_a_device(case, device, random_tiny):
    name, options = CASES[case]
    hparams = {**options, "clip_backbone": str(random_tiny)}
    (result,) = check(name, hparams=hparams, only=["device"])
    assert result.state == "ok"


class RecordedDraws(TorchFunctionMode):
    """The devices that random numbers are requested for."""

    def __init__(self):
        super().__init__()
        self.devices = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.rand, torch.randn_like):
            self.devices.append(result.device.type)
        return result


def test_random_numbers_for_a_device_are_those_of_the_cpu(stand_in):
    images = torch.zeros(3, device=stand_in)
    with RecordedDraws() as draws, float64(constant_draws=True):
        torch.manual_seed(0)
        numbers = [torch.rand(3, device=stand_in), torch.randn_like(images)]
    assert draws.devices == ["cpu", "cpu"]
    assert {tensor.device.type for tensor in numbers} == {stand_in.type}

    torch.manual_seed(0)
    expected = [torch.rand(3, dtype=torch.float64)[0], torch.randn(3)[0]]
    for tensor, number in zip(numbers, expected):
        assert tensor.tolist() == [number.item()] * 3


def test_check_on_a_device_is_skipped_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(devices, "default_device", lambda: devices.CPU)
    assert cli.main(["check", "CARFT", "--only", "device"]) == 0
    assert "device            skipped: no GPU" in capsys.readouterr().out.splitlines()


def test_documented_method_has_every_property(tmp_path, random_tiny):
    (block,) = (b for b in blocks(OWN_METHOD) if b.title == "anchor.py")
    (tmp_path / "anchor.py").write_text(block.text)
    hparams = {"clip_backbone": str(random_tiny)}
    results = check(tmp_path / "anchor.py", hparams=hparams, without=["device"])
    assert {result.algorithm for result in results} == {"CLIPAnchor"}
    assert names_of(results, "ok") == CHECKS.keys() - {"device"}


@pytest.mark.slow
def test_documented_second_optimizer_has_every_property(tmp_path, random_tiny):
    (block,) = (b for b in blocks(OWN_METHOD) if b.title == "temperature.py")
    (tmp_path / "temperature.py").write_text(block.text)
    hparams = {"clip_backbone": str(random_tiny)}
    results = check(tmp_path / "temperature.py", hparams=hparams, without=["device"])
    assert names_of(results, "skipped") == {"zero-weight"}


def penalised(drift_every):
    """A method whose loss computes its own features, with a penalty on the tuned ones."""

    class OwnFeatures(CLIPFineTune):
        def loss(self, batch):
            features = encoders.encode(self.encoder, batch.images.flip(-1), self.bf16).features
            cross_entropy = F.cross_entropy(self.class_logits(features), batch.labels)
            return {"loss": cross_entropy, "loss_ce": cross_entropy}

    subject = Subject(OwnFeatures, {"fd_weight": 1e3, "drift_every": drift_every})
    algorithm = subject.get_initial()
    take_step(algorithm, 0, minibatches(0))
    algorithm.steps_taken = 0
    take_step(algorithm, 1, minibatches(1))
    return get_gradients(algorithm)


def test_penalty_has_the_same_gradients_at_steps_that_measure_the_drift():
    measuring, other = penalised(drift_every=1), penalised(drift_every=0)
    assert measuring.keys() == other.keys()
    for name, gradient in measuring.items():
        torch.testing.assert_close(gradient, other[name])


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ('{"lrr": 0.1}', "no hyperparameter of CARFT is called 'lrr'; did you mean lr"),
        ('{"lr": "x"}', "lr is 'x', expected "),
    ],
)
def test_wrong_hyperparameters_get_the_message_of_train(hparams, message, capsys):
    assert cli.main(["check", "CARFT", "--hparams", hparams]) == 2
    assert message in capsys.readouterr().err


def test_method_that_exits_fails_its_checks(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        OWN_FILE + "\n\nclass Exits(CLIPFineTune):\n    def features(self, x):\n        exit(0)\n"
    )
    words = ["check", str(tmp_path / "own.py"), "--only", "rest-of-batch", "target"]
    assert cli.main(words) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if "SystemExit" in line]
    assert len(failures) == 2 and all("(own.py, line " in line for line in failures)


class HasAFactor(CLIPFineTune):
    HPARAMS = (positive("factor", 1.0),)


def test_hyperparameter_of_one_of_several_methods_can_be_set(monkeypatch):
    monkeypatch.setattr(checking, "find_classes", lambda method: [CLIPFineTune, HasAFactor])
    results = check("a file", hparams={"factor": 2.0}, only=["rest-of-batch"])
    assert [(result.algorithm, result.state) for result in results] == [
        ("CLIPFineTune", "ok"),
        ("HasAFactor", "ok"),
    ]
    with pytest.raises(CarftError, match="'facto'; did you mean factor"):
        check("a file", hparams={"facto": 2.0}, only=["rest-of-batch"])


class KeepsOrder(CLIPFineTune):
    EXEMPT_FROM = {"class-order": "its last class is preferred on purpose"}


def test_declared_exemption_is_skipped_with_its_reason():
    (result,) = check(KeepsOrder, only=["class-order"])
    assert result.state == "skipped"
    assert result.message == "KeepsOrder is exempt: its last class is preferred on purpose"

    misspelt = type("Misspelt", (CLIPFineTune,), {"EXEMPT_FROM": {"class-ordr": "x"}})
    with pytest.raises(
        CarftError, match="EXEMPT_FROM of Misspelt: no check is called 'class-ordr'"
    ):
        check(misspelt)


def test_check_of_resuming_is_skipped_in_a_checkout(monkeypatch):
    monkeypatch.setattr(domainbed, "IS_CARFT_HARNESS", False)
    (result,) = check("CARFT", only=["resume"])
    assert result.state == "skipped"
    assert result.message == (
        "the domainbed package in use is a checkout, which does not resume jobs"
    )


# Methods with one fault each


class ChangesItsHparams(CARFT):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        hparams["kl_over"] = "contexts"
        super().__init__(input_shape, num_classes, num_domains, hparams)


class LosesAGradient(CARFT):
    def kl(self, batch):
        return super().kl(batch).detach()


class AddsWhatTheBatchSays(CLIPFineTune):
    def loss(self, batch):
        losses = super().loss(batch)
        return {**losses, "loss": losses["loss"] + batch.tuned.features.var(dim=0).mean()}


class DropsAMeasurement(CARFT):
    def update(self, *arguments, **keywords):
        return {"loss": super().update(*arguments, **keywords)["loss"]}


class ForgetsWhenResumed(CLIPFineTune):
    """A number in an object that no state has."""

    def build_for_training(self, *arguments):
        super().build_for_training(*arguments)
        self.head.memory = SimpleNamespace(factor=1.0)

    def after_step(self):
        self.head.memory.factor *= 1.1

    def loss(self, batch):
        return {name: self.head.memory.factor * v for name, v in super().loss(batch).items()}


class PredictsByMoreThanItsState(CLIPFineTune):
    temperature = 1.0

    def after_step(self):
        self.temperature *= 1.1

    def class_logits(self, features):
        return self.temperature * super().class_logits(features)


class PredictsByATrainingBuffer(CLIPFineTune):
    def build_for_training(self, *arguments):
        super().build_for_training(*arguments)
        self.register_buffer("scale", torch.tensor(0.5))

    def class_logits(self, features):
        return self.scale * super().class_logits(features)


class AddsAConstantOfTheCPU(CLIPFineTune):
    def loss(self, batch):
        losses = super().loss(batch)
        features = batch.tuned.features
        return {
            **losses,
            "loss": losses["loss"] + (features @ torch.ones(features.shape[1])).mean(),
        }


class CentresFeatures(CLIPFineTune):
    def features(self, x):
        features = super().features(x)
        return features - 0.1 * features.mean(dim=0)


class PrefersTheLastClass(CLIPFineTune):
    def class_logits(self, features):
        logits = super().class_logits(features)
        return logits + torch.arange(logits.shape[1], device=logits.device)


class KeepsAWeight(CARFT):
    def kl_weight(self):
        return super().kl_weight() + 0.1


class TrainsOnTheTarget(CLIPFineTune):
    def update(self, minibatches=None, unlabeled=None, **keywords):
        for images in unlabeled or ():
            self.predict(images)
        return super().update(minibatches, **keywords)


class AdaptsToTestImages(CLIPFineTune):
    """It moves its bias while it predicts."""

    def predict(self, x):
        logits = super().predict(x)
        self.head.bias.data += 0.1 * logits.mean(dim=0)
        return logits


class HasAWrongDefault(CLIPFineTune):
    HPARAMS = (positive("factor", by_size(1.0, 0.0)),)


class DrawsAWrongValue(CLIPFineTune):
    HPARAMS = (fraction("share", 0.5, draw=lambda random_state, conditions: 1.5),)


class AcceptsAnything(CLIPFineTune):
    HPARAMS = (Hparam("factor", 1.0, lambda value: True, "a number"),)


class DrawsFromNumpy(CLIPFineTune):
    def loss(self, batch):
        losses = super().loss(batch)
        return {**losses, "loss": losses["loss"] * (1 + 0.01 * np.random.rand())}


class ShufflesByPython(CLIPFineTune):
    def update(self, minibatches=None, unlabeled=None, **keywords):
        random.shuffle(["a", "list"])
        return super().update(minibatches, **keywords)


class ClampsImagesInPlace(CLIPFineTune):
    """Again and again with the same result."""

    def features(self, x):
        return super().features(x.clamp_(-1, 1))


class ClampsItsBatchInPlace(CLIPFineTune):
    def loss(self, batch):
        batch.images.clamp_(-1, 1)
        return super().loss(batch)


class ReadsAnUndeclaredValue(CLIPFineTune):
    def loss(self, batch):
        losses = super().loss(batch)
        return {**losses, "loss": self.hparams.get("undeclared", 1.0) * losses["loss"]}


class Exits(CLIPFineTune):
    def features(self, x):
        sys.exit()


FAULTS = {
    ChangesItsHparams: {"four-arguments"},
    DrawsFromNumpy: {
        *{"generators", "gradients", "micro-batches", "records", "resume", "device"},
        *{"class-order", "target"},
    },
    ShufflesByPython: {"generators"},
    ClampsImagesInPlace: {"in-place"},
    ClampsItsBatchInPlace: {"in-place"},
    ReadsAnUndeclaredValue: {"declared-hparams"},
    LosesAGradient: {"gradients"},
    AddsWhatTheBatchSays: {"micro-batches"},
    DropsAMeasurement: {"records"},
    ForgetsWhenResumed: {"resume"},
    PredictsByMoreThanItsState: {"state-dict"},
    PredictsByATrainingBuffer: {"state-dict"},
    AddsAConstantOfTheCPU: {"device"},
    CentresFeatures: {"rest-of-batch"},
    PrefersTheLastClass: {"class-order"},
    KeepsAWeight: {"zero-weight"},
    TrainsOnTheTarget: {"target"},
    AdaptsToTestImages: {"rest-of-batch", "resume", "state-dict", "target"},
    HasAWrongDefault: {"default-hparams", "drawn-hparams"},
    DrawsAWrongValue: {"drawn-hparams"},
    AcceptsAnything: {"wrong-hparams"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", FAULTS, ids=lambda method: method.__name__)
def test_fault_is_reported_only_by_its_checks(method, random_tiny, stand_in):
    hparams = {"clip_backbone": str(random_tiny)}
    results = check(method, hparams=hparams, raises=False)
    failed = [result for result in results if result.state == "FAILED"]
    assert {result.check for result in failed} == FAULTS[method], [*map(str, failed)]


def test_weights_that_a_loaded_run_lacks_are_reported(random_tiny):
    hparams = {"clip_backbone": str(random_tiny)}
    (result,) = check(PredictsByATrainingBuffer, hparams=hparams, only=["state-dict"], raises=False)
    assert result.state == "FAILED"
    assert "no attribute 'scale'" in result.message
    assert "build_for_prediction" in result.message and "test_check.py" in result.message


class CountsInABuffer(CLIPFineTune):
    def build_for_training(self, *arguments):
        super().build_for_training(*arguments)
        self.register_buffer("count", torch.zeros(()))

    def after_step(self):
        self.count += 1


def test_buffer_that_only_training_needs_is_no_fault(random_tiny):
    hparams = {"clip_backbone": str(random_tiny)}
    results = check(CountsInABuffer, hparams=hparams, only=["resume", "state-dict"])
    assert [result.state for result in results] == ["ok", "ok"]


# The command and the function

OWN_FILE = """
from domainbed_carft.method.baselines import CLIPFineTune


class DropsMeasurements(CLIPFineTune):
    def update(self, *arguments, **keywords):
        return {"loss": super().update(*arguments, **keywords)["loss"]}


class Wrong(CLIPFineTune):
    def predict(self, x):
        return x.images
"""


def test_command_prints_a_line_for_each_check(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN_FILE)
    only = ["--only", "records", "zero-weight", "rest-of-batch"]
    assert cli.main(["check", str(tmp_path / "own.py"), *only]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line[:1].isdigit()]
    first, second = lines[:4], lines[4:8]
    assert first[0] == "DropsMeasurements" and second[0] == "Wrong"
    assert "records           FAILED: value of loss returned by update: ['loss_ce']" in first[1]
    assert "rest-of-batch     ok" in first[2] and "zero-weight       skipped: it" in first[3]
    assert "FAILED: AttributeError" in second[2] and "(own.py, line 12)" in second[2]

    assert cli.main(["check", "CLIPZeroShot", "--only", "gradients", "records"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 check passed, 0 failed, 1 skipped"


def test_function_raises_the_failures(tmp_path):
    (tmp_path / "own.py").write_text(OWN_FILE)
    with pytest.raises(AssertionError) as raised:
        check(tmp_path / "own.py", only=["records", "rest-of-batch"])
    first, *failures = str(raised.value).splitlines()
    assert first == "DropsMeasurements, Wrong: 2 checks passed, 2 failed, 0 skipped"
    assert [line.split()[0] for line in failures] == ["records", "rest-of-batch"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["NoMethod"], "NoMethod"),
        (["missing.py"], "missing.py"),
        (["CARFT", "--only", "gradient"], "gradients"),
        (["CARFT", "--hparams", "[1]"], "JSON object"),
    ],
)
def test_wrong_arguments_are_named(words, named, capsys):
    assert cli.main(["check", *words]) == 2
    assert named in capsys.readouterr().err


def test_classes_that_are_not_methods_are_refused():
    with pytest.raises(CarftError, match="CLIPAlgorithm"):
        check(torch.nn.Linear)
    with pytest.raises(CarftError, match="only is 'records', expected a list"):
        check("CARFT", only="records")
