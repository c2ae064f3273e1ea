"""The commands as users start them: in processes of their own."""

from __future__ import annotations

import json
import os

import pytest
from fake_checkout import REPO, run_python

from domainbed_carft import cli

SWEEP = [
    *["launch", "--datasets", "Debug28", "--n_hparams", "1", "--n_trials", "1", "--steps", "2"],
    *["--data_dir", "unused", "--output_dir", "a sweep", "--command_launcher", "local"],
    *["--single_test_envs", "--skip_confirmation"],
]


def test_sweep_with_failing_jobs_twice_then_the_table(command, tmp_path, capsys):
    hparams = ["--hparams", '{"lr": 0.01, "batch_size": 8}']
    arguments = [*SWEEP, "--algorithms", "Breaks", "Still", *hparams]
    first = command("sweep", *arguments)
    assert first.returncode == 1
    assert "6 jobs: 0 done, 0 incomplete, 6 not launched." in first.stdout
    assert "sweep: 3 of 6 jobs failed:" in first.stderr
    assert first.stderr.count(": RuntimeError: broken on purpose\n- exit status 1: a sweep/") == 2
    assert len(list((tmp_path / "a sweep").glob("*/done"))) == 3

    second = command("sweep", *arguments)
    assert second.returncode == 0
    cli.main(["sweep", "status", str(tmp_path / "a sweep"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 6
    assert "6 jobs: 3 done, 3 incomplete, 0 not launched." in second.stdout
    assert "Launched 0 jobs!" in second.stdout
    assert "3 incomplete jobs were not launched" in second.stderr

    table = command("collect_results", "--input_dir", "a sweep")
    assert table.returncode == 0
    assert table.stdout.startswith("Total records: 6\n\n-------- Dataset: Debug28, model select")
    assert table.stderr.startswith("For missing jobs, ") and "carft collect 'a sw" in table.stderr
    assert (tmp_path / "a sweep" / "results.txt").read_text() == table.stdout


@pytest.mark.slow
def test_processes_that_are_not_forked_train_the_same(tmp_path):
    """From Python 3.14 on the loaders' processes start by `forkserver`."""
    code = (
        "import multiprocessing, sys; multiprocessing.set_start_method(sys.argv[1])\n"
        "from domainbed.scripts import train; sys.exit(train.main(sys.argv[2:]))"
    )
    given = ["--algorithm", "CARFT", "--dataset", "EmojiStyles", "--workers", "1"]
    given += ["--steps", "3", "--hparams", '{"batch_size": 2}', "--skip_model_save"]
    kept = {name: os.environ[name] for name in ("HOME", "DOMAINBED_CARFT_CACHE")}
    records = []
    for method in ("fork", "forkserver"):
        arguments = [*given, "--output_dir", str(tmp_path / "run")]
        start = [REPO, REPO / "third_party"]
        done = run_python("-c", code, method, *arguments, cwd=tmp_path, path=start, **kept)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
        records.append([{**json.loads(line), "step_time": 0, "mem_gb": 0} for line in lines])
        (tmp_path / "run").rename(tmp_path / method)
    assert len(records[0]) == 2 and records[0] == records[1]
