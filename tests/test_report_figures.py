"""Figures and the frames that they are drawn from, against DomainBed's selection and plain sums."""

import io
import json
import random
import shutil
from dataclasses import replace

import collect_sweeps
import matplotlib
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


def runs_in(folder):
    (group,) = collection.gather([folder]).groups
    return group.runs


# Drawing


def draw_dots(names):
    accuracies = [50.0 + number for number in range(len(names))]
    cells = {"algorithm": names, "accuracy": accuracies, "error": 1.0, "n": 2, "incomplete": False}
    frame = pd.DataFrame(cells)
    with plots.figure_style():
        return plots.dots("A", "name", frame, plots.styles_of(names), plots.dot_limits(frame))


def test_twenty_algorithms_differ_in_more_than_colour():
    styles = plots.styles_of([*"ABCDEFG", *ALGORITHMS])
    for signs in (
        [(style.marker, style.hollow) for style in styles.values()],
        [style.dash for style in styles.values()],
        [styles[name].colour for name in ALGORITHMS],
    ):
        assert len(set(signs)) == len(signs)

    for name in ALGORITHMS:  # keeps its style in every figure
        assert plots.styles_of([name])[name] == styles[name]


def test_names_in_a_figure_and_its_csv_are_text():
    figure = draw_dots(["$x_1$ & <b>", "=A\x1b"])
    assert ">$x_1$ &amp; &lt;b&gt;</text>" in figure.svg
    rows = [line.split(",") for line in figure.csv.splitlines()]
    assert rows[0] == ["algorithm", "accuracy", "error", "n", "incomplete"]
    assert rows[2] == [r"=A\x1b", "51", "1", "2", "False"]


def test_a_figure_is_the_same_each_time_whatever_matplotlib_is_set_to(recwarn):
    names = ["漢字", "x" * 300, "\ud800\n"]
    first = draw_dots(names)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.fonttype": "path"}):
        assert draw_dots(names) == first
    assert not list(recwarn)  # of letters that the font lacks, and of long names


# Accuracies


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A complete sweep and one job that leaves two out; only CARFT's records have the drift."""
    folder = tmp_path_factory.mktemp("records")
    collect_sweeps.write_sweep(folder, ["CARFT", "CLIPFineTune"], trials=3)
    collect_sweeps.write_job(folder, "pair", algorithm="CLIPFineTune", test_envs=[0, 1])
    draw = random.Random(0)
    for job in folder.glob("CARFT-*"):
        collect_sweeps.change_records(job, lambda record: record | report_page.drift(draw))
    return folder


@pytest.fixture(scope="module")
def checkpoints(sweep):
    return frames.checkpoints(selection.select(runs_in(sweep), "training-domain"))


def test_frames_mark_the_checkpoints_that_domainbed_selects(sweep, checkpoints):
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

    oracle = frames.checkpoints(selection.select(runs_in(sweep), "oracle"))
    assert set(oracle[oracle["selected"]]["step"]) == {STEPS[-1]}


def test_a_checkpoint_has_its_records_accuracies_and_drift(sweep, checkpoints):
    files = sweep.glob("CARFT-*/results.jsonl")
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    by_kl = {record["loss_kl"]: record for record in records}
    for row in checkpoints[checkpoints["algorithm"] == "CARFT"].itertuples():
        record = by_kl[row.loss_kl]
        assert (record["args"]["test_envs"], record["step"]) == ([row.target], row.step)
        in_domain = [record[f"env{env}_out_acc"] for env in range(4) if env != row.target]
        shares = [record[f"env{row.target}_in_acc"], np.mean(in_domain)]
        expected = [100 * share for share in (*shares, record["context_agreement"])]
        found = [row.out_of_domain, row.in_domain, row.context_agreement]
        assert found == pytest.approx(expected)
    assert checkpoints[checkpoints["algorithm"] == "CLIPFineTune"]["loss_kl"].isna().all()


def test_means_in_figures_are_the_tables_also_of_incomplete_rows(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "CLIPFineTune"], trials=3, choices=1)
    shutil.rmtree(tmp_path / "CARFT-1-2-0")
    results = collect(tmp_path, methods=["training-domain"], columns=["out-of-domain", "in-domain"])
    (group,) = results.collection.groups
    checkpoints = frames.checkpoints(group.selected("training-domain"))
    at_selection = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.means_of_trials(frames.over_targets(at_selection, frames.ACCURACIES))

    for row in means.itertuples():
        (cells,) = (r.printed_cells for r in results.tables[0].rows if r.algorithm == row.algorithm)
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


