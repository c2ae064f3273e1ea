"""Incomplete cells say what they lack."""

import json
import shutil

import collect_sweeps
import numpy as np
import pytest
from domainbed.scripts import collect_results

from domainbed_carft import cli
from domainbed_carft.jobs import records
from domainbed_carft.results import collection as collecting


def missing(folder, method, column="A", algorithm="ERM"):
    table = collect_sweeps.tables(folder)["", method, "PACS"]
    return collect_sweeps.cell(table, algorithm, column)["missing"]


def lose(folder, *names):
    for name in names:
        shutil.rmtree(folder / name)


def test_a_whole_sweep_lacks_nothing(tmp_path):
    collect_sweeps.write_sweep(tmp_path, pairs=True)
    page = collect_sweeps.collect(tmp_path)
    assert (page.incomplete, page.cells) == (0, 2 * 3 * (4 + 1))


def test_jobs_that_were_not_run(tmp_path):
    collect_sweeps.write_sweep(tmp_path, trials=3, choices=4, pairs=True)
    lose(tmp_path, "ERM-0-1-0", "ERM-0-1-1", "ERM-0-1-3", "ERM-0-2-2", "ERM-0-2-2-1")
    lose(tmp_path, *(f"ERM-1-2-{choice}" for choice in range(4)))
    assert missing(tmp_path, "oracle") == [
        "no job --test_envs 0: trial 1 hparams_seed 0-1, 3; trial 2 hparams_seed 2"
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


def test_leave_one_domain_out_without_its_jobs_says_which_they_are(tmp_path):
    collect_sweeps.write_sweep(tmp_path)
    assert missing(tmp_path, "leave-one-domain-out", "C") == [
        "needs the jobs with two test environments, --test_envs 0 1, 1 2, 1 3, of each trial and "
        "hparams_seed; there are no such jobs on this data set"
    ]


def test_a_single_environment_leaves_none_to_validate_on(tmp_path):
    collect_sweeps.write_job(tmp_path, dataset="mine", environments=["only"])
    built = collect_sweeps.tables(tmp_path)
    for method in ("training-domain", "leave-one-domain-out"):
        assert collect_sweeps.cell(built["", method, "mine"], "ERM", "only")["missing"] == [
            "there is no environment besides it for the method to validate on"
        ]
    assert collect_sweeps.cell(built["", "oracle", "mine"], "ERM", "only")["missing"] == []


def strict(capsys, folder, *more):
    """The exit status, and what is printed."""
    status = cli.main(["collect", str(folder), "--strict", *more])
    return status, *capsys.readouterr()


def test_a_sweep_that_never_meant_to_leave_two_domains_out_is_whole(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    status, out, err = strict(capsys, tmp_path)
    assert (status, err) == (0, "48 records of 16 jobs.\n")
    assert "leave-one-domain-out" in out and "needs the jobs with two test environments" in out
    assert strict(capsys, tmp_path, "--select", "oracle,leave-one-domain-out")[0] == 3
    collect_sweeps.write_job(tmp_path, "pair", test_envs=[0, 1])
    status, _, err = strict(capsys, tmp_path)
    assert status == 3 and "5 of 15 cells are incomplete" in err


def test_runs_that_broke_off(tmp_path):
    collect_sweeps.write_sweep(tmp_path, algorithms=["ERM"], trials=1, choices=1)
    lose(tmp_path, "ERM-0-0-0", "ERM-1-0-0")
    given = {"algorithm": "ERM", "recorded": {"lr": 0.1}}
    collect_sweeps.write_job(tmp_path, "a", at=(0, 100), test_envs=[0], **given)
    collect_sweeps.write_job(tmp_path, "b", at=(0, 200), test_envs=[1], **given)
    (tmp_path / "ERM-2-0-0" / "done").unlink()
    assert missing(tmp_path, "oracle", "A") == [
        "--test_envs 0 stopped at step 100 of 200: in every trial"
    ]
    assert missing(tmp_path, "oracle", "C") == [
        "--test_envs 1 has 2 of 3 checkpoints: in every trial"
    ]
    assert missing(tmp_path, "oracle", "P") == [
        "--test_envs 2 is not finished (no file done): in every trial"
    ]
    assert missing(tmp_path, "oracle", "S") == []


def test_algorithms_with_fewer_draws_are_named(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "a", ["ERM"], choices=3)
    collect_sweeps.write_sweep(tmp_path / "b", ["CLIPZeroShot"], choices=1)
    table = collect_sweeps.tables(tmp_path)["", "oracle", "PACS"]
    assert all(not cell["missing"] for row in table["rows"] for cell in row["cells"])
    assert table["notes"] == [
        "Hyperparameters were chosen among different numbers of draws: CLIPZeroShot 1, ERM 3."
    ]


def write_records(job, change):
    """Rewrite a job's records as ``change`` returns them."""
    path = job / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def test_runs_that_all_ended_before_the_last_step_asked_for(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], steps=301)
    assert missing(tmp_path, "oracle") == [
        "--test_envs 0 stopped at step 200 of 300: in every trial"
    ]


def test_other_checkpoints_are_none_too_few(tmp_path):
    many = {"checkpoint_freq": 100, "trials": 1, "choices": 1}
    collect_sweeps.write_sweep(tmp_path / "a", ["ERM"], **many)
    for target in range(4):
        collect_sweeps.write_job(
            tmp_path / "b", str(target), at=(0, 200), test_envs=[target], trial_seed=1,
            checkpoint_freq=200,
        )  # fmt: skip
    tables = collect_sweeps.tables(tmp_path, ignored=["checkpoint_freq"])
    cell = collect_sweeps.cell(tables["", "oracle", "PACS"], "ERM", "A")
    assert (cell["missing"], cell["n"]) == ([], 2)


def test_what_is_no_number_is_not_the_best(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], trials=1, choices=2)
    before = collect_sweeps.cell(collect_sweeps.tables(tmp_path)["", "oracle", "PACS"], "ERM", "A")
    nan = {"env0_out_acc": float("nan"), "env1_out_acc": float("nan"), "env0_in_acc": 0.01}
    write_records(tmp_path / "ERM-0-0-1", lambda record: {**record, **nan})
    for method in ("oracle", "training-domain"):
        table = collect_sweeps.tables(tmp_path)["", method, "PACS"]
        cell = collect_sweeps.cell(table, "ERM", "A")
        assert cell["mean"] > 20 and cell["n"] == before["n"] == 1
        assert cell["missing"] == [
            "--test_envs 0 has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 1"
        ]


