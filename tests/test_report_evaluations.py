"""What a report shows of `carft evaluate`: figures and examples, against files and weights."""

import base64
import io
import json
import shutil

import evaluated_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page
import torch
from fake_checkout import run_python
from PIL import Image
from runs_jobs import CLASSES, ENVIRONMENTS

from domainbed_carft import cli
from domainbed_carft.report import evaluation_plots
from domainbed_carft.report.examples import examples_of
from domainbed_carft.report.plots import figure_style, styles_of
from domainbed_carft.results import collection, selection
from domainbed_carft.runs import saved, splits, sweep_job
from domainbed_carft.runs.predictions import LoadingOptions

METHOD = "training-domain"
PAIR = ("CARFT", "CLIPZeroShot")


@pytest.fixture
def undrawn(monkeypatch):
    report_page.leave_undrawn(monkeypatch)


# Figures


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two algorithms on PACS, in two trials, with figures beside the records but for one run."""
    folder = tmp_path_factory.mktemp("evaluated") / "sweep"
    report_page.write_ours(folder, PAIR)
    evaluated_sweeps.write_figures(folder)
    for path in (folder / "PACS-CARFT-2-1").glob("evaluation_*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def report(sweep):
    with pytest.MonkeyPatch.context() as patch:
        report_page.leave_undrawn(patch)
        page = report_page.page_of(sweep)
    return sweep.parent / "report", page


def selected_splits(sweep, algorithm):
    """(Number of the environment left out, figures) of each evaluated run."""
    (group,) = collection.gather([sweep]).groups
    for chosen in selection.select(group.runs, METHOD):
        step = int(chosen.outcome.step)
        path = sweep / chosen.outcome.run.folder / f"evaluation_step{step}.json"
        if chosen.algorithm == algorithm and path.exists():
            (split,) = json.loads(path.read_text())["splits"]
            yield chosen.target, split


@pytest.mark.parametrize(
    ("algorithm", "title"), [("CARFT", "CARFT (7 of 8 runs)"), ("CLIPZeroShot", "CLIPZeroShot")]
)
def test_reliability_diagrams_pool_the_images_of_the_evaluated_runs(
    sweep, report, algorithm, title
):
    folder, page = report
    figure = pd.read_csv(folder / "figures" / f"PACS-reliability-{algorithm}.csv")
    errors = {}
    for series, key in (("before scaling", "calibration"), ("at the fitted temperature", "scaled")):
        bins = figure[figure["series"] == series].set_index("bin")
        parts = [split[key]["reliability"] for _, split in selected_splits(sweep, algorithm)]
        for column in ("images", "correct", "confidence"):
            expected = np.sum([part[column] for part in parts], axis=0)
            assert bins[column].to_numpy() == pytest.approx(expected, rel=1e-5)
        gaps = np.abs(bins["correct"] - bins["confidence"])
        errors[series] = 100 * gaps.sum() / bins["images"].sum()

    raw, scaled = errors.values()
    assert f"{title}: ECE {raw:.1f}%, at the fitted temperature {scaled:.1f}%" in page.text


def test_bars_of_flips_are_shares_of_the_environments_images(sweep, report):
    folder, _ = report
    figure = pd.read_csv(folder / "figures" / "PACS-flips.csv")
    rows = figure[figure["algorithm"] == "CLIPZeroShot"]
    with figure_style():
        names = {"CLIPZeroShot": "zero-shot"}
        svg = evaluation_plots.flips("flips", "name", rows, styles_of([*names]), names).svg

    for target, row in enumerate(rows.to_dict("records")):
        parts = [
            part for number, part in selected_splits(sweep, "CLIPZeroShot") if number == target
        ]
        images = sum(part["split"]["images"] for part in parts)
        for key in ("gained", "lost"):
            count = sum(part["flips"][key] for part in parts)
            assert row[key] == count
            assert f"{100 * count / images:.1f}" in svg
    assert [*rows["environment"]] == [*"ACPS"]


# Examples


@pytest.fixture(scope="module")
def evaluated(pets, tmp_path_factory):
    """A sweep of the trained jobs, which left out the first environment, all evaluated."""
    output = tmp_path_factory.mktemp("sweep") / "OUT"
    options = LoadingOptions(torch.device("cpu"), workers=0)
    for algorithm in PAIR:
        shutil.copytree(pets / algorithm, output / algorithm)
    for selected in collection.gather([output], ["oracle"]).selected("oracle"):
        sweep_job.evaluate_run(selected.run.job.folder, int(selected.outcome.step), options)
    return output


def predict(selected):
    """Paths and labels of the target's in-split, and the class probabilities by the weights."""
    run = saved.open_run(selected.run.folder, "last")
    data = splits.read_data(run, is_augmented=False)
    split = next(part for part in data.splits if part.name == "env0_in")
    positions = splits.get_environment_positions(split)
    samples = [data.dataset[0].samples[position] for position in positions]
    images = torch.stack([split.items[number][0] for number in range(len(split))])
    with torch.no_grad():
        return samples, run.algorithm.predict(images).softmax(dim=1).numpy()


