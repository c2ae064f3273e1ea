"""Figures and their data frames, compared with DomainBed's selection and plain sums."""

import io
import json
import random
import shutil
from dataclasses import replace

import collect_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page
import sweep_folders
from domainbed.lib import reporting
from domainbed.model_selection import IIDAccuracySelectionMethod

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import CHOOSE, REPEAT, Role
from domainbed_carft.report import frames, plots
from domainbed_carft.report.sections import unique_names
from domainbed_carft.results import collection, selection
from domainbed_carft.results.collect import collect
from domainbed_carft.sweep import host

RATES = (0.001, 0.01, 0.1)
STEPS = (0, 100, 200)
SEARCH = """
name: x
datasets: [PACS]
algorithms: [CARFT]
trials: 2
search: {values: {lr: [0.001, 0.01, 0.1]}}
"""


def load_runs(folder):
    (group,) = collection.gather([folder]).groups
    return group.runs


# Drawing


def test_styles_of_algorithms_differ_in_more_than_colour():
    styles = plots.get_styles([*"ABCDEFG", *ALGORITHMS])
    for signs in (
        [(style.marker, style.hollow) for style in styles.values()],
        [style.dash for style in styles.values()],
        [styles[name].colour for name in ALGORITHMS],
    ):
        assert len(set(signs)) == len(signs)


def test_names_are_escaped_in_figure_and_csv(recwarn):
    names = ["$x_1$ & <b>", "=A\x1b", "漢字\ud800\n"]
    cells = {"algorithm": names, "accuracy": [50.0, 51.0, 52.0], "error": 1.0, "n": 2}
    frame = pd.DataFrame({**cells, "incomplete": False})
    with plots.figure_style():
        limits = plots.dot_limits(frame)
        figure = plots.draw_dots("A", "name", frame, plots.get_styles(names), limits)

    assert ">$x_1$ &amp; &lt;b&gt;</text>" in figure.svg
    rows = [line.split(",") for line in figure.csv.splitlines()]
    assert rows[0] == ["algorithm", "accuracy", "error", "n", "incomplete"]
    assert rows[2] == [r"=A\x1b", "51", "1", "2", "False"]
    assert not list(recwarn)  # about missing glyphs


# Accuracies


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A complete sweep and a job with two targets; only the records of CARFT have drifts."""
    folder = tmp_path_factory.mktemp("records")
    collect_sweeps.write_sweep(folder, ["CARFT", "CLIPFineTune"], trials=3)
    collect_sweeps.write_job(folder, "pair", algorithm="CLIPFineTune", test_envs=[0, 1])
    generator = random.Random(0)
    for job in folder.glob("CARFT-*"):
        report_page.add_drift(job, generator)
    return folder


@pytest.fixture(scope="module")
def checkpoints(sweep):
    return frames.checkpoints(selection.select(load_runs(sweep), "training-domain"))


def test_selected_checkpoints_equal_the_selection_of_domainbed(sweep, checkpoints):
    assert len(checkpoints) == 2 * 3 * 4 * len(STEPS)
    selected = checkpoints[checkpoints["selected"]]
    groups = reporting.get_grouped_records(reporting.load_records(str(sweep)))
    accuracies = {
        (group["algorithm"], group["test_env"], group["trial_seed"]): group["records"]
        for group in groups
    }
    for row in selected.itertuples():
        records = accuracies[row.algorithm, row.target, row.trial]
        assert row.out_of_domain == 100 * IIDAccuracySelectionMethod.sweep_acc(records)
    assert len(selected) == 2 * 3 * 4


def test_checkpoint_has_the_drift_of_its_record(sweep, checkpoints):
    files = sweep.glob("CARFT-*/results.jsonl")
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    by_kl = {record["loss_kl"]: record for record in records}
    for row in checkpoints[checkpoints["algorithm"] == "CARFT"].itertuples():
        record = by_kl[row.loss_kl]
        assert (record["args"]["test_envs"], record["step"]) == ([row.target], row.step)
        assert row.context_agreement == pytest.approx(100 * record["context_agreement"])
    assert checkpoints[checkpoints["algorithm"] == "CLIPFineTune"]["loss_kl"].isna().all()


def test_means_in_figures_equal_the_table_for_incomplete_rows_as_well(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "CLIPFineTune"], trials=3, choices=1)
    shutil.rmtree(tmp_path / "CARFT-1-2-0")
    results = collect(tmp_path, methods=["training-domain"], columns=["out-of-domain", "in-domain"])
    (group,) = results.collection.groups
    checkpoints = frames.checkpoints(group.select("training-domain"))
    at_selection = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.average_over_trials(frames.average_over_targets(at_selection, frames.ACCURACIES))

    for row in means.itertuples():
        cells = list(results.tables[0].rows[row.algorithm].values())[-2:]
        assert [row.out_of_domain, row.in_domain] == pytest.approx([cell.mean for cell in cells])
        errors = [row.out_of_domain_error, row.in_domain_error]
        assert errors == pytest.approx([cell.standard_error for cell in cells])
        assert row.trials == 3


# Joint rows


@pytest.fixture(scope="module")
def joint_sweep(tmp_path_factory):
    """CARFT at three rates, fine-tuning at one, in three trials on PACS."""
    folder = tmp_path_factory.mktemp("by")
    for rate in RATES:
        facts = {"hparams": json.dumps({"lr": rate}), "recorded": {"lr": rate}}
        collect_sweeps.write_sweep(folder / str(rate), ["CARFT"], trials=3, choices=1, **facts)
    facts = {"recorded": {"lr": 0.01}}
    collect_sweeps.write_sweep(folder / "other", ["CLIPFineTune"], trials=3, choices=1, **facts)
    return folder


def test_lines_over_a_hyperparameter_are_the_means_over_trials(joint_sweep):
    collected = collection.gather([joint_sweep], by=["lr"])
    (group,) = collected.groups
    checkpoints = frames.checkpoints(selection.select(group.runs, "training-domain"))
    selected = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.average_over_targets(selected, frames.ACCURACIES)
    with plots.figure_style():
        (figure,) = plots.draw_hparam_curves(means, collected.joint_rows, "PACS", unique_names())

    lines = pd.read_csv(io.StringIO(figure.csv))
    lines = lines[lines["panel"] == plots.AXES["out_of_domain"]].set_index(["algorithm", "lr"])
    assert [*lines.index] == [*(("CARFT", rate) for rate in RATES), ("CLIPFineTune", 0.01)]
    for rate in RATES:
        trials = selected[selected["algorithm"] == f"CARFT (lr {rate})"].groupby("trial")
        expected = trials["out_of_domain"].mean()
        line = lines.loc["CARFT", rate]
        assert line["mean"] == pytest.approx(expected.mean(), rel=1e-5)
        assert line["error"] == pytest.approx(expected.std(ddof=0) / 3**0.5, rel=1e-5)
        assert f">{rate}</text>" in figure.svg


def test_page_has_the_columns_and_comparisons_of_its_options(joint_sweep, tmp_path, monkeypatch):
    report_page.skip_drawing(monkeypatch)
    words = ["--by", "lr", "--columns", "environments,worst,jobs", "--error", "std"]
    words += ["--against", "CLIPFineTune"]
    assert report_page.report(joint_sweep, tmp_path / "report", *words) == 0

    page = report_page.read(tmp_path / "report")
    header, *rows = page.tables[report_page.TABLE]
    assert header == ["Algorithm", "A", "C", "P", "S", "Worst", "Jobs"]
    assert [row[0] for row in rows] == [*(f"CARFT (lr {rate})" for rate in RATES), "CLIPFineTune"]
    assert ">Accuracy over the hyperparameter</h3>" in page.text
    assert any(title.startswith("Minus CLIPFineTune") for title in page.tables)
    assert "standard deviation" in page.text
    jobs = page.tables["Jobs of the cells: PACS"]
    assert {row[3] for row in jobs if row[0].startswith("CARFT")} == {f"lr {r}" for r in RATES}


# A search


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A declared search over three learning rates, with records of all jobs."""
    folder = tmp_path_factory.mktemp("search")
    for job in sweep_folders.write_launched_sweep(folder, SEARCH):
        recorded = host.get_job_hparams(job.args)
        collect_sweeps.write_job(job.folder.parent, job.folder.name, **job.args, recorded=recorded)
    return folder


