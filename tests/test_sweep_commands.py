"""Sweeps through the real command, its launchers and domainbed's train."""

import json
import os
import signal
import subprocess
import sys

from sweep_folders import declared
from sweep_jobs import carft, look, wait_until

from domainbed_carft import cli
from domainbed_carft.files.weights import load_weights
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import JobFolder


def test_a_declared_sweep_trains_and_its_tables_lack_nothing(tmp_path, capsys):
    names = {"datasets": ["EmojiStyles"], "algorithms": ["CLIPZeroShot", "CARFT"]}
    sweep, *_ = declared(tmp_path, **names, steps=2, test_environments=["line"])
    out = tmp_path / "it's out"
    words = ["launch", sweep, "--output_dir", out]
    done = carft(*words, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "x: 2 jobs: 2 not launched." in done.stdout
    assert "sweep: 4 of 4 steps (100%), 2 of 2 jobs done, after " in done.stderr
    assert "\r" not in done.stderr

    state = look(out)
    assert state["counts"]["done"] == 2 and sum(state["counts"].values()) == 2
    test_envs = {job["algorithm"]: job["test_envs"] for job in state["jobs"]}
    assert test_envs == {"CLIPZeroShot": [1], "CARFT": [1]}
    assert (out / "sweep.yaml").read_text() == (tmp_path / "x.yaml").read_text()

    # Without what no selection uses, and the tables lack nothing.
    for path in out.glob("*/results.jsonl"):
        record = json.loads(path.read_text().splitlines()[-1])
        accuracies = {name for name in record if name.endswith("_acc")}
        assert accuracies == {*(f"env{i}_out_acc" for i in range(4)), "env1_in_acc"}
    assert cli.main(["collect", str(out), "--strict", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["incomplete_cells"] == 0
    assert "There is nothing to launch." in carft(*words).stdout


def test_cancelled_jobs_resume_where_they_were(tmp_path):
    out = tmp_path / "out"
    long = declared(tmp_path, steps=1000000, hparams={"batch_size": 4})
    words = ["sweep", "launch", *long, "--output_dir", out, "--jobs", "1"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "domainbed_carft", *words], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until((out / "sweep.json").exists)
        wait_until(lambda: any(job["step"] for job in look(out)["jobs"]), pause=0.5)
        (job,) = [job for job in look(out)["jobs"] if job["state"] == "running"]
        assert job["host"] == os.uname().nodename and job["steps"] == 1000000
        counts = look(out)["counts"]
        assert (counts["running"], counts["queued"]) == (1, 2)
        stopped = carft("cancel", out, "--yes")
        assert stopped.returncode == 0 and "1 job stopped" in stopped.stdout, stopped.stderr
        errors = launcher.communicate(timeout=120)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 128 + signal.SIGTERM and "Traceback" not in errors

    folder = JobFolder(job["folder"])
    counts = look(out)["counts"]
    assert (counts["interrupted"], counts["not launched"]) == (1, 2)
    (attempt,) = folder.read_attempts()
    (stopped_job,) = [job for job in look(out)["jobs"] if job["state"] == "interrupted"]
    steps_done = load_weights(folder.state_path)["steps_done"]
    assert attempt.status == 75
    assert stopped_job["step"] == attempt.step == steps_done > 0
    assert not folder.is_held()


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


def test_two_simultaneous_launches_both_list_their_jobs(tmp_path):
    words = [sys.executable, "-c", ADD]
    running = [subprocess.Popen([*words, str(tmp_path), str(choice)]) for choice in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(manifest.read(tmp_path).jobs) == 60
