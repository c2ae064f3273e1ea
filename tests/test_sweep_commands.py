"""Sweeps through the real command, its launchers and domainbed's train."""

import json
import os
import subprocess
import sys

import warm
from sweep_folders import declared
from sweep_jobs import carft, look, wait_until

from domainbed_carft.files.weights import load_weights
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import JobFolder


def test_a_declared_sweep_trains_and_domainbeds_sweep_continues_it(tmp_path):
    names = {"datasets": ["EmojiStyles"], "algorithms": ["CLIPZeroShot", "CARFT"]}
    sweep, *_ = declared(tmp_path, **names, steps=2, test_environments=["line"])
    out = tmp_path / "it's out"
    launch = ["launch", sweep, "--output_dir", out, "--launcher", "pool"]
    done = carft(*launch, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "x: 2 jobs: 2 not launched." in done.stdout
    assert "sweep: 4 of 4 steps (100%), 2 of 2 jobs done, after " in done.stderr
    assert "\r" not in done.stderr

    state = look(out)
    assert state["counts"]["done"] == 2 and sum(state["counts"].values()) == 2

    test_envs = {job["algorithm"]: job["test_envs"] for job in state["jobs"]}
    assert test_envs == {"CLIPZeroShot": [1], "CARFT": [1]}

    # Without what no selection uses, and the tables lack nothing.
    for path in out.glob("*/results.jsonl"):
        record = json.loads(path.read_text().splitlines()[-1])
        names = {name for name in record if name.endswith("_acc")}
        assert names == {*(f"env{i}_out_acc" for i in range(4)), "env1_in_acc"}
    collected = warm.run("-m", "domainbed_carft", "collect", out, "--strict", "--format", "json")
    assert collected.returncode == 0, collected.stderr
    assert json.loads(collected.stdout)["summary"]["incomplete_cells"] == 0
    assert (out / "sweep.yaml").read_text() == (tmp_path / "x.yaml").read_text()

    relaunch = carft(*launch)
    assert "There is nothing to launch." in relaunch.stdout and relaunch.returncode == 0

    # It has the environments that were not asked for to do.
    flags = ["--algorithms", "CLIPZeroShot", "CARFT", "--datasets", "EmojiStyles", "--n_trials"]
    flags += ["1", "--n_hparams", "1", "--single_test_envs", "--steps", "2", "--data_dir"]
    flags += ["embedded", "--output_dir", out, "--command_launcher", "dummy"]
    command = ["-m", "domainbed.scripts.sweep", "launch", *flags, "--skip_confirmation"]
    upstream_sweep = warm.run(*command)
    counts = "8 jobs: 2 done, 0 incomplete, 6 not launched."
    assert counts in upstream_sweep.stdout, upstream_sweep.stderr

    estimate = carft(*launch, "--dry-run")
    assert "2 jobs: 2 done." in estimate.stdout, estimate.stderr


def test_a_failed_job_is_reported_and_waits_for_retry(tmp_path):
    out = tmp_path / "out"
    # Too few pictures for an out-split are found in the job, when it has its data.
    bad = [*declared(tmp_path, steps=2, holdout_fraction=0.001), "--output_dir", out]
    done = carft("launch", *bad, "--launcher", "local")
    assert done.returncode == 1
    assert "3 jobs failed:" in done.stderr
    assert "exit status 2: " in done.stderr and "0 out-split items" in done.stderr
    assert "carft sweep retry" in done.stderr

    relaunch = carft("launch", *bad)
    assert relaunch.returncode == 1 and "3 failed jobs are not launched" in relaunch.stdout
    assert "There is nothing to launch." in relaunch.stdout
    assert "0 out-split items" in (next(out.glob("*/err.txt"))).read_text()

    status = carft("status", out)
    assert status.returncode == 1 and "Failed (launch again after" in status.stdout
    assert "3 of 3 failed jobs will be retried" in carft("retry", out).stdout

    dry = carft("launch", *bad, "--launcher", "dummy")
    command = "DOMAINBED_SKIP_TRAINING_IN_SPLITS=1 python -m domainbed.scripts.train"
    assert dry.stdout.count(f"Dummy launcher: {command}") == 3


def test_cancelled_jobs_resume_where_they_were(tmp_path):
    out = tmp_path / "out"
    long = declared(tmp_path, steps=1000000, hparams={"batch_size": 4})
    command = ["sweep", "launch", *long, "--output_dir", out, "--launcher", "pool", "--jobs", 1]
    launcher = warm.start("-m", "domainbed_carft", *command)
    try:
        wait_until((out / "sweep.json").exists)
        wait_until(lambda: any(job["step"] for job in look(out)["jobs"]), 120)
        (job,) = [job for job in look(out)["jobs"] if job["state"] == "running"]
        assert job["host"] == os.uname().nodename and job["steps"] == 1000000
        counts = look(out)["counts"]
        assert (counts["running"], counts["queued"]) == (1, 2)
        refused = carft("clean", out, "--incomplete", "--yes")
        assert "There are no incomplete jobs to delete." in refused.stdout
        stopped = carft("cancel", out, "--yes")
        assert stopped.returncode == 0, stopped.stderr
        assert "1 job stopped" in stopped.stdout
        outputs = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 143, outputs
    assert "Traceback" not in outputs[1]

    folder = JobFolder(job["folder"])
    assert not folder.is_held() and folder.state_path.exists()

    counts = look(out)["counts"]
    assert (counts["interrupted"], counts["not launched"]) == (1, 2)

    (attempt,) = folder.attempts()
    assert attempt.status == 75

    saved = load_weights(folder.state_path)["steps_done"]
    (stopped_job,) = [job for job in look(out)["jobs"] if job["state"] == "interrupted"]
    assert stopped_job["step"] == attempt.step == saved > 0
    assert "No jobs are running or queued." in carft("cancel", out, "--yes").stdout


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
