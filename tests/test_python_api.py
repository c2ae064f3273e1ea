"""The Python API: the examples of its docstrings, and what it promises beside the commands."""

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


def test_the_examples_of_the_docstrings(pets, image, tmp_path):
    names = {
        "job": pets / "CARFT",
        "second_job": pets / "CLIPLinearProbe",
        "image": image,
        "folder": tmp_path,
        "load_run": domainbed_carft.load_run,
    }
    examples = [
        test
        for module in (run_module, saved, evaluate, soup, wise_ft, export, build)
        for test in doctest.DocTestFinder().find(module)
        if test.examples
    ]
    assert len(examples) == 7  # one for each function, and for Run.predict

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
        ("evaluate", {"suite": 5}),
        ("evaluate", {"jobs": "x"}),
        ("evaluate", {"methods": 5}),
        ("evaluate", {"original": "/nope"}),
        ("wise_ft", {"alphas": "half"}),
        ("soup", {"batch_size": 0}),
        ("export", {"half": 1}),
    ],
)
def test_arguments_of_wrong_types_are_named_before_anything_is_read(
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
    }
    call = {**required.get(function, {"run": "gone"}), **arguments}
    (name,) = arguments
    with pytest.raises(CarftError, match=rf"^{name} is .*(expected|for the output folder)"):
        getattr(domainbed_carft, function)(**call)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("wrong", [["OUT"], 5, None, b"OUT", "", "a\0b", "no/such"])
def test_what_is_no_path_is_a_carft_error(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("load_run", "evaluate", "wise_ft", "soup"):
        with pytest.raises(CarftError):
            getattr(domainbed_carft, name)(wrong)
    with pytest.raises(CarftError):
        domainbed_carft.export(wrong, "clip.pt")
    if wrong in ("", "a\0b"):
        with pytest.raises(CarftError, match="the path is .*, expected text or a pathlib.Path"):
            domainbed_carft.train("CARFT", "Debug28", 0, wrong)
    assert not os.listdir(tmp_path)


def test_modules_and_names_of_the_api_load_lazily_in_any_order():
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


def test_paths_images_and_tensors_give_what_the_command_gives(pets, image, run, capfd):
    carft("predict", pets / "CARFT", image, "--format", "jsonl")
    expected = json.loads(capfd.readouterr().out)
    opened = Image.open(image)
    pixels = torch.as_tensor(np.array(opened)).permute(2, 0, 1)
    for images in (str(image), [image], opened, [opened], pixels[None], [pixels]):
        predictions = run.predict(images)
        row = predictions.class_probabilities[0].tolist()
        assert dict(zip(predictions.classes, row)) == expected["classes"]
        row = predictions.context_probabilities[0].tolist()
        assert dict(zip(predictions.contexts, row)) == expected["contexts"]

    transformed = run.transform()(opened.convert("RGB"))
    again = run.predict(transformed[None])
    assert torch.equal(again.class_probabilities, predictions.class_probabilities)


def test_a_batch_has_a_row_for_each_image(image, run):
    others = [image, image.with_name("1.png"), image.with_name("2.png")]
    document = json.loads(json.dumps(run.predict(others, batch_size=2).as_dict()))
    assert document["classes"] == run.classes
    assert [len(row) for row in document["class_probabilities"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images to predict; pass at least one"),
        ("gone.png", "gone.png cannot be read: No such file or directory"),
        ([3], "an image is int; expected a path, a Pillow image, a tensor"),
        (None, "an image is NoneType; expected a path, a Pillow image, a tensor"),
        (torch.zeros(2, 1, 8, 8), r"an image is \(1, 8, 8\); expected a path"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "tensor of torch.int64; expected uint8"),
    ],
)
def test_images_that_cannot_be_predicted_are_refused(run, images, message):
    with pytest.raises(CarftError, match=message):
        run.predict(images)


def test_wise_ft_writes_only_into_its_output_and_leaves_the_run_as_it_was(pets, run, tmp_path):
    before = {name: t.clone() for name, t in run.algorithm.state_dict().items()}
    result = domainbed_carft.wise_ft(run, [1, 0.5], workers=0)
    for name, tensor in run.algorithm.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    folder = tmp_path / "mix"
    written = domainbed_carft.wise_ft(run, [0.5, 1], output=folder, save=[0.5], workers=0)
    assert written.as_dict() == result.as_dict()
    assert json.loads((folder / "wise_ft.json").read_text()) == result.as_dict()
