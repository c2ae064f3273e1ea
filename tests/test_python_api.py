"""The Python API: examples of its docstrings, types of arguments, and equality with commands."""

import doctest
import json
import os

import numpy as np
import pytest
import torch
from fake_checkout import REPO, run_python
from PIL import Image
from runs_jobs import carft

import domainbed_carft
from domainbed_carft.errors import CarftError
from domainbed_carft.method import build
from domainbed_carft.runs import evaluate, export, saved, soup, wise_ft
from domainbed_carft.runs import run as run_module


@pytest.fixture(scope="module")
def image(pets):
    return pets / "my pets" / "art" / "cat" / "0.png"


@pytest.fixture(scope="module")
def run(pets):
    return domainbed_carft.load_run(pets / "CARFT", device="cpu")


def test_examples_in_docstrings_pass(pets, image, tmp_path):
    names = {
        "job": pets / "CARFT",
        "second_job": pets / "CLIPLinearProbe",
        "image": image,
        "folder": tmp_path,
        "load_run": domainbed_carft.load_run,
        "load_original": domainbed_carft.load_original,
    }
    examples = [
        test
        for module in (run_module, saved, evaluate, soup, wise_ft, export, build)
        for test in doctest.DocTestFinder().find(module)
        if test.examples
    ]
    assert len(examples) == 9  # one for each function, and for predict and features of Run

    runner = doctest.DocTestRunner()
    for example in examples:
        example.globs.update(names)
        runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("load_run", {"which": "x"}),
        ("train", {"algorithm": ["CARFT"]}),
        ("train", {"hparams": None}),
        ("train", {"hparams": "lr"}),
        ("train", {"test_envs": "0"}),
        ("train", {"test_envs": None}),
        ("train", {"steps": 0}),
        ("train", {"steps": True}),
        ("train", {"checkpoint_freq": 0}),
        ("train", {"trial_seed": None}),
        ("train", {"workers": -1}),
        ("train", {"holdout_fraction": "0.2"}),
        ("train", {"skip_model_save": "no"}),
        ("build", {"algorithm": None}),
        ("build", {"hparams": None}),
        ("build", {"steps": 1.5}),
        ("collect", {"columns": 5}),
        ("collect", {"error": 3}),
        ("collect", {"by": 5}),
        ("evaluate", {"batch_size": 0}),
        ("evaluate", {"batch_size": None}),
        ("evaluate", {"workers": -1}),
        ("evaluate", {"workers": "x"}),
        ("evaluate_on_suite", {"suite": 5}),
        ("evaluate_on_suite", {"workers": -1}),
        ("evaluate", {"batch_size": 2**63}),
        ("evaluate", {"workers": 1_000_000}),
        ("train", {"workers": 1_000_000}),
        ("evaluate_sweep", {"jobs": "x"}),
        ("evaluate_sweep", {"select": 5}),
        ("evaluate_sweep", {"batch_size": 0}),
        ("wise_ft", {"alphas": "half"}),
        ("soup", {"batch_size": 0}),
        ("export", {"half": 1}),
        ("export", {"format": "onnx"}),
    ],
)
def test_argument_of_a_wrong_type_is_named_before_files_are_read(
    function, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    required = {
        "train": {"algorithm": "CARFT", "dataset": "Debug28", "test_envs": 0, "output_dir": "out"},
        "build": {"algorithm": "CARFT", "class_names": ["a", "b"]},
        "collect": {"sweeps": "gone"},
        "soup": {"runs": "gone"},
        "load_run": {"path": "gone"},
        "export": {"run": "gone", "path": "out.pt"},
        "evaluate_on_suite": {"suite": "imagenet", "run": "gone"},
        "evaluate_sweep": {"folder": "gone"},
    }
    call = {**required.get(function, {"run": "gone"}), **arguments}
    (name,) = arguments
    with pytest.raises(CarftError, match=rf"^{name} is "):
        getattr(domainbed_carft, function)(**call)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", [["OUT"], 5, None, b"OUT", "", "a\0b", "no/such"])
@pytest.mark.parametrize("function", ["load_run", "load_original", "evaluate", "wise_ft", "soup"])
def test_invalid_path_is_a_carft_error(function, path):
    with pytest.raises(CarftError):
        getattr(domainbed_carft, function)(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_message_about_an_impossible_path_says_what_a_path_is(path):
    expected = "expected a path of at least one character and without NUL"
    with pytest.raises(CarftError, match=f"the path is {path!r}, {expected}".replace("\\", r"\\")):
        domainbed_carft.load_run(path)


def test_modules_and_names_of_the_api_load_lazily():
    code = """if True:
        import sys, domainbed_carft
        assert "torch" not in sys.modules
        assert {"load_run", "evaluate", "wise_ft", "soup", "export"} <= set(dir(domainbed_carft))
        domainbed_carft.collect
        domainbed_carft.results.top.top
        domainbed_carft.report.page.write_report
        domainbed_carft.sweep.launch.plan
        assert not hasattr(domainbed_carft.results, "no_such")
        domainbed_carft.no_such_name
    """
    done = run_python("-c", code, cwd=REPO, path=[REPO])
    *_, error = done.stderr.splitlines()
    assert "module 'domainbed_carft' has no attribute 'no_such_name'" in error
    for name in domainbed_carft.LAZY_NAMES:
        assert name in domainbed_carft.__all__ and getattr(domainbed_carft, name).__doc__


def test_predictions_of_paths_images_and_tensors_equal_the_command(pets, image, run, capfd):
    carft("predict", pets / "CARFT", image, "--format", "jsonl")
    expected = json.loads(capfd.readouterr().out)
    opened = Image.open(image)
    pixels = torch.as_tensor(np.array(opened)).permute(2, 0, 1)
    for images in (str(image), [image], opened, [opened], pixels, pixels[None], [pixels]):
        predictions = run.predict(images)
        row = predictions.class_probabilities[0].tolist()
        assert dict(zip(predictions.classes, row)) == expected["classes"]
        row = predictions.context_probabilities[0].tolist()
        assert dict(zip(predictions.contexts, row)) == expected["contexts"]

    transformed = run.transform()(opened.convert("RGB"))
    transformed_predictions = run.predict(transformed[None])
    assert torch.equal(transformed_predictions.class_probabilities, predictions.class_probabilities)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ("gone.png", "gone.png"),
        ([3], "int"),
        (None, "NoneType"),
        (torch.zeros(2, 1, 8, 8), r"\(1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "torch.int64"),
        (torch.full((3, 32, 32), float("nan")), "an image has 3,072 values that are not finite"),
    ],
)
@pytest.mark.parametrize("function", ["predict", "features"])
def test_unusable_images_are_errors(run, function, images, message):
    with pytest.raises(CarftError, match=message):
        getattr(run, function)(images)


def test_number_of_loader_processes_is_checked_by_predict_batches(run, image):
    with pytest.raises(CarftError, match="workers is 1000000, expected a whole number from 0 to"):
        next(run.predict_batches([str(image)], 1, workers=1_000_000))


def test_wise_ft_does_not_change_the_weights_of_the_run(run):
    weights = {name: tensor.clone() for name, tensor in run.algorithm.state_dict().items()}
    domainbed_carft.wise_ft(run, [1, 0.5], workers=0)
    for name, tensor in run.algorithm.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
