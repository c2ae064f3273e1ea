"""Figures and their data frames, compared with DomainBed's selection and plain sums."""

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
from domainbed_carft.report import figure_data, plots
from domainbed_carft.results import collection, selection
from domainbed_carft.results.cells import DOMAINBED, Cell
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


def test_styles_of_rows_differ_without_colour_and_without_dash(peers_emoji):
    """By variant, ten of these rows have no style of their own, which is more than the fallbacks.

    Markers alone are drawn in colour, and lines can be printed without it.
    """
    rows = collection.gather([peers_emoji], ["training-domain"], by=["variant"]).rows
    for names in (rows, [str(number) for number in range(49)]):
        styles = plots.get_styles(names).values()
        for part in ("colour", "dash"):
            signs = {(style.marker, style.hollow, getattr(style, part)) for style in styles}
            assert len(signs) == len(names)


def test_names_are_escaped_in_figure_and_csv(recwarn):
    names = ["$x_1$ & <b>", "=A\x1b", "漢字\ud800\n", "+1", "-1", "@1"]
    cells = {name: Cell(50.0 + number, 1.0, n=2) for number, name in enumerate(names)}
    with plots.figure_style():
        figure = plots.draw_dots("A", "name", cells, plots.get_styles(names), (40, 60))

    assert ">$x_1$ &amp; &lt;b&gt;</text>" in figure.svg
    rows = [line.split(",") for line in figure.csv.splitlines()]
    assert rows[0] == ["algorithm", "accuracy", "error", "n", "incomplete"]
    assert rows[2] == [r"'=A\x1b", "51", "1", "2", "False"]  # a name is never a formula
    assert [row[0] for row in rows[4:]] == ["'+1", "'-1", "'@1"]
    numbers = plots.write_csv(["=x"], [[-1], [-0.5], [None]])
    assert numbers.splitlines() == ["'=x", "-1", "-0.5", '""']
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
    selected = selection.select(load_runs(sweep), "training-domain")
    return pd.DataFrame(figure_data.read_checkpoints(selected))


def test_selected_checkpoints_equal_the_selection_of_domainbed(sweep, checkpoints):
    assert len(checkpoints) == 2 * 3 * 4 * len(STEPS)
    selected = checkpoints[checkpoints["is_selected"]]
    groups = reporting.get_grouped_records(reporting.load_records(str(sweep)))
    accuracies = {
        (group["algorithm"], group["test_env"], group["trial_seed"]): group["records"]
        for group in groups
    }
    for row in selected.itertuples():
        records = accuracies[row.row, row.target, row.trial]
        assert row.out_of_domain == 100 * IIDAccuracySelectionMethod.sweep_acc(records)
    assert len(selected) == 2 * 3 * 4


def test_checkpoint_has_the_drift_of_its_record(sweep, checkpoints):
    files = sweep.glob("CARFT-*/results.jsonl")
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    by_kl = {record["loss_kl"]: record for record in records}
    for row in checkpoints[checkpoints["row"] == "CARFT"].itertuples():
        record = by_kl[row.loss_kl]
        assert (record["args"]["test_envs"], record["step"]) == ([row.target], row.step)
        assert row.context_agreement == pytest.approx(100 * record["context_agreement"])
    assert checkpoints[checkpoints["row"] == "CLIPFineTune"]["loss_kl"].isna().all()


def test_figure_of_means_has_the_cells_of_in_domain_and_out_of_domain(tmp_path, monkeypatch):
    sweep = tmp_path / "sweep"
    collect_sweeps.write_sweep(sweep, ["CARFT", "CLIPFineTune"], trials=3, choices=1)
    shutil.rmtree(sweep / "CARFT-1-2-0")
    report_page.skip_drawing(monkeypatch)
    page = report_page.report_and_read(sweep, "--columns", "out-of-domain,in-domain")
    _, *rows = page.tables[report_page.TABLE]
    assert "In-domain against out-of-domain (incomplete: CARFT)" in page.text

    name = "PACS-robustness.csv"
    means = pd.read_csv(tmp_path / "report" / "figures" / name).set_index("algorithm")
    for row, *cells in rows:
        mean = means.loc[row]
        texts = [
            f"{mean.out_of_domain:.1f} ± {mean.out_of_domain_error:.1f} (3)",
            f"{mean.in_domain:.1f} ± {mean.in_domain_error:.1f} (3)",
        ]
        assert [cell.removesuffix(" [1]") for cell in cells] == texts


