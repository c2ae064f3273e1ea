"""The jobs that the manifest of a sweep lists are what its tables expect."""

import json

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.results import collection


def strict(capsys, *words):
    """The exit status, the tables by oracle, and what is printed on standard error."""
    status = cli.main(["collect", *map(str, words), "--strict", "--format", "json"])
    out, err = capsys.readouterr()
    tables = {
        (table["setting"], table["dataset"] or "Averages"): table
        for table in json.loads(out)["tables"]
        if table["selection"] == "oracle"
    }
    return status, tables, err


@pytest.mark.parametrize(
    ("unrun", "row", "trials"),
    [({"trial_seed": 1}, "ERM", "trial 1"), ({"algorithm": "Mixup"}, "Mixup", "in every trial")],
)
def test_declared_jobs_without_records_are_missing(tmp_path, capsys, unrun, row, trials):
    algorithms = ["ERM", "Mixup"]
    collect_sweeps.launch(tmp_path, algorithms, run=lambda args: not unrun.items() <= args.items())
    status, tables, err = strict(capsys, tmp_path)
    assert status == 3 and "cells (see notes)" in err
    cell = collect_sweeps.cell(tables["", "PACS"], row, "C")
    assert cell["missing"] == [f"--test_envs 1 has no record: {trials}"]


def test_a_sweep_over_one_target_is_complete(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, ["CARFT", "ERM"], targets=[3])
    status, tables, err = strict(capsys, tmp_path)
    assert (status, err) == (0, "12 records of 4 jobs.\n")
    notes = tables["", "Averages"]["notes"]
    assert notes == ["*: no job was declared for A, C, P on PACS: CARFT, ERM."]

    table = tables["", "PACS"]
    cell, undeclared = (collect_sweeps.cell(table, "CARFT", column) for column in "SA")
    assert table["rows"][0]["average"] == cell["mean"]
    assert (undeclared["mean"], undeclared["missing"]) == (None, [])

    document = collect_sweeps.collect(tmp_path, methods=["oracle"], compare=True)
    assert document.grids[0].rows[0][1:4] == ["-", "-", "-"]
    (comparison,) = document.as_dict()["published"]["comparisons"]
    assert (comparison["dataset"], comparison["complete"]) == ("PACS", False)


def test_jobs_outside_the_manifest_have_cells(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, targets=[3])
    facts = {"environments": list("ACPS"), "task": "t"}
    collect_sweeps.write_job(tmp_path, "more", test_envs=[0], trial_seed=5, **facts)
    collect_sweeps.write_job(tmp_path, "cut", test_envs=[1], at=(0, 100), **facts)
    status, tables, _ = strict(capsys, tmp_path)
    assert status == 3
    cells = [collect_sweeps.cell(tables["", "PACS"], "ERM", column) for column in "ACPS"]
    assert [cell["n"] for cell in cells] == [1, 1, 0, 2]
    assert [bool(cell["missing"]) for cell in cells] == [False, True, False, False]


@pytest.mark.parametrize(("n_run", "trials"), [(0, "in every trial"), (1, "trial 1")])
def test_missing_jobs_are_named_in_the_table_of_their_setting(tmp_path, capsys, n_run, trials):
    collect_sweeps.launch(
        tmp_path,
        ["CARFT"],
        hparams=('{"kl_weight": 1}', '{"kl_weight": 3}'),
        compare_with=("CLIPood", "MIRO"),
        run=lambda args: "1" in args["hparams"] or args["trial_seed"] < n_run,
    )
    status, tables, _ = strict(capsys, tmp_path)
    assert status == 3
    missing = {
        setting: collect_sweeps.cell(table, "CARFT", "A")["missing"]
        for (setting, dataset), table in tables.items()
        if dataset == "PACS"
    }
    assert missing == {
        "hparam kl_weight 1": [],
        "hparam kl_weight 3": [f"--test_envs 0 has no record: {trials}"],
    }

    # The manifest names the published rows.
    figures = collect_sweeps.collect(tmp_path, compare=True).as_dict()["published"]["figures"]
    assert {figure["method"] for figure in figures} == {"CLIPood", "MIRO"}


def test_a_pilot_with_another_setting_lacks_no_job_of_the_manifest(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, ["ERM", "Mixup"])
    for target in range(4):
        facts = {"test_envs": [target], "task": "t", "environments": list("ACPS")}
        collect_sweeps.write_job(tmp_path, f"{target}", steps=201, **facts)
    status, tables, _ = strict(capsys, tmp_path)
    assert (status, len(tables)) == (0, 4)


def test_two_sweeps_lack_no_jobs_of_each_other(tmp_path, capsys):
    collect_sweeps.launch(tmp_path / "a", ["ERM"])
    collect_sweeps.launch(tmp_path / "b", ["Mixup"], datasets=["VLCS"])
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 0

    for name in "ab":
        (tmp_path / name / "sweep.json").unlink()
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 3


def test_leave_one_domain_out_needs_pairs_of_declared_targets_only(tmp_path, capsys):
    facts = {"targets": [3, [0, 3], [1, 3], [2, 3]], "selection": ("leave-one-domain-out",)}
    collect_sweeps.launch(tmp_path / "it", **facts)
    assert strict(capsys, tmp_path / "it")[0] == 0

    collect_sweeps.launch(tmp_path / "other", run=lambda args: args["test_envs"] != [0, 3], **facts)
    assert cli.main(["collect", str(tmp_path / "other"), "--strict"]) == 3
    assert "--test_envs 0 3 has no record: in every trial" in capsys.readouterr().out


def test_selection_methods_are_those_of_the_manifest(tmp_path):
    for name, methods in (("one", ("oracle",)), ("none", ())):
        collect_sweeps.launch(tmp_path / name, [name], selection=methods)
    assert collection.gather([tmp_path / "one"]).methods == ["oracle"]
    both = collection.gather([tmp_path / "one", tmp_path / "none"])
    assert both.methods == ["training-domain", "oracle"]

    collect_sweeps.write_job(tmp_path / "one", "pair", test_envs=[0, 1])
    assert collection.gather([tmp_path / "one"]).methods == ["leave-one-domain-out", "oracle"]


MANIFEST = '{"version": 1, "datasets": {}, "selection": [], "compare_with": [], "jobs": [%s]}'
JOB = '{"folder": %s, "variant": "", "args": {"dataset": "PACS", "algorithm": "ERM", %s}}'
NUMBERS = '"test_envs": [0], "trial_seed": 0, "hparams_seed": '


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '{"version": 9}',
        MANIFEST % (JOB % ("7", NUMBERS + "0")),
        MANIFEST % (JOB % (f'"{"a" * 32}"', NUMBERS + '"x"')),
        MANIFEST.replace("{}", '{"PACS": {"labels": [], "pictures": null, "steps": Infinity}}')
        % "",
    ],
)
def test_a_manifest_that_cannot_be_read_is_noted_once(tmp_path, capsys, text):
    collect_sweeps.launch(tmp_path, run=lambda args: args["trial_seed"] == 0)
    (tmp_path / manifest.NAME).write_text(text)
    status, tables, err = strict(capsys, tmp_path, "--select", "oracle")
    assert err.count("unreadable: ") == 1
    assert err.splitlines()[-1] == "carft: --strict: unreadable (1)"
    assert status == 3 and tables["", "PACS"]["rows"][0]["cells"][0]["missing"] == []