def test_examples_are_the_first_images_that_only_one_gets_right(evaluated):
    selected = collection.gather([evaluated], ["oracle"]).selected("oracle")
    predictions = {entry.row: predict(entry) for entry in selected}
    samples, _ = predictions["CARFT"]
    labels = np.array([label for _, label in samples])
    is_right = {
        name: probabilities.argmax(axis=1) == labels
        for name, (_, probabilities) in predictions.items()
    }
    found, _ = examples_of(ENVIRONMENTS, selected, PAIR, count=2, data_dir=None)

    shown = []
    for winner, loser in (PAIR, PAIR[::-1]):
        indices = np.flatnonzero(is_right[winner] & ~is_right[loser]).tolist()
        assert f"only {winner} gets {len(indices)} right" in found.text
        title = f"{winner} right, {loser} wrong: {len(indices[:2])} of {len(indices)}"
        examples = found.examples[title]
        assert [example.number for example in examples] == indices[:2]
        shown += examples

    assert shown
    for example in shown:
        assert example.truth == CLASSES[labels[example.number]]
        for answer in example.answers:
            probabilities = predictions[answer.algorithm][1][example.number]
            assert answer.predicted == CLASSES[probabilities.argmax()]
            assert answer.probability == pytest.approx(probabilities.max(), abs=1e-5)
        content = base64.b64decode(example.uri.removeprefix("data:image/png;base64,"))
        with Image.open(samples[example.number][0]) as image:
            assert Image.open(io.BytesIO(content)).tobytes() == image.convert("RGB").tobytes()


def test_the_page_shows_examples_or_says_why_there_are_none(undrawn, evaluated, pets, tmp_path):
    def read_page(*further_words):
        words = ["report", str(evaluated), "--select", "oracle", "--examples", *PAIR]
        assert cli.main([*words, "-o", str(tmp_path / "report"), *further_words]) == 0
        return report_page.read(tmp_path / "report").text

    text = read_page()
    assert "<h4>art left out</h4>" in text and 'src="data:image/png;base64,' in text
    unevaluated = text.split("<h4>photo, sketch left out</h4>")[1].split("</details>")[0]
    assert "No trial has the predictions of both CARFT and CLIPZeroShot" in unevaluated

    other = shutil.copytree(pets / "my pets", tmp_path / "other")
    (other / "art" / "cat" / "0.png").unlink()
    assert "of art are not those that carft evaluate" in read_page("--data_dir", str(other))
    nowhere = str(tmp_path / "nowhere")
    assert "cannot be read as a folder" in read_page("--data_dir", nowhere)


WITHOUT_TORCH = """
import sys
from domainbed_carft.report import evaluation_plots
from domainbed_carft.report.examples import examples_of
from domainbed_carft.report.plots import figure_style, styles_of
from domainbed_carft.results import collection
selected = collection.gather(sys.argv[1:], ["oracle"]).selected("oracle")
(found,) = examples_of(["art"], selected, ("CARFT", "CLIPZeroShot"), count=2, data_dir=None)
assert found.examples and "torch" not in sys.modules
"""


def test_examples_are_found_without_torch(evaluated, tmp_path):
    done = run_python("-c", WITHOUT_TORCH, str(evaluated), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
