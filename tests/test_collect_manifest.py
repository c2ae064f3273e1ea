"""The jobs that the manifest of a sweep lists are what its tables expect."""

import json

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.results import collection as collecting


def strict(capsys, *words):
    """The exit status, the tables by oracle or in-domain, and what is said beside them."""
    status = cli.main(["collect", *map(str, words), "--strict", "--format", "json"])
    out, err = capsys.readouterr()
    tables = {
        (table["setting"], table["dataset"] or "Averages"): table
        for table in json.loads(out)["tables"]
        if table["selection"] in ("oracle", "in-domain")
    }
    return status, tables, err


@pytest.mark.parametrize(
    ("unrun", "row", "trials"),
    [({"trial_seed": 1}, "ERM", "trial 1"), ({"algorithm": "Mixup"}, "Mixup", "in every trial")],
)
def test_jobs_of_the_manifest_without_records_are_reported_missing(
    tmp_path, capsys, unrun, row, trials
):
    algorithms = ["ERM", "Mixup"]
    collect_sweeps.launch(tmp_path, algorithms, run=lambda args: not unrun.items() <= args.items())
    status, tables, err = strict(capsys, tmp_path)

    assert status == 3 and "cells (see notes)" in err

    cell = collect_sweeps.cell(tables["", "PACS"], row, "C")
    assert cell["missing"] == [f"--test_envs 1 has no record: {trials}"]


