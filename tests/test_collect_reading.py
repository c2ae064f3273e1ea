"""Unusable folders, records and values are reported, and the rest is read."""

import json
import math
import os
import random
import shutil

import collect_sweeps
import numpy as np
import pytest

from domainbed_carft import cli
from domainbed_carft.jobs import records


def read_lines(job):
    return [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]


def write_lines(job, lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (job / "results.jsonl").write_text("".join(f"{text}\n" for text in texts))


def test_last_record_of_a_step_counts_and_rounding_above_1_is_valid(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    lines = read_lines(job)
    write_lines(job, [*lines, lines[1] | {"env0_in_acc": 0.125, "env1_in_acc": 1 + 2**-23}])
    (run,), warnings = records.read([tmp_path])
    assert list(run.steps) == [0, 100, 200] and not warnings
    assert list(run.accuracies[8:10]) == [0.125, 1 + 2**-23]


def drop_accuracies(line):
    return {key: value for key, value in line.items() if not key.endswith("_acc")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: json.dumps(line)[:70],
        lambda line: [1],
        lambda line: drop_accuracies(line) | {"env0_in_acc": 0.5},
        lambda line: line | {"hparams": "lr"},
        *(
            lambda line, step=step: line | {"step": step}
            for step in (True, math.nan, 10**400, "0", None)
        ),
        *(
            lambda line, args=args: line | {"args": line["args"] | args}
            for args in (
                {"test_envs": [0, 0]},
                {"test_envs": [4]},
                {"test_envs": ["q"]},
                {"steps": "²"},
                {"steps": 10**400},
                {"trial_seed": True},
                {"dataset": 1},
                {"hparams": [1]},
            )
        ),
    ],
)
def test_incomplete_record_is_skipped_with_a_warning(tmp_path, damage):
    job = collect_sweeps.write_job(tmp_path)
    lines = read_lines(job)
    write_lines(job, [*lines, "", damage(lines[0])])
    (run,), (warning,) = records.read([tmp_path])
    assert list(run.steps) == [0, 100, 200]
    assert tuple(warning)[::2] == ("cut line", "line 5 is not a complete record; skipped")


@pytest.mark.parametrize(("n_complete", "status"), [(0, 1), (1, 3)])
def test_records_without_accuracies_are_reported_once(tmp_path, capsys, n_complete, status):
    job = collect_sweeps.write_job(tmp_path)
    lines = read_lines(job)
    write_lines(job, [*lines[:n_complete], *map(drop_accuracies, lines[n_complete:])])
    assert cli.main(["collect", str(tmp_path), "--strict"]) == status
    error = capsys.readouterr().err
    assert error.count("records without accuracies: this checkout's train does not evaluate") == 1


def test_runs_in_one_folder_are_separated(tmp_path):
    first = collect_sweeps.write_job(tmp_path, "a")
    second = collect_sweeps.write_job(tmp_path, "b", at=(0, 100), hparams='{"lr": 1}')
    lines = [*read_lines(first), *read_lines(second)]
    write_lines(first, lines)
    runs = records.read([first]).runs
    assert [list(run.steps) for run in runs] == [[0, 100, 200], [0, 100]]
    assert runs[1].setting["hparam lr"] == "1"
    assert [[*records.read_run_records(run)] for run in runs] == [lines[:3], lines[3:]]
    assert records.read_file(first / "results.jsonl") == (lines, [])

    write_lines(first, [*lines, '{"step": 300, "ar'])
    assert records.read_last_record(first) == lines[-1]
    assert records.read_recorded_arguments(first) == lines[0]["args"]


def test_drift_is_read_with_the_accuracies(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    drift = [{"loss_kl": 0.25, "context_agreement": 1}, {"loss_kl": math.inf}, {"loss_kl": "0"}]
    write_lines(job, [record | values for record, values in zip(read_lines(job), drift)])
    (run,) = records.read([job]).runs
    (job / "results.jsonl").unlink()
    np.testing.assert_array_equal(run.drift, [0.25, 1, *[np.nan] * 4])


OTHER_HPARAMS = "hparams than the rest: lr_schedule, lr_schedumed"


@pytest.mark.parametrize(
    ("line", "name", "damaged", "difference"),
    [
        *((line, "_schedule", "_schedumed", OTHER_HPARAMS) for line in range(3)),
        (0, "env3_out_acc", "env3_out_abc", "accuracies than the rest"),
        (1, "env3_out_acc", "env3_out_abc", "accuracies than the rest"),
    ],
)
def test_damaged_record_is_skipped_with_a_warning(line, name, damaged, difference, tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], recorded={"lr_schedule": "cosine"})
    job = tmp_path / "ERM-0-0-0"
    lines = [json.dumps(record) for record in read_lines(job)]
    lines[line] = lines[line].replace(name, damaged)
    write_lines(job, lines)
    results = collect_sweeps.collect(tmp_path, methods=["oracle"])
    text = f"step {100 * line} has other {difference}; skipped"
    assert results.warnings == [("damaged", str(job), text)]
    assert [len(cell.missing) for cell in results.tables[0].accuracy_cells] == [1, 0, 0, 0]


def test_folders_are_read_once_and_through_links(tmp_path):
    job = collect_sweeps.write_job(tmp_path / "sweep" / "a" / "b", "deep")
    (tmp_path / "sweep" / "up").symlink_to("..")
    (tmp_path / "sweep" / "self").symlink_to("self")
    (tmp_path / "link").symlink_to(job)
    (tmp_path / "strange" / "results.jsonl").mkdir(parents=True)
    for folders in ([tmp_path], [tmp_path, tmp_path / "sweep"], [job, tmp_path]):
        (run,), warnings = records.read(folders)
        assert os.path.samefile(run.folder, job) and not warnings


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_reported(tmp_path):
    collect_sweeps.write_job(tmp_path)
    (tmp_path / "closed").mkdir(mode=0)
    (_run,), (warning,) = records.read([tmp_path])
    assert warning.kind == "unreadable"


def test_versions_are_read_from_the_output_of_train(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    printed = "Environment:\n\tPython: 3.11.2\n\tPyTorch: {}\n\tNumPy: 2.1\nArgs:\n\tseed: 0\n"
    text = printed.format("2.4.1") + "step\n" + printed.format("2.5.0") + printed.format("2.5.0")
    (job / "out.txt").write_text(text)
    (run,) = records.read([tmp_path]).runs
    assert run.setting["version of PyTorch"] == "2.4.1, then 2.5.0"


@pytest.mark.parametrize("value", [None, math.nan, "0.5", True, 10**400, 63.5, -0.25, 1.001])
def test_invalid_accuracy_counts_as_missing(tmp_path, value):
    job = collect_sweeps.write_job(tmp_path)
    expected = list(records.read([tmp_path]).runs[0].accuracies)
    lines = read_lines(job)
    lines[1]["env2_out_acc"] = value
    write_lines(job, lines)
    expected[8 + 4 + 2] = math.nan
    accuracies = records.read([tmp_path]).runs[0].accuracies
    assert list(accuracies) == pytest.approx(expected, abs=0, nan_ok=True)


@pytest.mark.parametrize("content", ["", '{"step": 0, "args"'])
def test_folder_without_a_complete_record_is_reported(tmp_path, capsys, content):
    job = collect_sweeps.write_job(tmp_path, "lost")
    (job / "results.jsonl").write_text(content)
    assert cli.main(["collect", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("carft: no records in") and f"no records: {job}" in error


def test_mutated_records_and_manifests_fail_with_one_line(tmp_path, capsys):
    """benchmarks/hostile.py has more rounds."""
    hostile = collect_sweeps.load_benchmark("hostile")
    draw = random.Random(1)
    sweep = tmp_path / "sweep"
    collect_sweeps.launch(sweep, targets=(0,), hparams=('{"lr": 0.1}',))
    for number in range(30):
        folder = str(shutil.copytree(sweep, tmp_path / str(number)))
        for path in (tmp_path / str(number)).rglob("*.json*"):
            if draw.random() < 0.6:
                path.write_bytes(hostile.mutate(path.read_bytes(), draw))
        for command in ("collect", "collect --format csv", "top", "sweep status", f"diff {folder}"):
            status = cli.main([*command.split(), folder])
            printed = capsys.readouterr()
            assert status == 0 or (status in (1, 2) and printed.err.startswith("carft: "))
            assert not {"\x1b", "\x07", "\u202e"} & {*printed.out, *printed.err}
