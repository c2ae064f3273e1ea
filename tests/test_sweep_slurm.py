"""`carft sweep` through a real SLURM (.ci/slurm starts one): launch, status, cancel, go on."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import warm
from sweep_jobs import missing_slurm, wait_until

from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import JobFolder

_MISSING = missing_slurm()
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--hparams", '{"batch_size": 4}']
FLAGS += ["--launcher", "slurm", "--time", "10", "--signal_seconds", "30"]


def carft(*arguments):
    return warm.run("-m", "domainbed_carft", "sweep", *arguments)


def look(out):
    return json.loads(carft("status", out, "--json").stdout)


def wait_for(condition, seconds=240):
    return wait_until(condition, seconds, pause=1)


def test_from_launch_to_cancel_to_done(tmp_path):
    out = tmp_path / "it's out"
    endless = [*FLAGS, "--steps", "1000000", "--output_dir", out]
    launched = carft("launch", *endless, "--array_cap", 1)
    assert launched.returncode == 0, launched.stderr
    assert "Submitted. Watch them: carft sweep status" in launched.stdout
    wait_for(lambda: any(job["step"] for job in look(out)["jobs"] if job["state"] == "running"))
    told = look(out)
    assert (told["counts"]["running"], told["counts"]["queued"]) == (1, 2)
    (running,) = [job for job in told["jobs"] if job["state"] == "running"]
    assert "_" in running["slurm"]  # an array's element
    queued = [job for job in told["jobs"] if job["state"] == "queued"]
    assert all(job["detail"].startswith("SLURM job ") for job in queued)
    assert "There is nothing to launch." in carft("launch", *endless).stdout

    stopped = carft("cancel", out, "--yes")
    assert stopped.returncode == 0, stopped.stderr
    assert "3 SLURM jobs cancelled" in stopped.stdout
    wait_for(lambda: not look(out)["counts"]["queued"])
    counts = look(out)["counts"]
    assert counts["running"] == 0
    assert counts["not launched"] == 2 and counts["interrupted"] == 1
    cleaned = carft("clean", out)
    assert cleaned.returncode == 0 and not list(out.glob("launches/*.json"))


FOUR = """
name: four
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: 1
steps: 101
test_environments: [line, noto]
"""


def test_a_job_that_is_requeued_ends_as_if_nothing_had_happened(tmp_path):
    """To the bit."""
    out = tmp_path / "out"
    (tmp_path / "four.yaml").write_text(FOUR)
    launched = carft("launch", tmp_path / "four.yaml", "--output_dir", out, *FLAGS[-6:])
    assert launched.returncode == 0, launched.stderr

    def in_the_middle():
        jobs = [job for job in look(out)["jobs"] if job["algorithm"] != "CLIPZeroShot"]
        return [job for job in jobs if job["state"] == "running" and 0 < job["step"] < 60]

    job = wait_for(in_the_middle)[0]
    subprocess.run(["scontrol", "requeue", job["slurm"]], check=True)
    folder = Path(job["folder"])
    wait_for((folder / "attempts.jsonl").exists)
    time.sleep(6)  # sooner, the node would not take it again
    # By itself SLURM waits two minutes before it starts a job again.
    subprocess.run(["scontrol", "update", f"jobid={job['slurm']}", "starttime=now"], check=True)
    wait_for(lambda: look(out)["counts"]["done"] == 4, 600)
    wait_for(lambda: len(JobFolder(folder).attempts()) == 2)  # it is done a little earlier
    assert [attempt.status for attempt in JobFolder(folder).attempts()] == [75, 0]
    assert_as_undisturbed(folder, tmp_path / "alone")


def assert_as_undisturbed(folder, alone):
    """It has gone on, and has the records and the weights, to the bit, of the same job by hand."""
    assert "Goes on after step" in (folder / "out.txt").read_text()
    (job,) = [job for job in manifest.read(folder.parent).jobs if job.folder == folder]
    done = warm.run(*replace(job, folder=alone).command[1:])
    assert done.returncode == 0, done.stderr
    assert records(folder) == records(alone)
    weights = [
        torch.load(f / "model.pkl", weights_only=True)["model_dict"] for f in (folder, alone)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def records(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in lines:
        del record["step_time"], record["args"]["output_dir"]
    return lines
