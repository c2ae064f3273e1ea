"""Verdicts beside published figures: within a point, differs, cannot tell, or why there is none."""

import collect_sweeps
import numpy as np
import pytest
import scipy

from domainbed_carft.results import published
from domainbed_carft.results.columns import cell_of

# What PACS of the row "ERM, random head" has in published.csv.
PUBLISHED_ERM = {"steps": 5001, "data_edition": "verified: as published", "protocol": "domainbed"}


def judge(ours, theirs, error_kind="standard error, n - 1"):
    """The verdict on trials in percent, the other ones published as mean and error alone."""
    deviation_of = {"standard error, n": np.std(theirs), "unknown": 1.0}
    error = deviation_of.get(error_kind, np.std(theirs, ddof=1))
    if error_kind.startswith("standard error"):
        error /= len(theirs) ** 0.5
    figure = {
        "accuracy": np.mean(theirs),
        "standard_error": error,
        "error_kind": error_kind,
        "n": len(theirs),
    }
    return published.judge(cell_of(dict(enumerate(np.array(ours) / 100))), figure)


@pytest.mark.parametrize("error_kind", ["standard error, n", "standard error, n - 1", "deviation"])
@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([79.8, 80.0, 80.1, 79.9], "within"),
        ([78.0, 80.0, 81.0], "cannot tell"),  # once called reproduced
        ([80.9, 81.1, 81.0, 81.0], "cannot tell"),
        ([83.0, 83.1, 82.8], "differs"),
        ([77.0, 77.3, 77.1], "differs"),
    ],
)
def test_a_verdict_says_whether_welchs_interval_is_inside_a_point(ours, expected, error_kind):
    theirs = [80.1, 79.7, 80.3]
    verdict = judge(ours, theirs, error_kind)
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval(0.95)

    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    assert (verdict.name, verdict.reason, verdict.at_least) == (expected, "", False)


@pytest.mark.parametrize(
    ("gap", "n", "within"), [(0, 10, (0.35, 0.45)), (1, 3, (0, 0.05)), (1, 10, (0, 0.05))]
)
def test_noise_does_not_make_an_accuracy_reproduced(gap, n, within):
    """At a gap of exactly the margin both claims are wrong, and in less than 5% of sweeps made."""
    rng = np.random.default_rng(0)
    names = [judge(rng.normal(80 + gap, 0.5, n), rng.normal(80, 0.5, 3)).name for _ in range(1000)]
    low, high = within
    assert low <= names.count("within") / 1000 <= high
    assert names.count("differs") / 1000 < 0.05


def test_without_a_published_error_the_interval_has_ours_alone():
    ours = [71.0, 78.0, 80.0, 84.0]
    verdict = judge(ours, [80.0, 80.0], "unknown")
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(ours) - 80, scipy.stats.sem(ours))
    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    assert (verdict.name, verdict.at_least) == ("none", True)


def compared_erm(folder, methods=("training-domain",), **facts):
    """The entry on PACS of plain fine-tuning as khanrc/miro ran it, but for ``facts``."""
    facts = PUBLISHED_ERM | {"trials": 3} | facts
    recorded = {"clip_backbone": "ViT-B/16", "head_init": "random"} | facts.pop("recorded", {})
    steps = facts.pop("steps")
    collect_sweeps.write_sweep(
        folder, ["CLIPFineTune"], choices=1, recorded=recorded, at=(0, steps - 1), **facts
    )
    document = collect_sweeps.collect(folder, methods=methods, compare=True)
    (entry,) = document.as_dict()["published"]["comparisons"]
    return entry, document.grids[-2]


def test_runs_of_the_published_setting_get_a_verdict(tmp_path):
    entry, grid = compared_erm(tmp_path)
    (row,) = grid.rows
    interval = f"{entry['low']:+.1f} to {entry['high']:+.1f}"
    assert (entry["method"], entry["reason"]) == ("ERM, random head", "")
    assert row[grid.header.index("Verdict") - 1 :][:2] == [interval, "cannot tell"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            {"recorded": {"average": "ema"}},
            "CLIPFineTune has average ema, unlike the published ERM, random head",
        ),
        ({"methods": ["oracle"]}, "selection: oracle, published: training-domain"),
        ({"steps": 26}, "steps: 26, published: 5001"),
        ({"protocol": "clip"}, "protocol: clip, published: domainbed"),
        ({"data_edition": "differs: 1a2b"}, "edition: differs: 1a2b, published: as published"),
        ({"trials": 1}, "one trial has no interval"),
        (
            {"dataset": "TerraIncognita"},  # whose edition the source does not say
            "not known of the published one: edition",
        ),
    ],
)
def test_runs_of_another_setting_have_no_verdict(tmp_path, facts, reason):
    entry, grid = compared_erm(tmp_path, **facts)
    assert (entry["verdict"], entry["reason"]) == ("none", reason)
    assert grid.rows[0][grid.header.index("Verdict")] == "none [1]"
    assert grid.notes[0] == f"[1] No verdict: {reason}."


def test_incomplete_runs_have_no_verdict(tmp_path):
    collect_sweeps.launch(
        tmp_path,
        ["CLIPFineTune"],
        run=lambda args: args["test_envs"] != [3] or args["trial_seed"] == 0,
    )
    document = collect_sweeps.collect(tmp_path, methods=["training-domain"], compare=True)
    (entry,) = document.as_dict()["published"]["comparisons"]
    assert entry["verdict"] == "none" and "ours is incomplete" in entry["reason"]
