"""What is wrong with records is named, and never the end."""

import json
import os

import collect_sweeps
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import reading, records, scan
from domainbed_carft.jobs.lines import decoded


def kinds(read):
    return [(fault.kind, os.path.basename(fault.path)) for fault in read.faults]


def test_cut_lines_and_repeated_steps(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    path = job / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    again = json.loads(lines[1]) | {"env0_in_acc": 0.125}
    path.write_text("".join([*lines, "\n", lines[0][:70], "\n", json.dumps(again), "\n[1]\n"]))
    read = reading.read([tmp_path])
    assert [(fault.kind, fault.text) for fault in read.faults] == [
        ("cut line", "line 5 is no whole record and skipped"),
        (
            "cut line",
            "line 7 is no whole record and skipped: it is [1], a list; expected an object",
        ),
        ("repeated steps", "1 record of steps recorded before; the later ones count"),
    ]
    (run,) = read.runs
    assert list(run.steps) == [0, 100, 200]
    assert run.accuracies[8] == 0.125
    assert read.records == 3


def test_folders_without_records(tmp_path):
    collect_sweeps.write_job(tmp_path, "fine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "err.txt").touch()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "accuracy.png").touch()
    (tmp_path / "strange" / "results.jsonl").mkdir(parents=True)
    read = reading.read([tmp_path])
    assert len(read.runs) == 1
    assert kinds(read) == [
        ("empty folder", "empty"),
        ("no regular file", "results.jsonl"),
        ("no records", "begun"),
        ("no records", "strange"),
    ]


def test_records_that_make_no_run(tmp_path):
    collect_sweeps.write_job(tmp_path, "other target", test_envs=[4])
    job = collect_sweeps.write_job(tmp_path, "grown")
    record = json.loads((job / "results.jsonl").read_text().splitlines()[-1])
    more = record | {"step": 300, "env4_in_acc": 0.5, "env4_out_acc": 0.5}
    with (job / "results.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    collect_sweeps.write_job(tmp_path, "strange", trial_seed="first")
    texts = [fault.text for fault in reading.read([tmp_path]).faults]
    assert texts == [
        "accuracies of 4 environments, then of 5; passed over",
        "test_envs [4], accuracies of 4 environments; passed over",
        "trial_seed is 'first', a string; expected a whole number; passed over",
    ]


def test_several_runs_in_one_folder_are_told_apart(tmp_path):
    first = collect_sweeps.write_job(tmp_path, "a")
    second = collect_sweeps.write_job(tmp_path, "b", at=(0, 100), hparams='{"lr": 1}')
    with (first / "results.jsonl").open("a") as file:
        file.write((second / "results.jsonl").read_text())
    runs = reading.read([first]).runs
    assert [list(run.steps) for run in runs] == [[0, 100, 200], [0, 100]]
    assert runs[1].setting["hparam lr"] == "1"


def test_variants_and_single_jobs_are_found(tmp_path):
    for variant in ("kl_weight=1", "kl_weight=3"):
        collect_sweeps.write_sweep(tmp_path / "sweep" / variant, ["CARFT"], 1, 1)
    (tmp_path / "sweep" / "sweep.yaml").write_text("name: it\n")
    assert len(reading.read([tmp_path / "sweep"]).runs) == 8
    assert len(reading.read([tmp_path]).runs) == 8
    job = tmp_path / "sweep" / "kl_weight=1" / "CARFT-0-0-0"
    assert len(reading.read([job]).runs) == 1
    twice = reading.read([tmp_path, tmp_path / "sweep"])
    assert (len(twice.runs), kinds(twice)) == (8, [("named twice", "sweep")])
    assert len(reading.read([job, tmp_path]).runs) == 8


def test_no_such_folder_is_refused(tmp_path):
    with pytest.raises(CarftError, match=r"there is no folder .*x, .*y; expected the output"):
        scan.find([tmp_path / "x", tmp_path, tmp_path / "y"])


def test_nothing_to_collect_is_refused_and_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CarftError, match=r"(?s)no record below .*\nempty folder: .*empty"):
        collect_sweeps.collect(tmp_path)


def test_versions_are_those_that_train_printed(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    printed = "Environment:\n\tPython: 3.11.2\n\tPyTorch: {}\n\tNumPy: 2.1\nArgs:\n\tPIL: no\n"
    text = printed.format("2.4.1") + "step\n" + printed.format("2.5.0") + printed.format("2.5.0")
    (job / "out.txt").write_text(text)
    (run,) = reading.read([tmp_path]).runs
    versions = {k: v for k, v in run.setting.items() if k.startswith("version")}
    assert versions["version of PyTorch"] == "2.4.1, then 2.5.0"
    assert versions["version of NumPy"] == "2.1"


def test_several_processes_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_WORTH_IT", 1)
    collect_sweeps.write_sweep(tmp_path, pairs=True)
    (tmp_path / "empty").mkdir()
    called = []
    parallel = reading.read([tmp_path], 2, lambda: called.append(True))
    assert parallel == reading.read([tmp_path])
    assert called == [True]


def test_short_cuts_of_decoding_change_nothing():
    args = {"a": 1, "hparams": {"lr": 1}, "text": '"args": {"a": 1}'}
    records_ = [
        {"args": args, "hparams": {"lr": 1}, "nested": {"args": args, "hparams": {"lr": 1}}},
        {"args": args | {"a": 2}, "hparams": {"lr": 2}},
        {"args": args, "hparams": {"lr": 1}, "z": '{"args": {"a": 1}'},
        {"args": None},
    ]
    lines = [json.dumps(record) for record in records_]
    for last in ("", '{"args": {', "nonsense"):
        text = "\n".join([*lines, last])
        values = [value for _, value in decoded(text)]
        for record, value in zip(records_, values):
            record.pop("nested", None)
            value.pop("nested", None)
            assert value == record
        assert values[4:] == ([None] if last else [])
    assert list(decoded('\n{"args": {}\n\n{}\n')) == [(2, None), (4, {})]


def test_whole_records_keep_everything(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    path = job / "results.jsonl"
    found, faults = records.whole(str(path))
    assert found == [json.loads(line) for line in path.read_text().splitlines()]
    assert faults == []
