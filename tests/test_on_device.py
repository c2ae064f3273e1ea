"""Training, prediction and saved states on a device: the stand-in, or with ``-m gpu`` a GPU."""

import contextlib
import copy
import itertools
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from domainbed.lib import algorithm_state, resume, step_meters
from runs_jobs import records, train_job, write_pictures
from runs_jobs import weights as saved_weights
from test_algorithms import make, minibatches
from test_step import clip_of

from domainbed_carft import cli
from domainbed_carft.files import weights
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.machine import devices, stand_in_device
from domainbed_carft.method import algorithm as algorithm_module
from domainbed_carft.method import averages
from domainbed_carft.method.encoders import FrozenOriginal
from domainbed_carft.results import evaluations
from domainbed_carft.runs import predictions, sweep_job
from domainbed_carft.runs.predictions import LoadingOptions

TERMS = ("sp", "fd", "ldifs", "lipsum", "miro")
ALL_TERMS = {f"{term}_weight": 0.5 for term in TERMS}
OPTIONS = {
    "all terms": ("StarFT", ALL_TERMS),
    "beta": ("CLIPood", {"average": "beta", "margin": 0.2}),
    "swad": ("CARFT", {"average": "swad", "swad_converge": 1, "swad_tolerance": 1}),
    "flyp with swad": ("FLYP", {"average": "swad", "swad_converge": 1, "swad_tolerance": 1}),
    "wise-ft of an average": ("CLIPWiSEFT", {"average": "ema"}),
    "linear probing first": ("CLIPLPFT", {"lp_steps": 1, "average": "sma"}),
    "micro-batches": ("CARFT", ALL_TERMS | {"micro_batch": 5}),
    "checkpointed blocks": ("CARFT", {"checkpoint_blocks": True, "ldifs_weight": 0.5}),
    "lora": ("CARFT", {"lora_rank": 2, "average": "ema"}),
    "bf16": ("CARFT", {"amp": "bf16", "ldifs_weight": 0.5}),
}
CASES = {name: (name, {}) for name in ALGORITHMS} | OPTIONS
SLOW_CASES = {"FDAlign"}  # it imports scikit-learn


def assert_equal(actual, expected, tolerance=None):
    """Equal but for rounding: on a device other kernels compute attention and AdamW."""
    tolerance = tolerance or (0.02 if actual.device.type == "cuda" else 1e-3)
    torch.testing.assert_close(
        actual.detach().cpu(), expected.detach().cpu(), rtol=tolerance, atol=tolerance
    )


def made(case, random_tiny):
    """The algorithm of a case, on the processor; a GPU would round and draw in other ways."""
    algorithm, overrides = CASES[case]
    settings = {"amp": "off", "lora_dropout": 0.0}
    return make(random_tiny, algorithm, **{**settings, **overrides})


def moved(batches, device):
    return [(x.to(device), y.to(device)) for x, y in batches]


def taken_step(algorithm, seed, device="cpu", refused_waits=None):
    """The measurements of a step, with the random numbers of its seed, and a checkpoint after."""
    batches = moved(minibatches(seed), device)
    torch.manual_seed(seed)
    with refused_waits or contextlib.nullcontext():
        measurements = algorithm.step_on_device(batches)
    if algorithm.wants_validation_loss:
        algorithm.at_checkpoint(1.0 + 0.1 * seed)
    return measurements


def marked(cases, slow_cases):
    """The cases, of which some are marked slow."""
    return [
        pytest.param(case, marks=[pytest.mark.slow] if case in slow_cases else []) for case in cases
    ]


def assert_same_training(algorithm, reference, device, tolerance=None):
    """Take steps that never wait on the device, and compare them with the processor's.

    The first step makes the optimizer's state; LP-FT takes two of each phase.
    """
    for seed in range(2 + reference.lp_steps):
        refused_waits = devices.refused_waits() if seed else None
        measurements = taken_step(algorithm, seed, device, refused_waits)
        expected = taken_step(reference, seed)
        assert measurements.keys() == expected.keys()
        for name, value in measurements.items():
            assert value.shape == () and not value.requires_grad
            assert_equal(value, expected[name], tolerance)

    x = minibatches(9)[0][0]
    with torch.no_grad():
        for method in ("predict", "trained_logits"):
            logits = getattr(algorithm, method)(x.to(device))
            assert logits.device.type == device.type
            assert_equal(logits, getattr(reference, method)(x), tolerance)