def test_lines_over_steps_are_means_of_trials_that_have_all_targets(checkpoints):
    kept = checkpoints.query("not (trial == 0 and target == 1 and step > 0)")
    entries = [figure_data.Checkpoint(*values) for values in kept.itertuples(index=False)]
    lines = figure_data.average_by_step(entries, "out_of_domain", DOMAINBED)
    for (row, step), group in kept.groupby(["row", "step"]):
        trials = group.groupby("trial")["out_of_domain"].agg(["mean", "count"])
        means = trials[trials["count"] == 4]["mean"]
        assert len(means) == (3 if step == 0 else 2)
        assert lines[row][step].mean == pytest.approx(means.mean())
        assert lines[row][step].standard_error == pytest.approx(
            means.std(ddof=0) / len(means) ** 0.5
        )


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


def test_lines_over_a_hyperparameter_are_the_means_over_trials(joint_sweep, tmp_path):
    assert report_page.report(joint_sweep, tmp_path, "--by", "lr") == 0
    checkpoints = pd.DataFrame(
        figure_data.read_checkpoints(
            collection.gather([joint_sweep], by=["lr"]).select("training-domain")
        )
    )
    selected = checkpoints[checkpoints["is_selected"]]

    path = tmp_path / "figures" / "PACS-over-lr.csv"
    lines = pd.read_csv(path)
    lines = lines[lines["panel"] == plots.AXES["out_of_domain"]].set_index(["algorithm", "lr"])
    assert [*lines.index] == [*(("CARFT", rate) for rate in RATES), ("CLIPFineTune", 0.01)]
    for rate in RATES:
        trials = selected[selected["row"] == f"CARFT (lr {rate})"].groupby("trial")
        expected = trials["out_of_domain"].mean()
        line = lines.loc["CARFT", rate]
        assert line["mean"] == pytest.approx(expected.mean(), rel=1e-5)
        assert line["error"] == pytest.approx(expected.std(ddof=0) / 3**0.5, rel=1e-5)
        assert f">{rate}</text>" in path.with_suffix(".svg").read_text(encoding="utf-8")


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
    rows = pd.DataFrame(figure_data.list_choices(runs, "training-domain"))
    rows = rows.set_index(["target", "trial", "choice"])
    assert len(rows) == len(runs) == 3 * 4 * 2
    for run in runs:
        row = rows.loc[(*run.test_envs, run.job.key.trial, run.job.choice)]
        assert row.validation == pytest.approx(best_validation(run), abs=1e-12)

    for _, candidates in rows.groupby(["target", "trial"]):
        (selected,) = candidates[candidates["is_selected"]].itertuples()
        assert selected.validation == candidates["validation"].max()

    runs_of_one_rate = [run for run in runs if run.job.role.values == {"lr": 0.01}]
    assert not figure_data.list_choices(runs_of_one_rate, "training-domain")


def set_stage(run, stage):
    role = Role(values=run.job.role.values, member=run.job.role.member, stage=stage)
    return replace(run, job=replace(run.job, role=role))


@pytest.mark.parametrize("method", ["training-domain", "clipood"])
def test_choices_of_a_search_in_two_stages_are_those_of_the_first_stage(search, method):
    """CLIPood's protocol chooses nothing itself; the first stage has chosen."""
    runs = load_runs(search)
    first_stage = [set_stage(run, CHOOSE) for run in runs if run.job.key.trial == 1]
    second_stage = [
        set_stage(run, REPEAT)
        for run in runs
        if run.job.key.trial == 0 and run.job.role.values == {"lr": 0.01}
    ]
    choices = figure_data.list_choices(second_stage, method, first_stage)
    assert len(choices) == 3 * 4 and {entry.trial for entry in choices} == {1}
    selected = [entry.choice for entry in choices if entry.is_selected]
    assert [choice.searched_values["lr"] for choice in selected] == [0.01] * 4

    if method == "clipood":
        accuracies = {(*run.test_envs, run.job.choice): last_out(run) for run in first_stage}
        assert {
            (entry.target, entry.choice): entry.out_of_domain for entry in choices
        } == accuracies


def last_out(run):
    """Return the accuracy on the target's out-split at the last step."""
    (target,) = run.test_envs
    lines = (run.job.folder / "results.jsonl").read_text().splitlines()
    return json.loads(lines[-1])[f"env{target}_out_acc"]


def test_each_run_of_a_search_is_a_dot_and_selected_ones_are_filled(search):
    style = plots.get_styles(["CARFT"])["CARFT"]
    with plots.figure_style():
        choices = figure_data.list_choices(load_runs(search), "training-domain")
        svg = plots.draw_choices("CARFT", "name", choices, style).svg.lower()

    assert all(f">{rate}</text>" in svg for rate in RATES)
    marks = [part.split(">")[0] for part in svg.split("<use ")]
    dots = [mark for mark in marks if f"stroke: {style.colour.lower()}" in mark]
    filled = [mark for mark in dots if f"fill: {style.colour.lower()}" in mark]
    # two panels, and the legend
    assert (len(filled), len(dots) - len(filled)) == (2 * 8 + 1, 2 * 16 + 1)