def test_what_is_no_number_is_not_the_best_with_nothing_left_out_either(tmp_path):
    for choice in range(2):
        collect_sweeps.write_job(tmp_path, str(choice), test_envs=[], hparams_seed=choice)
    nan = {"env2_out_acc": float("nan")}
    write_records(tmp_path / "0", lambda record: {**record, **nan})
    table = collect_sweeps.tables(tmp_path)["", "in-domain", "PACS"]
    cell = collect_sweeps.cell(table, "ERM", "P")
    assert (cell["n"], cell["mean"] > 20) == (1, True)
    assert cell["missing"] == [
        "--test_envs has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 0"
    ]


def test_a_mean_over_incomplete_cells_is_marked(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    lose(tmp_path, "ERM-0-0-0")
    (grid,) = (
        grid
        for grid in collect_sweeps.collect(tmp_path, methods=["oracle"]).document.grids
        if grid.title.startswith("PACS")
    )
    assert grid.rows[0][1].endswith(" [1]") and grid.rows[0][-1].endswith(" [2]")
    assert grid.notes[1] == "[2] a mean over cells of which some are incomplete."


def harness_tables(folder, capsys):
    assert collect_results.main(["--input_dir", str(folder)]) == 0
    return capsys.readouterr().out


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
    assert (
        harness_tables(tmp_path / "sweep", capsys).split("\n", 1)[1] == unmarked.split("\n", 1)[1]
    )

    # What is left of the job is its record of step 0.
    rest = tmp_path / "healthy" / "ERM-0-0-1" / "results.jsonl"
    rest.write_text(rest.read_text().splitlines(keepends=True)[0])
    why = "--test_envs 0 diverged, and has no accuracies from step 100 on: trial 0 hparams_seed 1"
    for method, last in (("training-domain", True), ("oracle", False)):
        if not last:  # which takes the last checkpoint, and this job has none
            rest.unlink()
        cells = [
            collect_sweeps.cell(
                collect_sweeps.tables(tmp_path / name)["", method, "PACS"], "ERM", "A"
            )
            for name in ("healthy", "sweep")
        ]
        assert cells[1]["mean"] == cells[0]["mean"] and cells[1]["missing"] == [why]
        assert (
            cli.main(["top", str(tmp_path / "sweep"), "--select", method, "--test_env", "0"]) == 0
        )
        (entry,) = json.loads(capsys.readouterr().out)
        assert entry["accuracy"] == pytest.approx(cells[0]["mean"] / 100)
    status, _, err = strict(capsys, tmp_path / "sweep", "--select", "oracle")
    assert status == 3
    assert f"diverged: {job}: the training diverged; 2 records from step 100 on count" in err


@pytest.mark.parametrize(
    ("step", "first"), [(0, 0), (1, 0), (2, 100), (100, 100), (101, 100), (102, 200)]
)
def test_a_record_after_the_update_that_broke_the_weights_does_not_count(tmp_path, step, first):
    """The first loss that is not finite is that of the step after this update."""
    job = collect_sweeps.write_job(tmp_path)
    write_records(job, lambda r: {**r, **({"diverged_at": step} if r["step"] >= step else {})})
    (run,) = records.read([tmp_path]).runs
    known = ~np.isnan(np.array(run.accuracies)).reshape(3, 8)
    assert known.all(axis=1).tolist() == known.any(axis=1).tolist()
    assert known.all(axis=1).tolist() == [at < first for at in (0, 100, 200)]
    assert run.diverged_at == first


def test_copies_of_a_diverged_job_count_once(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], trials=1, choices=1)
    write_records(tmp_path / "ERM-0-0-0", lambda record: {**record, "diverged_at": 0})
    shutil.copytree(tmp_path / "ERM-0-0-0", tmp_path / "copy")
    assert len(collecting.gather([tmp_path]).groups[0].runs) == 4