@pytest.mark.parametrize("case", marked(CASES, SLOW_CASES))
def test_a_step_stays_on_the_device_and_never_waits(device, random_tiny, case):
    reference = made(case, random_tiny)
    algorithm = copy.deepcopy(reference).to(device)
    assert_same_training(algorithm, reference, device, tolerance=0.02 if case == "bf16" else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("ResNet", "FLYP"), ("gelu", "LipsumFT"), ("gelu", "CaRot"), ("siglip", "FLYP")],
)
def test_clips_of_other_kinds_stay_on_the_device(device, random_tiny, tmp_path, kind, algorithm):
    clip = clip_of(kind, random_tiny, tmp_path)
    settings = {"amp": "off", "warmup_steps": 19}
    reference = make(clip, algorithm, **settings)
    assert_same_training(copy.deepcopy(reference).to(device), reference, device, tolerance=0.02)


# Saved states

RESUMED = ("swad", "all terms", "flyp with swad", "CLIPLPFT", "lora")


def written_and_read(algorithm, initial_structure, path):
    resume.save_whole(algorithm_state.capture(algorithm, initial_structure), path)
    return weights.load_weights(path)


@pytest.mark.parametrize("case", marked(RESUMED, {*RESUMED[1:]}))
@pytest.mark.parametrize("direction", ["to the processor", "from the processor", "on the device"])
def test_a_state_goes_on_where_it_is_restored(device, random_tiny, tmp_path, case, direction):
    first_device = "cpu" if direction == "from the processor" else device
    second_device = "cpu" if direction == "to the processor" else device
    reference = made(case, random_tiny)
    structure = algorithm_state.structure(reference)
    first, second = (copy.deepcopy(reference).to(place) for place in (first_device, second_device))
    taken_step(reference, 0)
    taken_step(first, 0, first_device)

    algorithm_state.restore(second, written_and_read(first, structure, tmp_path / "state.pt"))
    measurements = taken_step(second, 1, second_device, devices.refused_waits())
    for name, expected in taken_step(reference, 1).items():
        assert_equal(measurements[name], expected)


# Planted mistakes


@pytest.fixture
def stand_in():
    with stand_in_device.installed() as device:
        yield device


def test_a_part_left_on_the_processor_is_found(stand_in, random_tiny, monkeypatch):
    monkeypatch.setattr(FrozenOriginal, "apply", lambda original, fn: None)
    algorithm = made("all terms", random_tiny).to(stand_in)
    with pytest.raises(stand_in_device.MixedDevicesError, match="tensors of the processor"):
        taken_step(algorithm, 0, stand_in)


def test_a_value_read_in_a_step_is_found(stand_in, random_tiny, monkeypatch):
    def read(measurements, process_group):
        return {name: torch.tensor(float(value)) for name, value in measurements.items()}

    monkeypatch.setattr(algorithm_module, "all_reduce_measurements", read)
    algorithm = made("CARFT", random_tiny).to(stand_in)
    with pytest.raises(RuntimeError, match="CUDA operation: _local_scalar_dense"):
        taken_step(algorithm, 0, stand_in, devices.refused_waits())


def test_a_state_that_stays_on_the_processor_is_found(stand_in, random_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(averages.SWAD, "_on_device", lambda average, tensors: dict(tensors))
    first, second = (made("swad", random_tiny).to(stand_in) for _ in range(2))
    first.step_on_device(moved(minibatches(), stand_in))
    structure = algorithm_state.structure(first)
    algorithm_state.restore(second, written_and_read(first, structure, tmp_path / "state.pt"))
    with pytest.raises(stand_in_device.MixedDevicesError):
        second.step_on_device(moved(minibatches(1), stand_in))


# A rehearsal


# Whole jobs

# In the fast pictures' second stage, in SWAD's validation, in both phases of LP-FT.
JOB = {"average": "swad", "swad_converge": 1, "swad_tolerance": 1, "lp_steps": 1, "lr": 1e-4}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "noise", count=3)


