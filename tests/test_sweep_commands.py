"""Sweeps through the real command, its launchers and domainbed's train."""

import json
import os
import signal
import subprocess
import sys

import pytest
from sweep_folders import write_declaration
from sweep_jobs import carft, read_status, wait_until

from domainbed_carft import cli
from domainbed_carft.files.weights import load_weights
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job_folder import JobFolder
from domainbed_carft.results.columns import COLUMNS


def test_launch_trains_a_sweep_whose_tables_are_complete(pets, tmp_path, capsys):
    images = str(pets / "my pets")
    names = {"datasets": [images], "algorithms": ["CLIPZeroShot", "CLIPLinearProbe"]}
    hparams = {"clip_backbone": "tiny", "contexts": "emoji", "batch_size": 4}
    sweep, *_ = write_declaration(
        tmp_path, **names, steps=2, test_environments=["photo"], hparams=hparams
    )
    out = tmp_path / "it's out"
    words = ["launch", sweep, "--output_dir", out]
    launched = carft(*words, "--jobs", 2)
    assert launched.returncode == 0, launched.stderr
    assert "x: 2 jobs: 2 not launched." in launched.stdout
    assert "sweep: 4 of 4 steps (100%), 2 of 2 jobs done, after " in launched.stderr

    state = read_status(out)
    assert state["counts"]["done"] == 2 and sum(state["counts"].values()) == 2
    test_envs = {job["algorithm"]: job["test_envs"] for job in state["jobs"]}
    assert test_envs == {"CLIPZeroShot": [1], "CLIPLinearProbe": [1]}
    assert (out / "sweep.yaml").read_text() == (tmp_path / "x.yaml").read_text()

    # Training in-splits are skipped, and the tables do not need them.
    for path in out.glob("*/results.jsonl"):
        record = json.loads(path.read_text().splitlines()[-1])
        accuracies = {name for name in record if name.endswith("_acc")}
        assert accuracies == {*(f"env{i}_out_acc" for i in range(3)), "env1_in_acc"}
    assert cli.main(["collect", str(out), "--strict", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["incomplete_cells"] == 0
    assert "There is nothing to launch." in carft(*words).stdout


@pytest.mark.slow
def test_cancel_stops_a_running_job_after_it_has_saved(tmp_path):
    out = tmp_path / "out"
    sweep = write_declaration(tmp_path, steps=1000000, hparams={"batch_size": 4})
    words = ["sweep", "launch", *sweep, "--output_dir", out, "--jobs", "1"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "domainbed_carft", *words], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until((out / "sweep.json").exists)
        wait_until(lambda: any(job["step"] for job in read_status(out)["jobs"]), pause=0.5)
        status = read_status(out)
        assert (status["counts"]["running"], status["counts"]["queued"]) == (1, 2)
        (job,) = [job for job in status["jobs"] if job["state"] == "running"]
        assert job["host"] == os.uname().nodename and job["steps"] == 1000000
        cancelled = carft("cancel", out, "--yes")
        assert cancelled.returncode == 0 and "1 job stopped" in cancelled.stdout, cancelled.stderr
        errors = launcher.communicate(timeout=120)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 128 + signal.SIGTERM and "Traceback" not in errors

    folder = JobFolder(job["folder"])
    (attempt,) = folder.read_attempts()
    status = read_status(out)
    (stopped_job,) = [job for job in status["jobs"] if job["state"] == "interrupted"]
    assert status["counts"]["not launched"] == 2
    assert attempt.status == 75 and not folder.is_held()
    steps_done = load_weights(folder.state_path)["steps_done"]
    assert stopped_job["step"] == attempt.step == steps_done > 0


ADD = """
import sys
from pathlib import Path
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job
out, choice = Path(sys.argv[1]), int(sys.argv[2])
for trial in range(20):
    args = dict(dataset="PACS", algorithm="ERM", test_envs=[0])
    args |= dict(trial_seed=trial, hparams_seed=choice)
    job = Job(args, out / f"{trial}f{choice}".zfill(32))
    manifest.add(out, manifest.Sweep((job,)))
"""


def test_manifest_lists_the_jobs_of_simultaneous_launches(tmp_path):
    words = [sys.executable, "-c", ADD]
    running = [subprocess.Popen([*words, str(tmp_path), str(choice)]) for choice in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(manifest.read(tmp_path).jobs) == 60


def test_columns_help_lists_every_column(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["collect", "--columns", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert {f"  {name}" for name in COLUMNS} <= {*lines}
