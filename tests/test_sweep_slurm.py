"""`carft sweep` through a real SLURM (.ci/slurm starts one): launch, status, cancel, go on."""

import json
import subprocess
import sys
import time

import pytest


def _slurm_answers():
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%a"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"up" in done.stdout


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _slurm_answers(), reason="no SLURM answers here: .ci/slurm starts one"),
]

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--hparams", '{"batch_size": 4}']
FLAGS += ["--launcher", "slurm", "--time", "10", "--signal_seconds", "30"]


def carft(*arguments):
    command = [sys.executable, "-m", "domainbed_carft", "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def look(out):
    return json.loads(carft("status", out, "--json").stdout)


def wait_for(condition, seconds=240):
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(1)
    return found


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
    assert counts["not launched"] == 2 and counts["stopped"] + counts["stale"] == 1
    cleaned = carft("clean", out)
    assert cleaned.returncode == 0 and not list(out.glob("launches/*.json"))


def test_what_is_submitted_gets_done(tmp_path):
    out = tmp_path / "out"
    launched = carft("launch", *FLAGS, "--steps", 2, "--output_dir", out)
    assert launched.returncode == 0, launched.stderr
    wait_for(lambda: look(out)["counts"]["done"] == 3)
    assert all(job["state"] == "done" for job in look(out)["jobs"])
