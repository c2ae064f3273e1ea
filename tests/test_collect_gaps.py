"""Incomplete cells say what they lack."""

import re
import shutil

import collect_sweeps
import numpy as np
import pytest
from collect_sweeps import change_records
from domainbed.scripts import collect_results

from domainbed_carft import cli
from domainbed_carft.jobs import records
from domainbed_carft.results import collect as collecting_results
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import columns as table_columns


def missing(folder, method, column="A", algorithm="ERM"):
    table = collect_sweeps.tables(folder)["", method, "PACS"]
    return collect_sweeps.cell(table, algorithm, column)["missing"]


def remove_jobs(folder, *names):
    for name in names:
        shutil.rmtree(folder / name)


def test_cells_name_jobs_that_were_not_run(tmp_path):
    collect_sweeps.write_sweep(tmp_path, trials=3, choices=4, pairs=True)
    remove_jobs(tmp_path, "ERM-0-1-0", "ERM-0-1-1", "ERM-0-1-3", "ERM-0-2-2", "ERM-0-2-2-1")
    remove_jobs(tmp_path, *(f"ERM-1-2-{choice}" for choice in range(4)))

    assert missing(tmp_path, "oracle") == [
        "no job --test_envs 0: trial 1 hparams_seed 0, 1, 3; trial 2 hparams_seed 2"
    ]
    assert missing(tmp_path, "training-domain", "C") == ["no job --test_envs 1: trial 2"]
    assert missing(tmp_path, "oracle", "P") == []
    assert missing(tmp_path, "leave-one-domain-out", "P") == [
        "no job --test_envs 0 2: trial 2 hparams_seed 1"
    ]

    averages = collect_sweeps.tables(tmp_path)["", "oracle", "Averages"]
    assert collect_sweeps.cell(averages, "ERM", "PACS")["missing"] == ["incomplete in PACS: A, C"]
    assert collect_sweeps.cell(averages, "Mixup", "PACS")["missing"] == []

    table = collect_sweeps.tables(tmp_path)["", "oracle", "PACS"]
    cell = collect_sweeps.cell(table, "ERM", "C")
    assert (cell["n"], list(cell["trials"])) == (2, ["0", "1"])


@pytest.mark.parametrize("is_declared", [True, False])
def test_incomplete_cells_are_marked_and_have_no_rank(is_declared, tmp_path):
    """CARFT is best everywhere, and lacks a job on C, or has none declared for it."""

    def is_run(args):
        return (args["algorithm"], args["test_envs"], args["trial_seed"]) != ("CARFT", [1], 1)

    collect_sweeps.launch(tmp_path, ["ERM", "Mixup"])
    targets = range(4) if is_declared else (0, 2, 3)
    collect_sweeps.launch(tmp_path, ["CARFT"], targets=targets, run=is_run)
    for path in tmp_path.glob("*/results.jsonl"):
        best = {f"env{env}_{split}_acc": 0.99 for env in range(4) for split in ("in", "out")}
        if '"CARFT"' in path.read_text():
            change_records(path.parent, lambda record, best=best: record | best)

    names = ["environments", "average", "out-of-domain", "worst", "in-domain"]
    methods = ["training-domain"]
    results = collecting_results.collect(tmp_path, methods=methods, columns=names)
    table, averages = results.tables
    first, *others = (row[1:] for row in table.grid().rows)
    marks = ("[1]", "[2]") if is_declared else ("*", "-")
    is_incomplete = [False, True, False, False, True, True, True, True]
    assert [text.endswith(marks) for text in first] == is_incomplete
    assert not any("[" in text or "*" in text for row in others for text in row)
    assert [rank == table_columns.BEST for rank in table.ranks[0]] == [
        not incomplete for incomplete in is_incomplete
    ]

    first, *_ = (row[1:] for row in averages.grid().rows)
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