@pytest.fixture(scope="module")
def undisturbed(noise, tmp_path_factory):
    """A job that nothing interrupts, on the processor."""
    return train_job(tmp_path_factory.mktemp("jobs") / "job", noise, "CLIPLPFT", *EACH_STEP, **JOB)


EACH_STEP = ("--checkpoint_freq", "1")


def stop_after(monkeypatch, steps):
    """Send SIGTERM to this process after so many steps."""
    steps_taken = itertools.count(1)
    take_step = step_meters.step

    def step(*arguments):
        values = take_step(*arguments)
        if next(steps_taken) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(step_meters, "step", step)


@pytest.mark.parametrize("starts_on_device", [True, False])
def test_a_job_resumes_on_another_device(
    device, noise, undisturbed, tmp_path, monkeypatch, starts_on_device
):
    def train(on_device):
        chosen = device if on_device else devices.CPU
        monkeypatch.setattr(devices, "default_device", lambda: chosen)
        return train_job(tmp_path / "job", noise, "CLIPLPFT", *EACH_STEP, **JOB)

    with monkeypatch.context() as patches:
        stop_after(patches, steps=2)
        with pytest.raises(AssertionError):  # its status is 75
            train(starts_on_device)
    train(not starts_on_device)

    actual = records(tmp_path / "job")
    expected = records(undisturbed)
    assert len({record["device"] for record in actual}) == 2
    for name in ("loss", "loss_ce", "env0_in_acc", "env1_out_acc"):
        values = [record[name] for record in actual]
        assert values == pytest.approx([record[name] for record in expected], rel=0.02)
    assert_same_weights(tmp_path / "job", undisturbed)


def assert_same_weights(folder, reference_folder, name="model.pkl"):
    """The weights are plain ones of the processor, wherever they were trained."""
    actual, expected = (saved_weights(place / name) for place in (folder, reference_folder))
    assert actual.keys() == expected.keys()
    for key, tensor in actual.items():
        assert_equal(tensor, expected[key])


# Trained runs

COMMANDS = {
    "evaluate": ["evaluate", "CARFT", "--json"],
    "predict": ["predict", "CARFT", "my pets/art", "--format", "jsonl"],
    "wise-ft": ["wise-ft", "CARFT", "--alphas", "0", "0.5", "--save", "all", "-o", "{folder}"],
    "soup": ["soup", "CARFT/model.pkl", "CARFT/model_best.pkl", "-o", "{folder}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gives_the_processors_results(
    device, pets, tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(pets)
    outputs = []
    for place in ("cpu", str(device)):
        folder = tmp_path / place
        words = [word.format(folder=folder) for word in COMMANDS[command]]
        assert cli.main([*words, "--device", place]) == 0
        documents = [*folder.glob("*.json")]
        texts = [path.read_text() for path in documents] or [capsys.readouterr().out]
        outputs.append(figures(texts))
    assert outputs[1] == pytest.approx(outputs[0], abs=1e-4) and len(outputs[0]) > 3

    for path in (tmp_path / "cpu").glob("*.pkl"):
        assert_same_weights(tmp_path / str(device), tmp_path / "cpu", path.name)


def test_the_rows_of_pictures_are_the_processors(device, pets, tmp_path):
    measured = []
    for place in ("cpu", str(device)):
        job = shutil.copytree(pets / "CARFT", tmp_path / place)
        options = LoadingOptions(predictions.choose_device(place), batch_size=8, workers=0)
        assert sweep_job.evaluate_run(job, 2, options)
        measured.append(evaluations.load_rows(job, 2)[0])

    expected, actual = measured
    np.testing.assert_array_equal(actual.zero_shot, expected.zero_shot)
    for column in ("label", "predicted"):
        np.testing.assert_array_equal(getattr(actual.raw, column), getattr(expected.raw, column))
    np.testing.assert_allclose(actual.alignment, expected.alignment, atol=0.01)
    np.testing.assert_allclose(actual.scaled.top, expected.scaled.top, atol=0.01)


def figures(texts):
    """The numbers in some texts."""
    return [float(figure) for text in texts for figure in re.findall(r"\d+\.\d+", text)]
