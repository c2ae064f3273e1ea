"""A report's figures of what `carft evaluate` measured, against the files beside the records."""

import html
import json
import shutil

import evaluated_sweeps
import numpy as np
import pytest
import report_page

from domainbed_carft.report import evaluation_plots
from domainbed_carft.report.plots import save_figure
from domainbed_carft.results import collection, selection

METHOD = "training-domain"
ALGORITHMS = ("CARFT", "CLIPZeroShot")
BINS = 15
COMMAND = "run carft evaluate OUT, then carft report again"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two algorithms on PACS, in two trials, with figures beside the records."""
    folder = tmp_path_factory.mktemp("evaluated") / "sweep"
    report_page.write_ours(folder, ALGORITHMS)
    evaluated_sweeps.write_figures(folder)
    return folder


def selected_files(sweep, algorithm):
    """(Number of the environment left out, parsed file) of each selected run."""
    (group,) = collection.gather([sweep]).groups
    for chosen in selection.select(group.runs, METHOD):
        if chosen.algorithm == algorithm:
            step = int(chosen.outcome.step)
            path = sweep / chosen.outcome.run.folder / f"evaluation_step{step}.json"
            (split,) = json.loads(path.read_text())["splits"]
            yield chosen.target, split


@pytest.fixture(scope="module")
def drawn(sweep, tmp_path_factory):
    """Name of a figure -> (its title, the axes of its canvas), of the sweep's report."""
    canvases = {}

    def save(canvas, title, name, alt, data):
        canvases[name] = title, canvas.axes
        return save_figure(canvas, title, name, alt, data)

    output = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        report_page.leave_undrawn(patch)
        patch.setattr(evaluation_plots, "save_figure", save)
        assert report_page.report(sweep, output, "--select", METHOD) == 0
    return canvases


def reliability_of(splits, key):
    """Confidence and accuracy in percent of the bins that have pictures, and the ECE in percent."""
    points = []
    ece = 0.0
    n_pictures = sum(split["split"]["pictures"] for split in splits)
    for number in range(BINS):
        bins = [split[key]["reliability"] for split in splits]
        pictures = sum(part["pictures"][number] for part in bins)
        if pictures:
            confidence = sum(part["confidence"][number] for part in bins) / pictures
            accuracy = sum(part["correct"][number] for part in bins) / pictures
            points.append((100 * confidence, 100 * accuracy))
            ece += 100 * pictures / n_pictures * abs(accuracy - confidence)
    return np.array(points), ece


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reliability_diagrams_pool_the_pictures_of_the_selected_runs(sweep, drawn, algorithm):
    splits = [split for _, split in selected_files(sweep, algorithm)]
    assert len(splits) == 8

    raw, ece = reliability_of(splits, "calibration")
    scaled, scaled_ece = reliability_of(splits, "scaled")
    title, (upper, lower) = drawn[f"PACS-reliability-{algorithm}"]
    assert title == f"{algorithm}: ECE {ece:.1f}%, at the fitted temperature {scaled_ece:.1f}%"

    _, raw_line, scaled_line = upper.lines
    assert raw_line.get_xydata() == pytest.approx(raw, rel=1e-12)
    assert scaled_line.get_xydata() == pytest.approx(scaled, rel=1e-12)

    pictures = np.sum([split["calibration"]["reliability"]["pictures"] for split in splits], axis=0)
    assert lower.patches[0].get_data().values == pytest.approx(100 * pictures / pictures.sum())


def test_bars_of_flips_are_shares_of_the_environments_pictures(sweep, drawn):
    expected = []
    for target in range(4):
        for algorithm in ALGORITHMS:
            files = selected_files(sweep, algorithm)
            splits = [split for number, split in files if number == target]
            n_pictures = sum(split["split"]["pictures"] for split in splits)
            gained = sum(split["flips"]["gained"] for split in splits)
            lost = sum(split["flips"]["lost"] for split in splits)
            expected += [100 * gained / n_pictures, -100 * lost / n_pictures]

    _, (axes,) = drawn["PACS-flips"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected, rel=1e-12)
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "A" and f" {expected[0]:.1f}" in texts


def test_a_title_says_how_many_runs_were_evaluated(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    for path in (copy / "PACS-CARFT-2-1").glob("evaluation_*"):
        path.unlink()

    page = report_page.page_of(copy)
    assert "CARFT (7 of 8 runs): ECE" in page.text and "CLIPZeroShot: ECE" in page.text
    assert COMMAND not in page.text


def test_a_report_without_evaluations_names_the_command(tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    report_page.write_ours(tmp_path / "sweep", ["CARFT"], trials=1)
    page = report_page.page_of(tmp_path / "sweep")
    assert html.unescape(page.text).count(COMMAND) == 1
    assert not [item["alt"] for item in page.all("img") if "zero-shot CLIP on" in item["alt"]]
