"""What a report shows of a search: a dot for every choice, trial and target."""

import json
import re
import shutil
from dataclasses import replace

import collect_sweeps
import numpy as np
import pytest
import report_page
import sweep_folders

from domainbed_carft.jobs.job import CHOOSE, REPEAT, Role
from domainbed_carft.report import frames, plots
from domainbed_carft.results import collection
from domainbed_carft.sweep import host

SEARCH = """
name: x
datasets: [PACS]
algorithms: [CARFT]
trials: 2
search: {values: {lr: [1e-6, 3e-6, 1e-5]}}
"""
RATES = (1e-6, 3e-6, 1e-5)
STYLES = plots.styles_of(["CARFT"])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A declared search over three rates, all jobs of which have records."""
    folder = tmp_path_factory.mktemp("search")
    for job in sweep_folders.launched(folder, SEARCH):
        recorded = host.job_hparams(job.args)
        collect_sweeps.write_job(job.folder.parent, job.folder.name, **job.args, recorded=recorded)
    return folder


@pytest.fixture(scope="module")
def runs(sweep):
    (group,) = collection.gather([sweep]).groups
    return group.runs


def best_checkpoint(folder, target):
    """Validation and accuracy of a job at its best step, read plainly."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    validated = []
    for record in map(json.loads, lines):
        out_splits = [record[f"env{env}_out_acc"] for env in range(4) if env != target]
        validated.append((np.mean(out_splits), record[f"env{target}_in_acc"]))
    return max(validated, key=lambda pair: pair[0])


def test_every_choice_has_a_row_and_the_best_of_each_target_and_trial_is_selected(runs):
    rows = frames.choices(runs, "training-domain")
    assert len(rows) == 3 * 4 * 2

    for row in rows.itertuples():
        (run,) = (
            run
            for run in runs
            if run.test_envs == (row.target,)
            and run.job.key.trial == row.trial
            and run.job.choice == row.choice
        )
        expected = best_checkpoint(run.job.folder, row.target)
        assert (row.validation, row.out_of_domain) == pytest.approx(expected, abs=1e-12)

    for _, candidates in rows.groupby(["target", "trial"]):
        (selected,) = candidates[candidates["selected"]].itertuples()
        assert selected.validation == candidates["validation"].max()


def test_of_a_search_in_two_stages_the_first_is_drawn_and_what_is_repeated_was_chosen(runs):
    def with_stage(run, stage):
        role = run.job.role
        staged = Role(values=role.values, member=role.member, stage=stage)
        return replace(run, job=replace(run.job, role=staged))

    first_stage = [with_stage(run, CHOOSE) for run in runs if run.job.key.trial == 1]
    repeats = [
        with_stage(run, REPEAT)
        for run in runs
        if run.job.key.trial == 0 and run.job.role.values == {"lr": 3e-6}
    ]
    rows = frames.choices(repeats, "training-domain", first_stage)

    assert len(rows) == 3 * 4 and set(rows["trial"]) == {1}
    assert [choice.searched_values["lr"] for choice in rows[rows["selected"]]["choice"]] == [
        3e-6
    ] * 4


def test_without_a_search_there_are_no_dots(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT"], choices=1)
    (group,) = collection.gather([tmp_path]).groups
    assert frames.choices(group.runs, "training-domain").empty


def test_the_figure_has_a_dot_for_every_run_and_those_chosen_are_filled(runs):
    rows = frames.choices(runs, "training-domain")
    style = STYLES["CARFT"]
    with plots.figure_style():
        svg = plots.choices("CARFT", "dots", rows, style).svg

    dots = re.findall(rf'<use [^>]*style="fill: (#\w+); stroke: {style.colour}', svg, re.IGNORECASE)
    chosen = dots.count(style.colour.lower())
    assert (chosen, len(dots) - chosen) == (2 * 8 + 1, 2 * 16 + 1)  # two panels, and the legend
    for rate in RATES:
        assert f">{rate}</text>" in svg


def test_the_page_has_the_dots_of_a_search_and_the_chosen_values(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    assert report_page.report(sweep, tmp_path / "report") == 0
    page = report_page.read(tmp_path / "report")

    assert (3, "Every choice of the search") in page.headings
    assert "figures/PACS-choices-CARFT.svg" in {link["href"] for link in page.all("a")}
    rows = page.tables["Jobs behind the cells: PACS"][1:]
    assert {row[3] for row in rows} <= {f"lr {rate}" for rate in RATES}


@pytest.mark.parametrize("planned", [0, 1])
def test_a_manifest_that_hides_all_jobs_is_named(sweep, tmp_path, capsys, planned):
    """As one whose roles were altered: all jobs are of the first stage, which is over."""
    folder = shutil.copytree(sweep, tmp_path / "OUT")
    content = json.loads((folder / "sweep.json").read_text())
    for job in content["jobs"]:
        job["role"]["stage"] = CHOOSE
    chosen = {"cell": "", "dataset": "PACS", "algorithm": "CARFT", "test_envs": None}
    chosen |= {"values": {"lr": 1e-5}, "members": 3, "validation": 0.5}
    content["search"] = {"method": "training-domain", "choose_by": "dataset", "choose_on": [1]}
    content["search"] |= {"repeat_on": [0], "repeats": 8, "chosen": [chosen], "command": []}
    for job in content["jobs"][:planned]:  # one of the second stage, which has no records yet
        role = {**job["role"], "stage": REPEAT, "values": {"lr": 1e-5}}
        place = job["folder"][:-32] + "0" * 32
        content["jobs"].append({**job, "folder": place, "role": role})
    (folder / "sweep.json").write_text(json.dumps(content))

    assert report_page.report(folder, tmp_path / "report") == 1
    message = "carft: there is nothing to show yet" if planned else "carft: no job in"
    stderr = capsys.readouterr().err
    assert stderr.startswith(message) and "by sweep.json all" in stderr


def test_a_job_without_a_role_is_a_choice_without_a_value(runs):
    without_role = replace(runs[0], job=replace(runs[0].job, role=Role()))
    rows = frames.choices([without_role, *runs[1:]], "training-domain")
    with plots.figure_style():
        assert ">default</text>" in plots.choices("CARFT", "dots", rows, STYLES["CARFT"]).svg