def test_the_lines_over_a_hyperparameter_are_the_means_of_the_table(joint_sweep):
    collected = collection.gather([joint_sweep], by=["lr"])
    (group,) = collected.groups
    checkpoints = frames.checkpoints(selection.select(group.runs, "training-domain"))
    selected = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.over_targets(selected, frames.ACCURACIES)
    with plots.figure_style():
        (figure,) = plots.over_hparams(means, collected.joint_rows, "PACS", unique_names())

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


def test_the_page_has_the_tables_that_its_options_ask_for(joint_sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    words = ["--by", "lr", "--columns", "environments,worst,jobs", "--error", "std"]
    words += ["--against", "CLIPFineTune"]
    assert report_page.report(joint_sweep, tmp_path / "report", *words) == 0

    page = report_page.read(tmp_path / "report")
    header, *rows = page.tables[report_page.TABLE]
    assert header == ["Algorithm", "A", "C", "P", "S", "Worst", "Jobs"]
    assert [row[0] for row in rows] == [*(f"CARFT (lr {rate})" for rate in RATES), "CLIPFineTune"]
    assert (3, "Accuracy over the hyperparameter") in page.headings
    assert any(title.startswith("Minus CLIPFineTune") for title in page.tables)
    assert "standard deviation" in page.text

    _, *jobs = page.tables["Jobs behind the cells: PACS"]
    rates = [row[3] for row in jobs if row[0].startswith("CARFT")]
    assert sorted(rates) == sorted(f"lr {rate}" for rate in RATES * 12)


# A search


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A declared search over three rates, all jobs of which have records."""
    folder = tmp_path_factory.mktemp("search")
    for job in sweep_folders.write_launched_sweep(folder, SEARCH):
        recorded = host.get_job_hparams(job.args)
        collect_sweeps.write_job(job.folder.parent, job.folder.name, **job.args, recorded=recorded)
    return folder


def best_validation(run):
    """The highest mean accuracy on the out-splits of the environments trained on."""
    (target,) = run.test_envs
    lines = (run.job.folder / "results.jsonl").read_text().splitlines()
    sources = [f"env{number}_out_acc" for number in range(4) if number != target]
    return max(np.mean([record[key] for key in sources]) for record in map(json.loads, lines))


def test_every_choice_has_a_row_and_the_best_of_each_target_and_trial_is_selected(search):
    runs = runs_in(search)
    rows = frames.choices(runs, "training-domain").set_index(["target", "trial", "choice"])
    assert len(rows) == len(runs) == 3 * 4 * 2
    for run in runs:
        row = rows.loc[(*run.test_envs, run.job.key.trial, run.job.choice)]
        assert row.validation == pytest.approx(best_validation(run), abs=1e-12)

    for _, candidates in rows.groupby(["target", "trial"]):
        (selected,) = candidates[candidates["selected"]].itertuples()
        assert selected.validation == candidates["validation"].max()

    of_one_rate = [run for run in runs if run.job.role.values == {"lr": 0.01}]
    assert frames.choices(of_one_rate, "training-domain").empty


def with_stage(run, stage):
    role = Role(values=run.job.role.values, member=run.job.role.member, stage=stage)
    return replace(run, job=replace(run.job, role=role))


def test_of_a_search_in_two_stages_the_first_is_drawn_and_what_is_repeated_was_chosen(search):
    runs = runs_in(search)
    first_stage = [with_stage(run, CHOOSE) for run in runs if run.job.key.trial == 1]
    of_trial_0 = [run for run in runs if run.job.key.trial == 0]
    repeats = [with_stage(run, REPEAT) for run in of_trial_0 if run.job.role.values == {"lr": 0.01}]
    rows = frames.choices(repeats, "training-domain", first_stage)
    assert len(rows) == 3 * 4 and set(rows["trial"]) == {1}
    chosen = rows[rows["selected"]]["choice"]
    assert [choice.searched_values["lr"] for choice in chosen] == [0.01] * 4


def test_the_page_has_a_dot_for_every_run_and_those_chosen_are_filled(search, tmp_path):
    assert report_page.report(search, tmp_path / "report") == 0
    page = report_page.read(tmp_path / "report")
    assert (3, "Every choice of the search") in page.headings
    rows = page.tables["Jobs behind the cells: PACS"][1:]
    assert {row[3] for row in rows} <= {f"lr {rate}" for rate in RATES}

    svg = (tmp_path / "report" / "figures" / "PACS-choices-CARFT.svg").read_text().lower()
    assert all(f">{rate}</text>" in svg for rate in RATES)
    colour = plots.styles_of(["CARFT"])["CARFT"].colour.lower()
    marks = [part.split(">")[0] for part in svg.split("<use ")]
    dots = [mark for mark in marks if f"stroke: {colour}" in mark]
    filled = [mark for mark in dots if f"fill: {colour}" in mark]
    # Two panels, and the legend.
    assert (len(filled), len(dots) - len(filled)) == (2 * 8 + 1, 2 * 16 + 1)
