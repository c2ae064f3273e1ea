"""Incomplete cells say what they lack."""

import json
import shutil

import collect_sweeps
import pytest
from domainbed.scripts import collect_results

from domainbed_carft import cli
from domainbed_carft.results import collection as collecting


def test_jobs_that_were_not_run(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], trials=3, choices=4, pairs=True)
    lost = ["0-1-0", "0-1-1", "0-1-3", "0-2-2", "0-2-2-1", *(f"1-2-{n}" for n in range(4))]
    for name in lost:
        shutil.rmtree(tmp_path / f"ERM-{name}")
    tables = collect_sweeps.tables(tmp_path)
    for method, column, missing in (
        ("oracle", "A", "0: trial 1 hparams_seed 0-1, 3; trial 2 hparams_seed 2"),
        ("training-domain", "C", "1: trial 2"),
        ("oracle", "P", None),
        ("leave-one-domain-out", "P", "0 2: trial 2 hparams_seed 1"),
    ):
        cell = collect_sweeps.cell(tables["", method, "PACS"], "ERM", column)
        assert cell["missing"] == ([f"no job --test_envs {missing}"] if missing else [])
    averages = tables["", "oracle", "Averages"]
    assert collect_sweeps.cell(averages, "ERM", "PACS")["missing"] == ["incomplete in PACS: A, C"]
    cell = collect_sweeps.cell(tables["", "oracle", "PACS"], "ERM", "C")
    assert (cell["n"], list(cell["trials"])) == (2, ["0", "1"])


def strict(capsys, folder, *more):
    """The exit status, and what is printed."""
    status = cli.main(["collect", str(folder), "--strict", *more])
    return status, *capsys.readouterr()


def test_a_sweep_that_never_meant_to_leave_two_domains_out_is_whole(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    status, out, err = strict(capsys, tmp_path)
    assert (status, err) == (0, "48 records of 16 jobs.\n")
    assert "no job --test_envs 0 1: in every trial. no job --test_envs 1 2: in every" in out
    assert strict(capsys, tmp_path, "--select", "oracle,leave-one-domain-out")[0] == 3
    collect_sweeps.write_job(tmp_path, "pair", test_envs=[0, 1])
    status, _, err = strict(capsys, tmp_path)
    assert status == 3 and "5 of 15 cells are incomplete" in err


def test_runs_that_broke_off(tmp_path):
    for target, at, done in ((0, (0, 100), True), (1, (0, 200), True), (2, (0, 100, 200), False)):
        collect_sweeps.write_job(tmp_path, f"{target}", at=at, done=done, test_envs=[target])
    collect_sweeps.write_job(tmp_path, "3", test_envs=[3])
    cells = collect_sweeps.tables(tmp_path)["", "oracle", "PACS"]["rows"][0]["cells"]
    assert [cell["missing"] for cell in cells] == [
        ["--test_envs 0 stopped at step 100 of 200: in every trial"],
        ["--test_envs 1 has 2 of 3 checkpoints: in every trial"],
        ["--test_envs 2 is not finished (no file done): in every trial"],
        [],
    ]


def write_records(job, change):
    """Rewrite a job's records as ``change`` returns them."""
    path = job / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


@pytest.mark.parametrize(("method", "targets"), [("oracle", [0]), ("in-domain", [])])
def test_what_is_no_number_is_not_the_best(tmp_path, method, targets):
    for choice in range(2):
        collect_sweeps.write_job(tmp_path, f"{choice}", test_envs=targets, hparams_seed=choice)
    nan = {"env0_out_acc": float("nan"), "env1_out_acc": float("nan"), "env0_in_acc": 0.01}
    write_records(tmp_path / "1", lambda record: {**record, **nan})
    cell = collect_sweeps.cell(collect_sweeps.tables(tmp_path)["", method, "PACS"], "ERM", "A")
    assert cell["mean"] > 20 and cell["n"] == 1
    (why,) = cell["missing"]
    assert why.endswith(" has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 1")


def harness_tables(folder, capsys):
    assert collect_results.main(["--input_dir", str(folder)]) == 0
    return capsys.readouterr().out.split("\n", 1)[1]


@pytest.mark.parametrize("mark", [{"diverged_at": 42}, {"loss": float("nan")}, {"loss": -1e999}])
def test_records_of_a_diverged_training_do_not_count(tmp_path, capsys, mark):
    """Whether our train marked them, or another checkout's left a loss that is not finite."""
    for name in ("healthy", "sweep"):
        collect_sweeps.write_sweep(tmp_path / name, ["ERM"], trials=1, choices=2)
    job = tmp_path / "sweep" / "ERM-0-0-1"
    # Chance predictions that would win everywhere.
    best = {f"env{i}_{split}_acc": 1.0 for i in range(4) for split in ("in", "out")}
    write_records(job, lambda record: {**record, **(best if record["step"] > 0 else {})})
    unmarked = harness_tables(tmp_path / "sweep", capsys)
    write_records(job, lambda record: {**record, **(mark if record["step"] > 0 else {"loss": 1.5})})
    assert harness_tables(tmp_path / "sweep", capsys) == unmarked

    # What is left of the job is its record of step 0.
    rest = tmp_path / "healthy" / "ERM-0-0-1" / "results.jsonl"
    rest.write_text(rest.read_text().splitlines(keepends=True)[0])
    why = "--test_envs 0 diverged, and has no accuracies from step 100 on: trial 0 hparams_seed 1"
    healthy, cell = (
        collect_sweeps.tables(tmp_path / name)["", "training-domain", "PACS"]["rows"][0]["cells"][0]
        for name in ("healthy", "sweep")
    )
    assert cell["mean"] == healthy["mean"] and cell["missing"] == [why]
    status, _, err = strict(capsys, tmp_path / "sweep", "--select", "oracle")
    assert status == 3
    assert f"diverged: {job}: the training diverged; 2 records from step 100 on without" in err
    # Copies of the job count once, though nan is not equal to nan.
    shutil.copytree(job, tmp_path / "sweep" / "copy")
    assert len(collecting.gather([tmp_path / "sweep"]).groups[0].runs) == 8
