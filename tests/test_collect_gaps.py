"""Incomplete cells name what they lack."""

import re
import shutil

import collect_sweeps
import numpy as np
import pytest
from collect_sweeps import change_records

from domainbed_carft import cli
from domainbed_carft.jobs import records
from domainbed_carft.results import collection
from domainbed_carft.results import columns as table_columns
from domainbed_carft.results.collect import collect

BEST = {f"env{env}_{split}_acc": 1.0 for env in range(4) for split in ("in", "out")}


def cell_of(folder, method, column, algorithm="ERM"):
    table = collect_sweeps.tables(folder)["", method, "PACS"]
    return collect_sweeps.cell(table, algorithm, column)


def test_cells_name_jobs_that_were_not_run(tmp_path):
    collect_sweeps.write_sweep(tmp_path, trials=3, choices=4, pairs=True)
    names = ["0-1-0", "0-1-1", "0-1-3", "0-2-2", "0-2-2-1", *(f"1-2-{n}" for n in range(4))]
    for name in names:
        shutil.rmtree(tmp_path / f"ERM-{name}")

    for method, column, missing in (
        (
            "oracle",
            "A",
            "no job --test_envs 0: trial 1 hparams_seed 0, 1, 3; trial 2 hparams_seed 2",
        ),
        ("training-domain", "C", "no job --test_envs 1: trial 2"),
        ("leave-one-domain-out", "P", "no job --test_envs 0 2: trial 2 hparams_seed 1"),
    ):
        assert cell_of(tmp_path, method, column)["missing"] == [missing]
    assert cell_of(tmp_path, "oracle", "P")["missing"] == []
    assert list(cell_of(tmp_path, "oracle", "C")["trials"]) == ["0", "1"]

    averages = collect_sweeps.tables(tmp_path)["", "oracle", "Averages"]
    assert collect_sweeps.cell(averages, "ERM", "PACS")["missing"] == ["incomplete in PACS: A, C"]
    assert collect_sweeps.cell(averages, "Mixup", "PACS")["missing"] == []


@pytest.mark.parametrize("is_declared", [True, False])
def test_incomplete_cells_are_marked_and_have_no_rank(is_declared, tmp_path):
    """CARFT is best everywhere, and lacks a job on C, or has none declared for it."""

    def is_run(args):
        return (args["algorithm"], args["test_envs"], args["trial_seed"]) != ("CARFT", [1], 1)

    collect_sweeps.launch(tmp_path, ["ERM", "Mixup"])
    targets = range(4) if is_declared else (0, 2, 3)
    collect_sweeps.launch(tmp_path, ["CARFT"], targets=targets, run=is_run)
    for path in tmp_path.glob("*/results.jsonl"):
        if '"CARFT"' in path.read_text():
            change_records(path.parent, lambda record: record | BEST)

    names = ["environments", "average", "out-of-domain", "worst", "in-domain"]
    results = collect(tmp_path, methods=["training-domain"], columns=names)
    table, averages = results.tables
    first, *others = (row[1:] for row in table.grid().rows)
    marks = ("[1]", "[2]") if is_declared else ("*", "-")
    is_incomplete = [False, True, False, False, True, True, True, True]
    assert [text.endswith(marks) for text in first] == is_incomplete
    assert not any("[" in text or "*" in text for row in others for text in row)
    is_best = [rank == table_columns.BEST for rank in table.ranks[0]]
    assert is_best == [not incomplete for incomplete in is_incomplete]

    first = averages.grid().rows[0][1:]
    assert all(text.endswith(("[1]", "[2]", "*")) for text in first)
    assert averages.ranks[0] == [0, 0]

    (latex,) = re.findall(r"^CARFT & (.*) ", results.write("latex"), re.MULTILINE)
    stars = [text.endswith(("$^{*}$", "--")) for text in latex.split(" & ")]
    assert stars == is_incomplete
    lines = [line for line in results.write("csv").splitlines() if ",CARFT," in line]
    assert [not line.endswith(",") or ",,,0," in line for line in lines] == is_incomplete


def strict(capsys, folder, *options):
    """The exit status, and what is printed."""
    status = cli.main(["collect", str(folder), "--strict", *options])
    return status, *capsys.readouterr()


