"""The tables of docs/peers.md: their figures are those of the packed records, computed here."""

import json
import re

import collect_sweeps
import numpy as np
import packed_records
import pandas as pd
import pytest
import scipy
from packed_records import NAMES_OF_VARIANTS

from domainbed_carft import cli
from domainbed_carft.results.collect import collect

REFERENCE = "CARFT (methods)"
STYLES = ("fluent3d", "line", "noto", "twemoji")
USUAL_RATE = 3e-4


@pytest.fixture(scope="module")
def tables():
    """The three tables of the section: of each, a method's name -> its other cells."""
    page = (collect_sweeps.REPO / "docs" / "peers.md").read_text(encoding="utf-8")
    section = page.split("## The search's trials")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    assert len(tables) == 3

    rows_of_tables = []
    for table in tables:
        rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        rows_of_tables.append({name: cells for name, *cells in rows[2:]})
    return rows_of_tables


@pytest.fixture(scope="module")
def jobs_of(selected):
    """A method's name on the page -> its jobs."""
    return {
        NAMES_OF_VARIANTS[variant].format(algorithm): jobs
        for (variant, algorithm), jobs in selected.groupby(["variant", "algorithm"])
    }


def test_both_tables_have_every_method_with_the_highest_accuracy_first(tables, jobs_of):
    accuracies = {name: jobs["out"].mean() for name, jobs in jobs_of.items()}
    expected = sorted(accuracies, key=accuracies.__getitem__, reverse=True)
    assert list(tables[0]) == list(tables[1]) == expected


def test_accuracies_and_differences_are_those_of_the_records(tables, jobs_of):
    by_pair = ["target", "trial"]
    reference = jobs_of["CARFT"].set_index(by_pair)

    for name, (out, out_difference, in_domain, in_difference, _) in tables[0].items():
        jobs = jobs_of[name].set_index(by_pair)
        assert [out, in_domain] == [f"{jobs[column].mean():.1f}" for column in ("out", "in")]

        if name == "CARFT":
            assert out_difference == in_difference == ""
            continue
        for text, column in ((out_difference, "out"), (in_difference, "in")):
            differences = jobs[column] - reference[column]
            assert text == f"{differences.mean():+.2f} ({differences.sem():.2f})"


def test_p_values_are_those_of_the_collector(tables, peers_emoji):
    results = collect(peers_emoji, methods=["training-domain"], by=["variant"], against=REFERENCE)
    entries = [entry for entry in results.comparisons_against if entry.unit == "pair"]
    of_accuracy = {entry.algorithm: entry for entry in entries if entry.measure == "accuracy"}

    shown = {name: cells[-1] for name, cells in tables[0].items() if name != "CARFT"}
    assert len(shown) == len(of_accuracy)
    for entry in of_accuracy.values():
        assert shown[name_on_page(entry.algorithm)] == p_text(entry.p_holm)


def name_on_page(row):
    """What the page calls a row of a table by variant."""
    algorithm, variant = re.fullmatch(r"(\w+)(?: \((.+)\))?", row).groups()
    return NAMES_OF_VARIANTS[variant or "methods"].format(algorithm)


def p_text(p):
    """A p-value as the page shows it."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")


def test_figures_of_evaluation_are_those_of_the_records(tables, jobs_of):
    for name, (worst, ece, gained, lost, _) in tables[1].items():
        jobs = jobs_of[name]
        by_target = jobs.groupby("target")["out"].mean()
        assert worst == f"{by_target.min():.1f} {STYLES[by_target.idxmin()]}"

        splits = [summary_of(job) for job in jobs.itertuples()]
        errors = [calibration_error(split["calibration"]["reliability"]) for split in splits]
        assert ece == f"{100 * np.mean(errors):.1f}"
        for text, kind in ((gained, "gained"), (lost, "lost")):
            shares = [split["flips"][kind] / sum(split["flips"].values()) for split in splits]
            assert text == f"{100 * np.mean(shares):.1f}"


def summary_of(job):
    """What `carft evaluate` measured of a job's target at its checkpoint."""
    summary = json.loads((job.folder / f"evaluation_step{job.step}.json").read_text())
    (split,) = summary["splits"]
    return split


def calibration_error(reliability):
    """Guo et al. 2017: the mean distance of confidence and accuracy in a bin, by its pictures."""
    confidence, correct, pictures = (
        np.array(reliability[name]) for name in ("confidence", "correct", "pictures")
    )
    return np.abs(confidence - correct).sum() / pictures.sum()


