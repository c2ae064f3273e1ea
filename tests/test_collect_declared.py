"""What a launched sweep declares is what its tables expect."""

import dataclasses
import json

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.jobs import scan
from domainbed_carft.sweep import flags, jobs, names, output
from domainbed_carft.sweep.declaration import parse

PACS = "name: it\ndatasets: [PACS]\nalgorithms: [ERM, Mixup]\ntrials: 2\n"
FLAGS = {"datasets": ["PACS"], "algorithms": ["ERM", "Mixup"], "n_trials": 2, "n_hparams": 1}


def launch(folder, text=None, flag_values=None, run=lambda args: True):
    """What ``carft sweep launch`` leaves in a folder, and the records of the jobs that were run."""
    made = parse(text, "it", checked=True) if text else flags.declared(flag_values, checked=True)
    facts = {name: dataclasses.asdict(names.dataset(name)) for name in made.datasets}
    folder.mkdir(exist_ok=True)
    launched = output.Launched("it", "data", None, flag_values, facts, "pool", 0.0)
    output.remember(folder, launched, text)
    for job in jobs.make(made, "data", folder):
        if run(job.train_args):
            labels = made.environments[job.train_args["dataset"]]
            given = {"environments": labels, **job.train_args}
            collect_sweeps.write_job(job.folder.parent, job.folder.name, **given)


def strict(capsys, *words):
    """The exit status, the tables, and what is told."""
    status = cli.main(["collect", *map(str, words), "--strict", "--format", "json"])
    out, err = capsys.readouterr()
    tables = {
        (table["setting"], table["dataset"] or "Averages"): table
        for table in json.loads(out)["tables"]
        if table["selection"] in ("oracle", "in-domain")
    }
    return status, tables, err


@pytest.mark.parametrize(("text", "given"), [(PACS, None), (None, FLAGS)])
@pytest.mark.parametrize(
    ("lost", "row", "where"),
    [({"trial_seed": 1}, "ERM", "trial 1"), ({"algorithm": "Mixup"}, "Mixup", "in every trial")],
)
def test_declared_jobs_without_a_folder_are_missed(tmp_path, capsys, text, given, lost, row, where):
    launch(tmp_path / "it", text, given, lambda args: not lost.items() <= args.items())
    status, tables, err = strict(capsys, tmp_path / "it")
    assert status == 3 and "cells lack something" in err
    cell = collect_sweeps.cell(tables["", "PACS"], row, "C")
    assert cell["missing"] == [f"--test_envs 1 was not launched: {where}"]