def test_pairs_of_targets_are_missing_only_if_their_method_is_asked_for(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    status, out, err = strict(capsys, tmp_path)
    assert (status, err) == (0, "48 records of 16 jobs.\n")
    assert "leave-one-domain-out" not in out

    status, out, _ = strict(capsys, tmp_path, "--select", "oracle,leave-one-domain-out")
    assert status == 3
    assert "no job --test_envs 0 1: in every trial. no job --test_envs 1 2: in every" in out

    collect_sweeps.write_job(tmp_path, "pair", test_envs=[0, 1])
    status, _, err = strict(capsys, tmp_path)
    assert status == 3 and "incomplete: 5 of 15 cells (see" in err


def test_cells_name_runs_that_are_incomplete(tmp_path):
    collect_sweeps.write_job(tmp_path, "a", at=(0, 100), test_envs=[0])
    collect_sweeps.write_job(tmp_path, "b", at=(0, 200), test_envs=[1])
    collect_sweeps.write_job(tmp_path, "c", done=False, test_envs=[2])
    collect_sweeps.write_job(tmp_path, "d", test_envs=[3])
    for column, missing in (
        ("A", ["--test_envs 0 stopped at step 100 of 200: in every trial"]),
        ("C", ["--test_envs 1 has 2 of 3 checkpoints: in every trial"]),
        ("P", ["--test_envs 2 is not finished (no file 'done'): in every trial"]),
        ("S", []),
    ):
        assert cell_of(tmp_path, "oracle", column)["missing"] == missing

    collect_sweeps.write_sweep(tmp_path / "all", ["ERM"], steps=301)
    assert cell_of(tmp_path / "all", "oracle", "A")["missing"] == [
        "--test_envs 0 stopped at step 200 of 300: in every trial"
    ]


@pytest.mark.parametrize("method", ["oracle", "training-domain", "in-domain"])
def test_an_accuracy_that_is_nan_is_never_the_best(tmp_path, method):
    targets = [] if method == "in-domain" else [0]
    for choice in range(2):
        collect_sweeps.write_job(tmp_path, f"{choice}", test_envs=targets, hparams_seed=choice)
    nan = {"env0_out_acc": float("nan"), "env1_out_acc": float("nan"), "env0_in_acc": 0.01}
    change_records(tmp_path / "1", lambda record: {**record, **nan})

    cell = cell_of(tmp_path, method, "A")
    assert cell["mean"] > 20 and cell["n"] == 1
    (reason,) = cell["missing"]
    assert reason.endswith(" has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 1")


@pytest.mark.parametrize("mark", [{"diverged_at": 42}, {"loss": float("nan")}, {"loss": -1e999}])
def test_records_of_a_diverged_training_do_not_count(tmp_path, capsys, mark):
    """The train of another checkout marks none, but records a loss that is not finite."""
    collect_sweeps.write_sweep(tmp_path, ["ERM"], trials=1, choices=2)
    job = tmp_path / "ERM-0-0-1"
    diverged = BEST | mark
    change_records(
        job, lambda record: record | ({"loss": 1.5} if record["step"] == 0 else diverged)
    )
    cells = [cell_of(tmp_path, method, "A") for method in ("training-domain", "oracle")]
    for cell in cells:
        (reason,) = cell["missing"]
        assert reason.startswith("--test_envs 0 diverged, so it has no accuracies from step 100 on")

    status, _, err = strict(capsys, tmp_path, "--select", "oracle")
    assert status == 3
    assert f"diverged: {job}: the training diverged; 2 records from step 100 on without" in err
    shutil.copytree(job, tmp_path / "copy")  # counts once, though nan is not equal to nan
    assert len(collection.gather([tmp_path]).runs) == 8

    # The record of step 0 counts for training-domain validation, and none for the oracle.
    path = job / "results.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    shutil.rmtree(tmp_path / "copy")
    assert cell_of(tmp_path, "training-domain", "A")["mean"] == cells[0]["mean"]
    path.unlink()
    assert cell_of(tmp_path, "oracle", "A")["mean"] == cells[1]["mean"]


@pytest.mark.parametrize(
    ("step", "first"), [(0, 0), (1, 0), (2, 100), (100, 100), (101, 100), (102, 200)]
)
def test_a_record_after_the_update_that_broke_the_weights_does_not_count(tmp_path, step, first):
    """The first loss that is not finite is that of the step after this update."""
    job = collect_sweeps.write_job(tmp_path)
    change_records(job, lambda r: {**r, **({"diverged_at": step} if r["step"] >= step else {})})
    (run,) = records.read([tmp_path]).runs
    is_nan = np.isnan(np.array(run.accuracies)).reshape(3, 8)
    assert [row.tolist() for row in is_nan] == [[at >= first] * 8 for at in (0, 100, 200)]
    assert run.diverged_at == first