def test_gains_in_never_seen_styles_are_those_of_the_suite(tables, peers_emoji):
    tool = collect_sweeps.benchmark("contamination")
    rows = tool.table(list(tool.read_scores(peers_emoji)))
    gains = {row["gain over zero-shot"]: row["never seen"] for row in rows}

    shown = {name: cells[4] for name, cells in tables[1].items()}
    for method, gain in gains.items():
        assert shown.pop(name_on_page(method)) == gain
    assert shown == {"CLIPZeroShot": ""}


def test_the_rates_that_are_not_the_usual_one_are_listed(tables, jobs_of):
    rates = {name: set(jobs["lr"]) for name, jobs in jobs_of.items() if name != "CLIPZeroShot"}
    exceptions = {name: lr for name, lr in rates.items() if lr != {USUAL_RATE}}

    listed = {name: {float(rate)} for name, (rate, *_) in tables[2].items()}
    assert listed == exceptions


def test_each_listed_rate_is_said_to_be_at_the_edge_to_tie_or_to_be_the_best(tables, peers_emoji):
    """Of rates that are equal in validation the highest is chosen."""
    searched = packed_records.searched_rates(peers_emoji)
    for (variant, algorithm), rates in searched.groupby(["variant", "algorithm"]):
        name = NAMES_OF_VARIANTS[variant].format(algorithm)
        lr = rates["lr"]
        *equal, chosen = lr[np.isclose(rates["validation"], rates["validation"].max())]
        if name not in tables[2]:
            assert chosen == USUAL_RATE and not equal
            continue

        where = "at the edge" if chosen in (lr.min(), lr.max()) else "between others"
        if equal:
            where = f"ties with {', '.join(map(rate_text, equal))}"
        assert tables[2][name] == [rate_text(chosen), ", ".join(map(rate_text, lr)), where]


def test_the_examples_on_the_page_of_statistics_are_those_of_the_records(peers_emoji, capsys):
    page = (collect_sweeps.REPO / "docs" / "statistics.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```text\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    options = (
        ["--against", "CLIPFineTune"],
        ["--columns", "out-of-domain,worst,ece,ece-scaled,nll,gained,lost"],
    )
    for example, words in zip(examples, options, strict=True):
        folder = str(peers_emoji / "methods")
        assert cli.main(["collect", folder, "--select", "training-domain", *words]) == 0
        printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        for line in example.splitlines():
            assert " ".join(line.split()) in printed


def test_the_pages_say_by_how_many_validation_images_the_rates_were_chosen(peers_emoji):
    searched = packed_records.searched_rates(peers_emoji)
    leads = {}
    for (variant, algorithm), rates in searched.groupby(["variant", "algorithm"]):
        second, best = sorted(rates["validation"])[-2:]
        leads[NAMES_OF_VARIANTS[variant].format(algorithm)] = round((best - second) * 10.20)

    carft, lipsum, probe = (leads[name] for name in ("CARFT", "LipsumFT", "CLIPLinearProbe"))
    range_of_leads = f"by {min(leads.values())} to {max(leads.values())} of 1,020"
    page = page_text("peers.md")
    assert f"{range_of_leads} validation images: CARFT's by {carft}, LipsumFT's by {lipsum}" in page
    assert f"and the linear probe's by {probe}." in page
    assert f"{range_of_leads} images" in page_text("embedded-benchmark.md")
    assert f"if only by {lipsum} of 1,020 images" in page_text("methods/lipsum-ft.md")

    fresh = ["CARFT", "CARFT, `average` beta", "CLIPFineTune", "CLIPLinearProbe", "CLIPWiSEFT"]
    leads_of_fresh = [lipsum, *(leads[name] for name in fresh)]
    range_of_fresh = f"by {min(leads_of_fresh)} to {max(leads_of_fresh)} of 1,020"
    assert f"trial 5, {range_of_fresh} validation images." in page
    assert f"{range_of_fresh} images (CAR-FT's by {carft})" in page_text("../README.md")


def test_carft_minus_erm_on_the_trial_of_the_search_is_that_of_the_page(peers_emoji):
    paths = peers_emoji.glob("methods,lr=0.0003/*/results.jsonl")
    jobs = pd.DataFrame([packed_records._selected(path, is_swad=False) for path in paths])
    accuracies = jobs.groupby("algorithm")["out"].mean()
    points = accuracies["CLIPFineTune"] - accuracies["CARFT"]
    assert f"CAR-FT is {points:.1f} points below ERM" in page_text("embedded-benchmark.md")


