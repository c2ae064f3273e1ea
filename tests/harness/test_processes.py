"""The commands as users start them: in processes of their own."""

from __future__ import annotations

import json
import shlex

import warm
from runs_jobs import write_pictures

from domainbed_carft import cli

SWEEP = shlex.split(
    "launch --datasets Debug28 --n_hparams 1 --n_trials 1 --steps 2 --data_dir unused "
    "--command_launcher local --single_test_envs --skip_confirmation --output_dir 'a sweep'"
)


def test_a_sweep_reports_failing_jobs_skips_done_ones_and_is_collected(command, tmp_path, capsys):
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
    assert "6 jobs: 3 done, 3 incomplete, 0 not launched." in second.stdout
    assert "Launched 0 jobs!" in second.stdout
    assert "3 incomplete jobs were not launched" in second.stderr

    cli.main(["sweep", "status", str(tmp_path / "a sweep"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 6

    table = command("collect_results", "--input_dir", "a sweep")
    assert table.returncode == 0
    assert table.stdout.startswith("Total records: 6\n\n-------- Dataset: Debug28, model select")
    assert table.stderr.startswith("For missing jobs, ") and "carft collect 'a sw" in table.stderr
    assert (tmp_path / "a sweep" / "results.txt").read_text() == table.stdout


COUNTING_LOADERS = """
import multiprocessing as m, sys
m.set_start_method(sys.argv[1], force=True)
m.set_forkserver_preload(['domainbed.scripts.train'])  # or each takes seconds
from domainbed.scripts import train

start = m.process.BaseProcess.start
started = []
m.process.BaseProcess.start = lambda process: [started.append(process), start(process)]
status = train.main(sys.argv[2:])
print(len(started), 'processes started')
sys.exit(status)
"""


def test_loaders_start_once_and_train_the_same_with_fork_and_forkserver(tmp_path):
    """From Python 3.14 on the loaders' processes start by `forkserver`."""
    pictures = write_pictures(tmp_path / "pictures", 3)
    hparams = '{"batch_size": 2, "clip_backbone": "tiny"}'
    arguments = ["--algorithm", "CARFT", "--dataset", str(pictures), "--hparams", hparams]
    arguments += ["--workers", "1", "--steps", "2", "--skip_model_save", "--output_dir", "run"]

    records = []
    for method in ("fork", "forkserver"):
        done = warm.run("-c", COUNTING_LOADERS, method, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\n1 processes started\n")  # for training and evaluations

        lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
        costs = {"step_time": 0, "evaluation_time": 0, "mem_gb": 0}
        records.append([{**json.loads(line), **costs} for line in lines])
        (tmp_path / "run").rename(tmp_path / method)

    assert len(records[0]) == 2 and records[0] == records[1]
