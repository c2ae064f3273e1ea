"""Figures and examples of `carft evaluate` in a report, compared with files and weights."""

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
from PIL import Image
from runs_jobs import CLASSES, ENVIRONMENTS

from domainbed_carft import cli
from domainbed_carft.report import evaluation_plots
from domainbed_carft.report.examples import find_examples
from domainbed_carft.report.plots import figure_style, get_styles
from domainbed_carft.results import collection, selection
from domainbed_carft.runs import saved, splits, sweep_run
from domainbed_carft.runs.sweep_run import SweepOptions

PAIR = ("CARFT", "CLIPZeroShot")


# Figures


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two algorithms on PACS in two trials; all runs except one were evaluated."""
    folder = tmp_path_factory.mktemp("evaluated") / "sweep"
    report_page.write_sweep(folder, PAIR)
    evaluated_sweeps.write_figures(folder)
    for path in (folder / "PACS-CARFT-2-1").glob("evaluation_*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def report(sweep):
    with pytest.MonkeyPatch.context() as patch:
        report_page.skip_drawing(patch)
        page = report_page.report_and_read(sweep)
    return sweep.parent / "report", page


def selected_splits(sweep, algorithm):
    """Yield the target and the figures of each evaluated run."""
    (group,) = collection.gather([sweep]).groups
    for selected in selection.select(group.runs, "training-domain"):
        step = int(selected.outcome.step)
        path = sweep / selected.outcome.run.folder / f"evaluation_step{step}.json"
        if selected.algorithm == algorithm and path.exists():
            (split,) = json.loads(path.read_text())["splits"]
            yield selected.target, split


@pytest.mark.parametrize(
    ("algorithm", "title"), [("CARFT", "CARFT (7 of 8 runs)"), ("CLIPZeroShot", "CLIPZeroShot")]
)
def test_reliability_diagram_pools_the_images_of_all_runs(sweep, report, algorithm, title):
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

    unscaled, scaled = errors.values()
    assert f"{title}: ECE {unscaled:.1f}%, at the fitted temperature {scaled:.1f}%" in page.text


def test_flip_bars_are_shares_of_the_images_of_each_environment(sweep, report):
    folder, _ = report
    figure = pd.read_csv(folder / "figures" / "PACS-flips.csv")
    rows = figure[figure["algorithm"] == "CLIPZeroShot"]
    with figure_style():
        names = {"CLIPZeroShot": "zero-shot"}
        svg = evaluation_plots.draw_flips("flips", "name", rows, get_styles([*names]), names).svg

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
    """The trained jobs as an evaluated sweep, with the first environment as target."""
    output = tmp_path_factory.mktemp("sweep") / "OUT"
    options = SweepOptions("cpu", workers=0)
    for algorithm in PAIR:
        shutil.copytree(pets / algorithm, output / algorithm)
    for selected in collection.gather([output], ["oracle"]).select("oracle"):
        sweep_run.measure_recorded_run(selected.run, int(selected.outcome.step), options)
    return output


def predict(selected):
    """Return paths and labels of the target's in-split, and the probabilities of the weights."""
    run = saved.open_run(selected.run.folder, "last")
    data = splits.read_data(run, is_augmented=False)
    split = next(part for part in data.splits if part.name == "env0_in")
    positions = splits.get_environment_positions(split)
    samples = [data.dataset[0].samples[position] for position in positions]
    images = torch.stack([split.items[number][0] for number in range(len(split))])
    with torch.no_grad():
        return samples, run.algorithm.predict(images).softmax(dim=1).numpy()


def test_examples_are_the_first_images_that_only_one_algorithm_predicts_correctly(evaluated):
    selected = collection.gather([evaluated], ["oracle"]).select("oracle")
    predictions = {entry.row: predict(entry) for entry in selected}
    samples, _ = predictions["CARFT"]
    labels = np.array([label for _, label in samples])
    is_right = {
        name: probabilities.argmax(axis=1) == labels
        for name, (_, probabilities) in predictions.items()
    }
    target_examples, _ = find_examples(ENVIRONMENTS, selected, PAIR, count=2, data_dir=None)

    all_examples = []
    for winner, loser in (PAIR, PAIR[::-1]):
        indices = np.flatnonzero(is_right[winner] & ~is_right[loser]).tolist()
        assert f"{len(indices)} correct only with {winner}" in target_examples.text
        title = f"{winner} right, {loser} wrong: {len(indices[:2])} of {len(indices)}"
        examples = target_examples.examples[title]
        assert [example.number for example in examples] == indices[:2]
        all_examples += examples

    assert all_examples
    for example in all_examples:
        assert example.truth == CLASSES[labels[example.number]]
        for answer in example.answers:
            probabilities = predictions[answer.algorithm][1][example.number]
            assert answer.predicted == CLASSES[probabilities.argmax()]
            assert answer.probability == pytest.approx(probabilities.max(), abs=1e-5)
        content = base64.b64decode(example.uri.removeprefix("data:image/png;base64,"))
        with Image.open(samples[example.number][0]) as image:
            assert Image.open(io.BytesIO(content)).tobytes() == image.convert("RGB").tobytes()


def test_page_has_examples_or_the_reason_why_there_are_none(evaluated, pets, tmp_path, monkeypatch):
    report_page.skip_drawing(monkeypatch)

    def read_page(*further_words):
        words = ["report", str(evaluated), "--select", "oracle", "--examples", *PAIR]
        assert cli.main([*words, "-o", str(tmp_path / "report"), *further_words]) == 0
        return report_page.read(tmp_path / "report").text

    text = read_page()
    assert "<h4>Target art</h4>" in text and 'src="data:image/png;base64,' in text
    unevaluated = text.split("<h4>Target photo, sketch</h4>")[1].split("</details>")[0]
    assert "No trial has the predictions of both CARFT and CLIPZeroShot" in unevaluated

    changed = shutil.copytree(pets / "my pets", tmp_path / "changed")
    (changed / "art" / "cat" / "0.png").unlink()
    assert "of art have changed" in read_page("--data_dir", str(changed))
