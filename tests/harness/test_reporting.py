"""Reading records."""

from __future__ import annotations

import json

from domainbed.lib import reporting

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


def test_a_cut_off_line_is_skipped_and_named(tmp_path, capsys):
    write(tmp_path / "a", line(0) + line(1)[:-20])
    write(tmp_path / "b", line(0) + "[1]\n\n" + line(1))
    assert len(reporting.load_records(str(tmp_path))) == 3
    out, err = capsys.readouterr()
    assert out == ""
    for folder, message in zip("ab", err.splitlines(), strict=True):
        assert message.startswith(f"{tmp_path / folder / 'results.jsonl'}: line 2 is ")


def test_of_a_job_that_ran_twice_the_last_record_of_each_step_counts(tmp_path):
    write(tmp_path / "a", line(0, 1) + line(1, 2) + line(0, 3) + line(1, 4) + line(2, 5))
    assert reporting.load_records(str(tmp_path)).select("value") == [3, 4, 5]