# Page -> what its text compares over targets: a row, the row subtracted, the accuracy
METHODS = "methods"
COMPARED = {
    "peers.md": [
        ((METHODS, "CLIPWiSEFT"), (METHODS, "CARFT"), "out"),
        ((METHODS, "CLIPWiSEFT"), (METHODS, "CARFT"), "in"),
        ((METHODS, "LipsumFT"), (METHODS, "CARFT"), "out"),
        ((METHODS, "CLIPMIRO"), (METHODS, "CARFT"), "out"),
        ((METHODS, "CARFT"), (METHODS, "CLIPFineTune"), "out"),
        ((METHODS, "CARFT"), (METHODS, "CLIPZeroShot"), "out"),
        ((METHODS, "CARFT"), (METHODS, "CLIPLinearProbe"), "out"),
        ((METHODS, "FLYP"), (METHODS, "CLIPZeroShot"), "out"),
        ((METHODS, "CaRot"), (METHODS, "CLIPZeroShot"), "out"),
        (("CARFT+WiSE-FT", "CARFT"), (METHODS, "CARFT"), "out"),
    ],
    "methods/flyp.md": [((METHODS, "FLYP"), (METHODS, "CLIPZeroShot"), "out")],
    "methods/lipsum-ft.md": [((METHODS, "LipsumFT"), (METHODS, "CARFT"), "out")],
    "methods/swad.md": [(("SWAD", "CLIPFineTune"), (METHODS, "CLIPFineTune"), "out")],
    "methods/wise-ft.md": [((METHODS, "CLIPWiSEFT"), (METHODS, "CLIPFineTune"), "in")],
}


# The same of the fresh trials.
COMPARED_FRESH = {
    "verified.md": [((METHODS, "CARFT"), (METHODS, "CLIPFineTune"), "out")],
    "methods/carft.md": [
        ((METHODS, "CARFT"), (METHODS, "CLIPFineTune"), "out"),
        ((METHODS, "CARFT"), (METHODS, "CLIPFineTune"), "in"),
    ],
}


@pytest.mark.parametrize("page", COMPARED_FRESH)
def test_the_intervals_of_fresh_trials_in_the_text_are_those_of_the_records(page, fresh):
    check_intervals(page, fresh, COMPARED_FRESH)


@pytest.mark.parametrize("page", COMPARED)
def test_the_intervals_over_targets_in_the_text_are_those_of_the_records(page, selected):
    check_intervals(page, selected, COMPARED)


def check_intervals(page, jobs, compared):
    """The means and intervals over targets are in the page's text."""
    runs = jobs.set_index(["variant", "algorithm", "target", "trial"]).sort_index()
    text = page_text(page)
    for row, subtracted, column in compared[page]:
        by_pair = runs.loc[row][column] - runs.loc[subtracted][column]
        points = by_pair.groupby("target").mean()
        low, high = scipy.stats.ttest_1samp(points, 0).confidence_interval()
        assert f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f})" in text, (row, subtracted)


def page_text(name):
    """A page of docs/ without its line breaks."""
    return " ".join((collect_sweeps.REPO / "docs" / name).read_text(encoding="utf-8").split())


def rate_text(rate):
    """A learning rate as the page shows it."""
    return f"{rate:.0e}".replace("e-0", "e-")


def test_the_page_has_the_differences_that_swad_makes(selected):
    page = (collect_sweeps.REPO / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) with `swad`.*? \| (.+) \| (.+) \| (.+) \| (.+) \|$", page, re.M)
    algorithms = {"CARFT": "CARFT", "plain fine-tuning": "CLIPFineTune", "MIRO": "CLIPMIRO"}
    assert [name for name, *_ in rows] == list(algorithms)

    runs = selected.set_index(["variant", "algorithm", "target", "trial"]).sort_index()
    for name, *cells in rows:
        swad, without = (
            runs.loc[(variant, algorithms[name])][["out", "in"]] for variant in ("SWAD", "methods")
        )
        differences = swad - without
        expected = [
            cell
            for column in ("out", "in")
            for cell in (
                f"{swad[column].mean():.1f}%",
                f"{differences[column].mean():+.2f} ({differences[column].sem():.2f})",
            )
        ]
        assert cells == expected
