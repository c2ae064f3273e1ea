"""Reading records."""

from __future__ import annotations

import json

import pytest
from domainbed.lib import coverage, reporting
from domainbed.lib.query import Q
from domainbed.scripts import collect_results

JOB = {
    "dataset": "PACS",
    "algorithm": "ERM",
    "test_envs": [0],
    "trial_seed": 0,
    "hparams_seed": 0,
    "seed": 3,
}


ACCURACIES = {f"env{i}_{split}_acc": 0.5 for i in range(4) for split in ("in", "out")}


def line(step, value=0.0, more=(), **job):
    record = {"args": {**JOB, **job}, "step": step, "value": value, **ACCURACIES, **dict(more)}
    return json.dumps(record) + "\n"


def write(folder, text):
    folder.mkdir()
    (folder / "results.jsonl").write_text(text)


def test_records_of_all_folders_come_in_the_folders_order(tmp_path):
    write(tmp_path / "b", line(0, 1))
    write(tmp_path / "a", line(0, 2) + line(1, 3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "results.txt").write_text("")
    assert reporting.load_records(str(tmp_path)).select("value") == [2, 3, 1]


def test_a_record_that_cannot_be_told_apart_is_skipped_and_named(tmp_path, capsys):
    nameless = json.dumps({"args": {"dataset": "PACS"}, "step": 0}) + "\n"
    stepless = json.dumps({"args": JOB}) + "\n"
    write(tmp_path / "a", nameless + line(0) + stepless)
    assert len(reporting.load_records(str(tmp_path))) == 1
    err = capsys.readouterr().err.splitlines()
    assert [message.split(" of ")[0] for message in err] == ["Skipped line 1", "Skipped line 3"]


@pytest.mark.parametrize(
    "odd",
    [
        *({"test_envs": 0}, {"test_envs": ["0"]}, {"test_envs": [7]}, {"trial_seed": None}),
        *({"hparams_seed": "zero"}, {"dataset": ["PACS"]}, {"step": "x"}, {"step": True}),
        *({"more": {"hparams": None}}, {"more": {"env0_in_acc": "high"}}),
        *({"more": {"env1_out_acc": None}}, {"more": {"args": []}}),
    ],
)
def test_values_of_another_kind_are_no_record(tmp_path, capsys, odd):
    write(tmp_path / "a", line(0) + line(**{"step": 1, **odd}))
    (kept,) = reporting.load_records(str(tmp_path))
    assert kept["step"] == 0 and "Skipped line 2" in capsys.readouterr().err
    assert collect_results.main(["--input_dir", str(tmp_path)]) == 0


def test_runs_of_other_hparams_in_one_folder_are_kept_apart(tmp_path):
    def with_lr(lr):
        return line(0, more={"hparams": {"lr": lr}})

    write(tmp_path / "a", with_lr(1) + with_lr(2) + with_lr(1))
    assert len(reporting.load_records(str(tmp_path))) == 2


def test_unfinished_jobs_are_named_with_their_last_step(tmp_path):
    write(tmp_path / "a", line(0) + line(300))
    write(tmp_path / "b", line(0))
    (tmp_path / "b" / "done").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "err.txt").touch()
    (tmp_path / "not a job").mkdir()
    assert coverage.unfinished(str(tmp_path)) == [
        f"Not finished: {tmp_path / 'a'}: its last record is of step 300.",
        f"Not finished: {tmp_path / 'c'}: it has no record.",
    ]


def test_a_cut_off_line_is_skipped_and_named(tmp_path, capsys):
    write(tmp_path / "a", line(0) + line(1)[:-20])
    write(tmp_path / "b", line(0) + "[1]\n\n" + line(1))
    assert len(reporting.load_records(str(tmp_path))) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"Skipped line 2 of {tmp_path / 'a' / 'results.jsonl'}: not a whole record.",
        f"Skipped line 2 of {tmp_path / 'b' / 'results.jsonl'}: not a whole record.",
    ]


def test_of_a_job_that_ran_twice_the_last_record_of_each_step_counts(tmp_path):
    write(tmp_path / "a", line(0, 1) + line(1, 2) + line(0, 3) + line(1, 4) + line(2, 5))
    assert reporting.load_records(str(tmp_path)).select("value") == [3, 4, 5]


def test_different_jobs_in_one_folder_are_kept_apart(tmp_path):
    write(tmp_path / "a", line(0, 1) + line(0, 2, trial_seed=1) + line(0, 3, test_envs=[1]))
    assert reporting.load_records(str(tmp_path)).select("value") == [1, 2, 3]


def test_a_job_with_two_test_environments_belongs_to_both(tmp_path):
    write(tmp_path / "a", line(0, 1, test_envs=[1, 3]) + line(0, 2, test_envs=[1]))
    groups = reporting.get_grouped_records(reporting.load_records(str(tmp_path)))
    found = {group["test_env"]: group["records"].select("value") for group in groups}
    assert found == {1: [1, 2], 3: [1]}
    assert (groups[0]["trial_seed"], groups[0]["dataset"], groups[0]["algorithm"]) == (
        0,
        "PACS",
        "ERM",
    )


def remarks(*jobs):
    return coverage.remarks(Q([{"args": {**JOB, **job}} for job in jobs]))


def test_missing_jobs_are_named():
    pair = {"test_envs": [0, 1]}
    assert remarks({}, {"trial_seed": 1}, pair) == [
        "Missing: PACS ERM, test_envs [0, 1], trial_seed 1, hparams_seed 0"
    ]
    assert remarks({}, pair) == []
    assert remarks() == []


def test_many_missing_jobs_are_counted():
    pairs = [{"test_envs": [i, i + 1], "trial_seed": i, "hparams_seed": i} for i in range(5)]
    found = remarks(*pairs)
    assert len(found) == 21
    assert found[-1] == "... and 100 more missing jobs."


def test_absent_pairs_and_unlisted_data_sets_are_explained():
    assert remarks({"dataset": "Mine"}) == [
        "Data set Mine is not in domainbed.datasets.DATASETS: its records are in no table.",
        "Mine has no jobs with two test environments: leave-one-domain-out cross-validation needs "
        "them, so its cells are X.",
    ]
