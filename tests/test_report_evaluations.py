"""Figures of `carft evaluate` in a report, compared with the files of the evaluations."""

import json

import evaluated_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page
from matplotlib.axes import Axes

from domainbed_carft.report import evaluation_plots
from domainbed_carft.report.plots import figure_style, get_styles
from domainbed_carft.results import collection, selection
from domainbed_carft.results.metrics import Flips

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
            (split,) = json.loads(path.read_text())["image_sets"]
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
    names = {"CLIPZeroShot": "zero-shot"}
    counts = rows.set_index("environment")[["gained", "lost", "both_right", "both_wrong"]]
    flips = {
        environment: {"CLIPZeroShot": Flips(*numbers)}
        for environment, numbers in zip(counts.index, counts.to_numpy().tolist())
    }
    with figure_style():
        svg = evaluation_plots.draw_flips("flips", "name", flips, get_styles([*names]), names).svg

    for target, row in enumerate(rows.to_dict("records")):
        parts = [
            part for number, part in selected_splits(sweep, "CLIPZeroShot") if number == target
        ]
        images = sum(part["image_set"]["images"] for part in parts)
        for key in ("gained", "lost"):
            count = sum(part["flips"][key] for part in parts)
            assert row[key] == count
            assert f"{100 * count / images:.1f}" in svg
    assert [*rows["environment"]] == [*"ACPS"]


def test_histogram_of_a_reliability_diagram_has_shares_of_all_images(sweep, monkeypatch):
    histograms = []
    monkeypatch.setattr(
        Axes, "stairs", lambda axes, values, *args, **options: histograms.append(values)
    )
    (group,) = collection.gather([sweep]).groups
    selected = selection.select(group.runs, "training-domain")
    metrics = [metrics for _, metrics in evaluation_plots.read_target_metrics(selected)]
    with figure_style():
        style = get_styles(["CARFT"])["CARFT"]
        evaluation_plots.draw_reliability("title", "name", metrics, style)
    assert len(histograms) == 2
    assert [values.sum() for values in histograms] == pytest.approx([100, 100])
