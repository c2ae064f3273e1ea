"""Verdicts beside published figures: reproduced, above, below, or why they cannot be compared."""

import re

import collect_sweeps
import pytest
import scipy

from domainbed_carft.results import published
from domainbed_carft.results.columns import cell_of

FIGURE = {"accuracy": 80.0, "selection": "training-domain"}


def judge(accuracies, method="training-domain", deviation="", missing=(), **figure):
    cell = cell_of(dict(enumerate(accuracies)), missing)
    return published.judge(cell, method, FIGURE | figure, deviation)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.78, 0.80, 0.81], "reproduced"),
        ([0.83, 0.84, 0.85], "above"),
        ([0.75, 0.76, 0.77], "below"),
        ([0.8004, 0.8004, 0.8004], "reproduced"),  # 80.04 is printed as 80.0
        ([0.8006, 0.8006, 0.8006], "above"),
    ],
)
def test_the_verdict_says_whether_the_published_mean_lies_in_our_interval(accuracies, expected):
    verdict = judge(accuracies)
    assert (verdict.name, verdict.reason) == (expected, "")


def test_the_interval_is_that_of_students_t(accuracies=(0.71, 0.78, 0.80, 0.84)):
    verdict = judge(accuracies)
    percent = [100 * accuracy for accuracy in accuracies]
    low, high = scipy.stats.t.interval(
        0.95, 3, loc=sum(percent) / 4, scale=scipy.stats.sem(percent, ddof=1)
    )
    assert (verdict.low, verdict.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"deviation": "CARFT has average ema"}, "CARFT has average ema"),
        ({"missing": ["a job"]}, "incomplete"),
        ({"method": "oracle"}, "ours was selected on the target"),
        ({"selection": "target"}, "selected on: target"),
        ({"selection": "none; 20% of the target"}, "20% of the target"),
        ({"method": "leave-one-domain-out"}, "by leave-one-domain-out, .* by training-domain"),
        ({"accuracies": [0.8]}, "one trial"),
    ],
)
def test_what_cannot_be_compared_says_why(options, reason):
    verdict = judge(**{"accuracies": [0.79, 0.80, 0.81], **options})
    assert verdict.name == "not comparable"
    assert re.search(reason, verdict.reason)


@pytest.mark.parametrize("selection", ["none", "unknown"])
def test_what_was_chosen_on_no_target_is_compared(selection):
    assert judge([0.79, 0.80, 0.81], selection=selection).name == "reproduced"


def test_the_comparison_has_verdicts_for_every_data_set(tmp_path):
    recorded = {"clip_backbone": "ViT-B/16"}
    for dataset, kind in (("PACS", {}), ("VLCS", {"average": "ema"})):
        collect_sweeps.write_sweep(
            tmp_path / dataset,
            ["CARFT"],
            dataset=dataset,
            choices=1,
            trials=3,
            recorded=recorded | kind,
        )
    document = collect_sweeps.collect(tmp_path, methods=["training-domain"], compare=True)
    second, first = document.as_dict()["published"]["comparisons"]

    expected = "reproduced" if first["high"] >= 96.75 else "below"
    assert (first["dataset"], first["verdict"], first["reason"]) == ("PACS", expected, "")
    assert first["low"] < first["ours"] < first["high"]
    assert (second["dataset"], second["verdict"]) == ("VLCS", "not comparable")
    assert second["reason"] == "CARFT has average ema, unlike the published CAR-FT"

    grid = document.grids[-2]
    assert [row[grid.header.index("Verdict")] for row in grid.rows] == [
        "not comparable [1]",
        expected,
    ]
    assert grid.notes[0] == f"[1] Not comparable: {second['reason']}."
