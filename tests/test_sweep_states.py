"""What status says of each job, from real locks held by real processes."""

import os
import time

from sweep_folders import ended, finish, record, status
from sweep_jobs import carft, look

from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states


def test_a_running_job_shows_host_start_progress_and_speed(sweep, foreign_processes):
    folder, (job, *_) = sweep
    begun = time.time() - 100
    process = foreign_processes.hold(job, since=begun, step=0, steps=11, images_per_step=12)
    record(job, 0, step_time=9.0)  # of the first step alone
    now = status(folder, job)
    assert now.state == states.RUNNING and now.eta is None
    assert now.holder[:2] == (os.uname().nodename, process.pid) and now.holder.since == begun

    record(job, 4, step_time=2.0)
    process.kill()
    foreign_processes.hold(job, step=8, steps=11, images_per_step=12)
    now = status(folder, job)
    assert (now.step, now.steps, now.eta, now.images_per_second) == (8, 11, 3 * 2.0, 6.0)

    foreign_processes.kill()
    with (job.folder / "results.jsonl").open("a") as file:
        file.write('{"step": 9, "cu')
    foreign_processes.hold(job)  # by a launcher, whose domainbed leaves the lock alone
    now = status(folder, job)
    assert (now.step, now.steps, now.eta, now.images_per_second) == (5, 11, 6 * 2.0, None)


def test_a_job_is_queued_while_its_launcher_lives(sweep, foreign_processes):
    folder, (job, unqueued, *_) = sweep
    process = foreign_processes.queue(job)
    now = status(folder, job)
    assert now.state == states.QUEUED
    assert now.detail == f"pool on {os.uname().nodename}, process {process.pid}"
    assert status(folder, unqueued).state == states.NOT_LAUNCHED

    process.kill()
    process.wait()
    assert status(folder, job).state == states.NOT_LAUNCHED


STATUS_KEYS = {
    "slurm_reason",
    "folder",
    "variant",
    "dataset",
    "algorithm",
    "test_envs",
    "trial_seed",
    "hparams_seed",
    "stage",
    "state",
    "step",
    "steps",
    "host",
    "pid",
    "slurm",
    "since",
    "images_per_second",
    "eta_seconds",
    "exit_status",
    "last_words",
    "detail",
    "diverged",
}


def test_status_prints_text_and_json(sweep, foreign_processes):
    folder, jobs = sweep
    finish(jobs[0])
    record(jobs[0], 10, diverged_at=4)
    ended(jobs[1], -9, -9, -9)
    ended(jobs[3], 1, 1, 75)
    foreign_processes.hold(jobs[2], step=3, steps=11, images_per_step=12)
    done = carft("status", folder)
    assert done.returncode == 1  # one has failed

    stdout = done.stdout
    counts = "1 done (1 diverged), 1 running, 4 not launched, 1 interrupted, 1 failed"
    assert stdout.startswith(f"8 jobs: {counts}.\n")
    assert "14 of 88 steps (16%)" in stdout

    job = "PACS CARFT, test environments 1, trial 0, hparams seed 0"
    assert f"{job}; killed by SIGKILL (often: out of memory): words of -9" in stdout
    assert "exit status 75: words of 75" in stdout
    assert "step 3 of 11" in stdout
    document = look(folder)
    assert document["counts"]["failed"] == 1 and len(document["jobs"]) == 8
    assert set(document["jobs"][0]) == STATUS_KEYS
    assert document["jobs"][0]["diverged"] and not document["jobs"][1]["diverged"]
    assert document["jobs"][1]["exit_status"] == -9
    assert document["jobs"][1]["last_words"] == "words of -9"
    assert document["jobs"][2]["state"] == "running" and document["jobs"][2]["step"] == 3


def test_damaged_files_in_job_folders_are_reported_in_one_line(sweep):
    folder, (job, second, *_) = sweep
    evil = "\x1b]0;own\x07\u202e\x1b[31m"
    record(job, 3, args={**job.args, "dataset": evil, "algorithm": evil})
    (second.folder / "x").mkdir(parents=True)
    (second.folder / "results.jsonl").write_text('{"step": ' + "[" * 100_000 + "\n")
    (second.folder / "attempts.jsonl").write_text('{"started": 1.0, "ended": \n')
    (second.folder / "lock").write_text(
        '{"host": 3, "pid": "x", "slurm": [], "since": "' + "[" * 9000
    )
    (folder / "launches").mkdir()
    for name, pid in (("a", "1"), ("b", "Infinity")):
        (folder / f"launches/{name}.json").write_text(
            f'{{"launcher": "slurm", "host": "h", "pid": {pid}, "jobs": {{"x": "\\u0000"}}}}'
        )
    manifest.drop(folder, [job.folder])
    done = carft("status", folder)
    assert done.returncode == 0 and "\\x1b]0;own" in done.stdout
    assert not {"\x1b", "\u202e", "\x07"} & set(done.stdout)

    (folder / "sweep.json").write_text('{"version": ' + "[")
    refused = carft("status", folder)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "sweep.json is not a readable manifest" in refused.stderr