def test_a_sweep_over_one_target_is_complete(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, ["CARFT"], targets=[3])
    status, tables, err = strict(capsys, tmp_path)
    assert (status, err) == (0, "6 records of 2 jobs.\n")

    table = tables["", "PACS"]
    cell, undeclared = (collect_sweeps.cell(table, "CARFT", column) for column in "SA")
    assert table["rows"][0]["average"] == cell["mean"]
    assert (undeclared["mean"], undeclared["missing"]) == (None, [])
    assert tables["", "Averages"]["notes"] == ["*: no job was declared for A, C, P on PACS: CARFT."]

    cli.main(["collect", str(tmp_path), "--select", "oracle"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CARFT  ")]
    assert rows[0].split()[1:4] == ["-", "-", "-"]

    document = collect_sweeps.collect(tmp_path, methods=["oracle"], compare=True)
    (comparison,) = document.as_dict()["published"]["comparisons"]
    assert (comparison["dataset"], comparison["complete"]) == ("PACS", False)


def test_targets_without_a_job_are_named_once_for_all_rows(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, ["CARFT", "ERM", "Mixup"], targets=[3])
    notes = strict(capsys, tmp_path)[1]["", "Averages"]["notes"]
    assert notes == ["*: no job was declared for A, C, P on PACS: CARFT, ERM, Mixup."]


def test_jobs_outside_the_manifest_have_cells(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, targets=[3])
    facts = {"environments": list("ACPS"), "task": "t"}
    collect_sweeps.write_job(tmp_path, "more", test_envs=[0], trial_seed=5, **facts)
    collect_sweeps.write_job(tmp_path, "cut", test_envs=[1], at=(0, 100), **facts)
    status, tables, _ = strict(capsys, tmp_path)
    cells = [collect_sweeps.cell(tables["", "PACS"], "ERM", column) for column in "ACPS"]

    assert [(cell["n"], bool(cell["missing"])) for cell in cells] == [
        (1, False),
        (1, True),
        (0, False),
        (2, False),
    ]
    assert status == 3


@pytest.mark.parametrize("all_unrun", [False, True])
def test_missing_jobs_are_reported_per_variant(tmp_path, capsys, all_unrun):
    overrides = ('{"kl_weight": 1}', '{"kl_weight": 3}')
    collect_sweeps.launch(
        tmp_path,
        ["CARFT"],
        hparams=overrides,
        compare_with=("CLIPood", "MIRO"),
        run=lambda args: "1" in args["hparams"] or not (all_unrun or args["trial_seed"] == 1),
    )
    status, tables, _ = strict(capsys, tmp_path)
    trials = "in every trial" if all_unrun else "trial 1"

    assert status == 3 and {
        setting: collect_sweeps.cell(table, "CARFT", "A")["missing"]
        for (setting, name), table in tables.items()
        if name == "PACS"
    } == {
        "hparam kl_weight 1": [],
        "hparam kl_weight 3": [f"--test_envs 0 has no record: {trials}"],
    }

    document = collect_sweeps.collect(
        tmp_path, compare=True
    )  # the manifest names the published rows
    figures = document.as_dict()["published"]["figures"]
    assert {row["method"] for row in figures} == {"CLIPood", "MIRO"}


def test_a_pilot_with_another_setting_reports_no_finished_job_as_missing(tmp_path, capsys):
    collect_sweeps.launch(tmp_path, ["ERM", "Mixup"])
    for target in range(4):
        collect_sweeps.write_job(
            tmp_path,
            f"{target}",
            test_envs=[target],
            steps=201,
            task="t",
            environments=list("ACPS"),
        )

    status, tables, _ = strict(capsys, tmp_path)
    assert (status, len(tables)) == (0, 4)


def test_two_sweeps_report_no_missing_jobs_of_each_other(tmp_path, capsys):
    collect_sweeps.launch(tmp_path / "a", ["ERM"])
    collect_sweeps.launch(tmp_path / "b", ["Mixup"], datasets=["VLCS"])
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 0

    for name in "ab":
        (tmp_path / name / "sweep.json").unlink()
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 3


def test_leave_one_domain_out_needs_pairs_of_listed_targets_only(tmp_path, capsys):
    facts = {"targets": [3, [0, 3], [1, 3], [2, 3]], "selection": ("leave-one-domain-out",)}
    collect_sweeps.launch(tmp_path / "it", **facts)
    assert strict(capsys, tmp_path / "it")[0] == 0

    collect_sweeps.launch(tmp_path / "other", run=lambda args: args["test_envs"] != [0, 3], **facts)
    assert cli.main(["collect", str(tmp_path / "other"), "--strict"]) == 3
    assert "--test_envs 0 3 has no record: in every trial" in capsys.readouterr().out


def test_selection_methods_are_those_of_the_manifest(tmp_path):
    for name, methods in (("one", ("oracle",)), ("none", ())):
        collect_sweeps.launch(tmp_path / name, [name], selection=methods)
    assert collecting.gather([tmp_path / "one"]).methods == ["oracle"]

    merged = collecting.gather([tmp_path / "one", tmp_path / "none"])
    assert merged.methods == ["training-domain", "oracle"]

    collect_sweeps.write_job(tmp_path / "one", "pair", test_envs=[0, 1])
    assert collecting.gather([tmp_path / "one"]).methods == ["leave-one-domain-out", "oracle"]


ODD = '{"version": 1, "datasets": {}, "selection": [], "compare_with": [], "jobs": [%s]}'
ODD_JOB = '{"folder": %s, "variant": "", "args": {"dataset": "PACS", "algorithm": "ERM", %s}}'
NUMBERS = '"test_envs": [0], "trial_seed": 0, "hparams_seed": '


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '{"version": 9}',
        ODD % (ODD_JOB % ("7", NUMBERS + "0")),
        ODD % (ODD_JOB % (f'"{"a" * 32}"', NUMBERS + '"x"')),
        ODD.replace("{}", '{"PACS": {"labels": [], "pictures": null, "steps": Infinity}}') % "",
    ],
)
def test_a_manifest_that_cannot_be_read_is_noted_once(tmp_path, capsys, text):
    collect_sweeps.launch(tmp_path, run=lambda args: args["trial_seed"] == 0)
    (tmp_path / manifest.NAME).write_text(text)
    for _ in range(2):
        status, tables, err = strict(capsys, tmp_path, "--select", "oracle")
        assert err.count("unreadable: ") == 1
        assert err.splitlines()[-1] == "carft: --strict: unreadable (1)"
        assert status == 3 and tables["", "PACS"]["rows"][0]["cells"][0]["missing"] == []