def test_a_sweep_without_target_pairs_is_complete(tmp_path, capsys):
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
    collect_sweeps.write_sweep(tmp_path, algorithms=["ERM"], trials=1, choices=1)
    remove_jobs(tmp_path, "ERM-0-0-0", "ERM-1-0-0")
    facts = {"algorithm": "ERM", "recorded": {"lr": 0.1}}
    collect_sweeps.write_job(tmp_path, "a", at=(0, 100), test_envs=[0], **facts)
    collect_sweeps.write_job(tmp_path, "b", at=(0, 200), test_envs=[1], **facts)
    (tmp_path / "ERM-2-0-0" / "done").unlink()

    assert missing(tmp_path, "oracle", "A") == [
        "--test_envs 0 stopped at step 100 of 200: in every trial"
    ]
    assert missing(tmp_path, "oracle", "C") == [
        "--test_envs 1 has 2 of 3 checkpoints: in every trial"
    ]
    assert missing(tmp_path, "oracle", "P") == [
        "--test_envs 2 is not finished (no file 'done'): in every trial"
    ]
    assert missing(tmp_path, "oracle", "S") == []

    collect_sweeps.write_sweep(tmp_path / "all", ["ERM"], steps=301)
    assert missing(tmp_path / "all", "oracle") == [
        "--test_envs 0 stopped at step 200 of 300: in every trial"
    ]


@pytest.mark.parametrize("method", ["oracle", "training-domain", "in-domain"])
def test_an_accuracy_that_is_nan_is_never_the_best(tmp_path, method):
    targets = [] if method == "in-domain" else [0]
    for choice in range(2):
        collect_sweeps.write_job(tmp_path, f"{choice}", test_envs=targets, hparams_seed=choice)
    nan = {"env0_out_acc": float("nan"), "env1_out_acc": float("nan"), "env0_in_acc": 0.01}
    change_records(tmp_path / "1", lambda record: {**record, **nan})
    table = collect_sweeps.tables(tmp_path)["", method, "PACS"]
    cell = collect_sweeps.cell(table, "ERM", "A")

    assert cell["mean"] > 20 and cell["n"] == 1

    (reason,) = cell["missing"]
    assert reason.endswith(" has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 1")


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
    change_records(job, lambda record: {**record, **(best if record["step"] > 0 else {})})
    unmarked = harness_tables(tmp_path / "sweep", capsys)
    change_records(
        job, lambda record: {**record, **(mark if record["step"] > 0 else {"loss": 1.5})}
    )

    assert harness_tables(tmp_path / "sweep", capsys) == unmarked

    # What is left of the job is its record of step 0.
    healthy_records = tmp_path / "healthy" / "ERM-0-0-1" / "results.jsonl"
    healthy_records.write_text(healthy_records.read_text().splitlines(keepends=True)[0])
    reason = (
        "--test_envs 0 diverged, so it has no accuracies from step 100 on: trial 0 hparams_seed 1"
    )
    for method in ("training-domain", "oracle"):  # the latter takes the last, which it has not
        cells = [
            collect_sweeps.cell(
                collect_sweeps.tables(tmp_path / name)["", method, "PACS"], "ERM", "A"
            )
            for name in ("healthy", "sweep")
        ]
        assert cells[1]["mean"] == cells[0]["mean"] and cells[1]["missing"] == [reason]
        healthy_records.unlink(missing_ok=True)

    status, _, err = strict(capsys, tmp_path / "sweep", "--select", "oracle")
    assert status == 3
    assert f"diverged: {job}: the training diverged; 2 records from step 100 on without" in err

    # Copies of the job count once, though nan is not equal to nan.
    shutil.copytree(job, tmp_path / "sweep" / "copy")
    assert len(collecting.gather([tmp_path / "sweep"]).groups[0].runs) == 8


@pytest.mark.parametrize(
    ("step", "first"), [(0, 0), (1, 0), (2, 100), (100, 100), (101, 100), (102, 200)]
)
def test_a_record_after_the_update_that_broke_the_weights_does_not_count(tmp_path, step, first):
    """The first loss that is not finite is that of the step after this update."""
    job = collect_sweeps.write_job(tmp_path)
    change_records(job, lambda r: {**r, **({"diverged_at": step} if r["step"] >= step else {})})
    (run,) = records.read([tmp_path]).runs
    known = ~np.isnan(np.array(run.accuracies)).reshape(3, 8)

    assert known.all(axis=1).tolist() == known.any(axis=1).tolist()
    assert known.all(axis=1).tolist() == [at < first for at in (0, 100, 200)]
    assert run.diverged_at == first