def best_validation(run):
    """Return the highest mean accuracy on the training environments' out-splits."""
    (target,) = run.test_envs
    lines = (run.job.folder / "results.jsonl").read_text().splitlines()
    sources = [f"env{number}_out_acc" for number in range(4) if number != target]
    return max(np.mean([record[key] for key in sources]) for record in map(json.loads, lines))


def test_best_choice_of_each_target_and_trial_is_selected(search):
    runs = load_runs(search)
    rows = frames.choices(runs, "training-domain").set_index(["target", "trial", "choice"])
    assert len(rows) == len(runs) == 3 * 4 * 2
    for run in runs:
        row = rows.loc[(*run.test_envs, run.job.key.trial, run.job.choice)]
        assert row.validation == pytest.approx(best_validation(run), abs=1e-12)

    for _, candidates in rows.groupby(["target", "trial"]):
        (selected,) = candidates[candidates["selected"]].itertuples()
        assert selected.validation == candidates["validation"].max()

    runs_of_one_rate = [run for run in runs if run.job.role.values == {"lr": 0.01}]
    assert frames.choices(runs_of_one_rate, "training-domain").empty


def set_stage(run, stage):
    role = Role(values=run.job.role.values, member=run.job.role.member, stage=stage)
    return replace(run, job=replace(run.job, role=role))


def test_choices_of_a_search_in_two_stages_are_those_of_the_first_stage(search):
    runs = load_runs(search)
    first_stage = [set_stage(run, CHOOSE) for run in runs if run.job.key.trial == 1]
    second_stage = [
        set_stage(run, REPEAT)
        for run in runs
        if run.job.key.trial == 0 and run.job.role.values == {"lr": 0.01}
    ]
    rows = frames.choices(second_stage, "training-domain", first_stage)
    assert len(rows) == 3 * 4 and set(rows["trial"]) == {1}
    selected = rows[rows["selected"]]["choice"]
    assert [choice.searched_values["lr"] for choice in selected] == [0.01] * 4


def test_each_run_of_a_search_is_a_dot_and_selected_ones_are_filled(search):
    style = plots.get_styles(["CARFT"])["CARFT"]
    with plots.figure_style():
        rows = frames.choices(load_runs(search), "training-domain")
        svg = plots.draw_choices("CARFT", "name", rows, style).svg.lower()

    assert all(f">{rate}</text>" in svg for rate in RATES)
    marks = [part.split(">")[0] for part in svg.split("<use ")]
    dots = [mark for mark in marks if f"stroke: {style.colour.lower()}" in mark]
    filled = [mark for mark in dots if f"fill: {style.colour.lower()}" in mark]
    # two panels, and the legend
    assert (len(filled), len(dots) - len(filled)) == (2 * 8 + 1, 2 * 16 + 1)