def test_a_whole_sweep_over_some_environments_is_whole(tmp_path, capsys):
    launch(tmp_path / "it", PACS + "test_environments: [sketch]\n")
    status, tables, err = strict(capsys, tmp_path / "it")
    assert (status, err) == (0, "12 records of 4 jobs.\n")
    table = tables["", "PACS"]
    cell, other = (collect_sweeps.cell(table, "ERM", column) for column in "SA")
    assert table["rows"][0]["average"] == cell["mean"]
    assert (other["mean"], other["missing"]) == (None, [])
    assert tables["", "Averages"]["notes"] == [
        f"{name} on PACS: without A, C, P, not declared." for name in ("ERM", "Mixup")
    ]
    cli.main(["collect", str(tmp_path / "it"), "--select", "oracle"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ERM  ")]
    assert rows[0].split()[1:4] == ["-", "-", "-"]


def test_an_average_over_some_environments_is_no_whole_one_beside_the_published(tmp_path):
    text = PACS.replace("ERM, Mixup", "CARFT") + "test_environments: [sketch]\n"
    launch(tmp_path / "it", text)
    page = collect_sweeps.collect(tmp_path / "it", methods=["oracle"], compare=True)
    (one,) = page.document.sections["published"]["comparisons"]
    assert (page.incomplete, one["dataset"], one["complete"]) == (0, "PACS", False)


def test_jobs_beyond_the_declaration_have_their_cells(tmp_path, capsys):
    launch(tmp_path / "it", PACS + "test_environments: [sketch]\n")
    given = {"environments": names.dataset("PACS").labels}
    collect_sweeps.write_job(tmp_path / "it", "more", test_envs=[0], trial_seed=5, **given)
    collect_sweeps.write_job(tmp_path / "it", "cut", test_envs=[1], at=(0, 100), **given)
    status, tables, _ = strict(capsys, tmp_path / "it")
    cells = [collect_sweeps.cell(tables["", "PACS"], "ERM", column) for column in "ACPS"]
    assert [(cell["n"], bool(cell["missing"])) for cell in cells] == [
        (1, False), (1, True), (0, False), (2, False)
    ]  # fmt: skip
    assert status == 3


def test_each_variant_misses_its_own_jobs(tmp_path, capsys):
    text = PACS.replace("ERM, Mixup", "CARFT") + "grid: {kl_weight: [1, 3]}\n"
    launch(tmp_path / "it", text, run=lambda a: (a["trial_seed"], "3" in a["hparams"]) != (1, True))
    status, tables, _ = strict(capsys, tmp_path / "it")
    lacks = {
        setting: collect_sweeps.cell(table, "CARFT", "A")["missing"]
        for (setting, name), table in tables.items()
        if name == "PACS"
    }
    assert lacks == {
        "hparam kl_weight 1": [],
        "hparam kl_weight 3": ["--test_envs 0 was not launched: trial 1"],
    }
    assert status == 3


def test_jobs_that_ran_under_another_setting_are_not_missed_where_they_did_not(tmp_path, capsys):
    """A pilot of one trial, with steps of its own, in the folder of the sweep."""
    launch(tmp_path / "it", PACS)
    for target in range(4):
        collect_sweeps.write_job(tmp_path / "it", f"{target}", test_envs=[target], steps=201)
    status, tables, _ = strict(capsys, tmp_path / "it")
    assert (status, len(tables)) == (0, 4)


def test_a_data_set_of_which_nothing_was_run_has_its_table(tmp_path, capsys):
    text = PACS.replace("[PACS]", "[PACS, VLCS]") + "test_environments: {PACS: [0], VLCS: [1]}\n"
    launch(tmp_path / "it", text, run=lambda args: args["dataset"] == "PACS")
    status, tables, _ = strict(capsys, tmp_path / "it")
    assert status == 3 and tables["", "VLCS"]["columns"] == ["C", "L", "S", "V"]
    cells = tables["", "VLCS"]["rows"][0]["cells"]
    assert [bool(cell["missing"]) for cell in cells] == [False, True, False, False]


def test_sweeps_over_different_algorithms_and_data_sets_lack_nothing_of_each_other(
    tmp_path, capsys
):
    launch(tmp_path / "a", PACS.replace("ERM, Mixup", "ERM"))
    launch(tmp_path / "b", PACS.replace("ERM, Mixup", "Mixup").replace("PACS", "VLCS"))
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 0
    (tmp_path / "b" / "sweep.json").unlink()
    assert strict(capsys, tmp_path / "a", tmp_path / "b")[0] == 3


def test_leave_one_domain_out_needs_the_pairs_of_declared_targets_only(tmp_path, capsys):
    text = PACS + "test_environments: [sketch]\nselection: [leave-one-domain-out]\n"
    launch(tmp_path / "it", text)
    assert strict(capsys, tmp_path / "it")[0] == 0
    launch(tmp_path / "other", text, run=lambda args: args["test_envs"] != [0, 3])
    assert cli.main(["collect", str(tmp_path / "other"), "--strict"]) == 3
    assert "--test_envs 0 3 was not launched: in every trial" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sweep.yaml", "datasets: ["),
        ("sweep.yaml", PACS + "trails: 3\n"),
        ("sweep.yaml", PACS.replace("PACS", "ColoredMNIST")),
        ("sweep.json", "{}"),
        ("sweep.json", "["),
    ],
)
def test_a_declaration_that_cannot_be_read_is_noted_once(tmp_path, capsys, name, text):
    launch(tmp_path / "it", PACS, run=lambda args: args["trial_seed"] == 0)
    (tmp_path / "it" / name).write_text(text)
    status, tables, err = strict(capsys, tmp_path / "it", "--select", "oracle")
    assert err.count("unreadable: ") == 1 and "1 named above as: unreadable" in err
    assert status == 3 and tables["", "PACS"]["rows"][0]["cells"][0]["missing"] == []
    if "[" in text and name == "sweep.yaml":
        assert strict(capsys, tmp_path / "it")[2].count("unreadable: ") == 1


def test_nobody_is_asked_for_what_the_launch_has_kept(tmp_path, capsys):
    """Of a data set that only a domainbed knows, which loads torch."""
    launch(tmp_path / "it", PACS)
    for name in ("sweep.yaml", "sweep.json"):
        path = tmp_path / "it" / name
        path.write_text(path.read_text().replace("PACS", "Unheard"))
    assert collect_sweeps.loaded("collect", tmp_path / "it", "--strict") == [3, []]
    cli.main(["collect", str(tmp_path / "it"), "--select", "oracle"])
    out, err = capsys.readouterr()
    assert "Unheard; test-domain" in out and "was not launched: in every trial" in out
    assert "unreadable" not in err


def test_the_files_are_those_that_the_sweep_leaves():
    assert (scan.DECLARATION, scan.LAUNCHED) == (output.DECLARATION, output.LAUNCHED)
