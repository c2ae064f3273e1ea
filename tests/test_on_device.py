"""Training and commands on a device: the stand-in, or a GPU with ``-m gpu``."""

import contextlib
import copy
import re

import pytest
import torch
from runs_jobs import load_weights as saved_weights
from runs_jobs import records, train_job, write_images
from test_algorithms import make, minibatches
from test_step import find_clip

from domainbed_carft import cli
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.machine import devices


def assert_equal(actual, expected, tolerance=None):
    """Compare tensors up to rounding: devices have other kernels for attention and AdamW."""
    tolerance = tolerance or (0.02 if actual.device.type == "cuda" else 1e-3)
    torch.testing.assert_close(
        actual.detach().cpu(), expected.detach().cpu(), rtol=tolerance, atol=tolerance
    )


SWAD = {"average": "swad", "swad_converge": 1, "swad_tolerance": 1}


@pytest.mark.parametrize(
    ("kind", "name", "overrides"),
    [
        ("ViT", "CARFT", {"amp": "bf16", "ldifs_weight": 0.5}),
        ("ViT", "FLYP", SWAD),
        *(pytest.param("ViT", name, {}, marks=pytest.mark.gpu) for name in ALGORITHMS),
        *(
            pytest.param(kind, name, {"warmup_steps": 19}, marks=pytest.mark.slow)
            for kind, name in (
                ("ResNet", "FLYP"),
                ("gelu", "LipsumFT"),
                ("gelu", "CaRot"),
                ("siglip", "FLYP"),
            )
        ),
    ],
)
def test_steps_never_wait_for_the_device(device, random_tiny, tmp_path, kind, name, overrides):
    clip = find_clip(kind, random_tiny, tmp_path)
    reference = make(clip, name, **{"amp": "off", **overrides})
    algorithm = copy.deepcopy(reference).to(device)
    for seed in range(2):
        batches = minibatches(seed)
        moved = [(x.to(device), y.to(device)) for x, y in batches]
        torch.manual_seed(seed)
        # The first step builds the optimizer's state, which waits.
        with devices.refuse_waits() if seed else contextlib.nullcontext():
            measurements = algorithm.step_on_device(moved)
        torch.manual_seed(seed)
        expected = reference.step_on_device(batches)
        for trained in (algorithm, reference):
            trained.at_checkpoint(1.0 + 0.1 * seed)

        assert measurements.keys() == expected.keys()
        for measured, value in expected.items():
            assert_equal(measurements[measured], value, tolerance=0.02)

    x = minibatches(9)[0][0]
    for method in ("predict", "trained_logits"):
        logits = getattr(algorithm, method)(x.to(device))
        assert logits.device.type == device.type
        assert_equal(logits, getattr(reference, method)(x), tolerance=0.02)


def test_job_on_device_equals_job_on_cpu(device, tmp_path, monkeypatch):
    """Covers the fast loader's second stage, SWAD's validation and both phases of LP-FT."""
    images = write_images(tmp_path / "images", count=3)
    folders = []
    for default in (devices.CPU, device):
        monkeypatch.setattr(devices, "default_device", lambda default=default: default)
        hparams = {**SWAD, "lp_steps": 1, "lr": 1e-4}
        folder = tmp_path / str(default)
        folders.append(train_job(folder, images, "CLIPLPFT", "--checkpoint_freq", "1", **hparams))

    expected, actual = map(records, folders)
    assert actual[0]["device"] != expected[0]["device"]
    for name in ("loss", "loss_ce", "env0_in_acc", "env1_out_acc"):
        values = [record[name] for record in actual]
        assert values == pytest.approx([record[name] for record in expected], rel=0.02)
    assert_same_weights(*folders)


def assert_same_weights(folder, reference_folder, name="model.pkl"):
    """Compare weights, which are saved as CPU tensors for any device."""
    actual, expected = (saved_weights(place / name) for place in (folder, reference_folder))
    assert actual.keys() == expected.keys()
    for key, tensor in actual.items():
        assert_equal(tensor, expected[key])


# Trained runs

COMMANDS = {
    "evaluate": ["evaluate", "CARFT", "--json"],
    "predict": ["predict", "CARFT", "my pets/art", "--format", "jsonl"],
    "wise-ft": ["wise-ft", "CARFT", "--alphas", "0.5", "--save", "all", "-o", "{folder}"],
    "soup": ["soup", "CARFT/model.pkl", "CARFT/model_best.pkl", "-o", "{folder}"],
}


@pytest.mark.parametrize(
    "command",
    [
        "evaluate",
        "wise-ft",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("predict", "soup")),
    ],
)
def test_command_on_device_equals_command_on_cpu(
    device, pets, tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(pets)
    outputs = []
    for place in ("cpu", str(device)):
        folder = tmp_path / place
        words = [word.format(folder=folder) for word in COMMANDS[command]]
        assert cli.main([*words, "--device", place]) == 0
        texts = [path.read_text() for path in folder.glob("*.json")]
        text = " ".join(texts or [capsys.readouterr().out])
        outputs.append([*map(float, re.findall(r"\d+\.\d+", text))])
    assert outputs[1] == pytest.approx(outputs[0], abs=1e-4) and len(outputs[0]) > 3

    for path in (tmp_path / "cpu").glob("*.pkl"):
        assert_same_weights(tmp_path / str(device), tmp_path / "cpu", path.name)
