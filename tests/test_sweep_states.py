"""`carft sweep status`, with real locks held by other processes."""

import os

from sweep_folders import add_attempts, finish, record, status
from sweep_jobs import carft, read_status

from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states


def test_running_job_shows_its_process_progress_and_speed(sweep, foreign_processes):
    folder, (job, *_) = sweep
    process = foreign_processes.hold(job, since=1.5, step=0, steps=11, images_per_step=12)
    record(job, 0, step_time=9.0)  # the time of the first step does not count
    now = status(folder, job)
    assert now.state == states.RUNNING and now.eta is None
    assert now.holder[:2] == (os.uname().nodename, process.pid) and now.holder.since == 1.5

    record(job, 4, step_time=2.0)
    process.kill()
    foreign_processes.hold(job, step=8, steps=11, images_per_step=12)
    now = status(folder, job)
    assert (now.step, now.steps, now.eta, now.images_per_second) == (8, 11, 3 * 2.0, 6.0)

    foreign_processes.kill()
    with (job.folder / "results.jsonl").open("a") as file:
        file.write('{"step": 9, "cu')
    foreign_processes.hold(job)  # without progress in the lock, as by a checkout's train
    now = status(folder, job)
    assert (now.step, now.steps, now.eta, now.images_per_second) == (5, 11, 6 * 2.0, None)


def test_job_is_queued_while_its_launcher_is_alive(sweep, foreign_processes):
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


def test_status_prints_the_states_of_jobs_as_text_and_json(sweep, foreign_processes):
    folder, jobs = sweep
    finish(jobs[0])
    record(jobs[0], 10, diverged_at=4)
    add_attempts(jobs[1], -9, -9, -9)
    add_attempts(jobs[3], 1, 1, 75)
    foreign_processes.hold(jobs[2], step=3, steps=11, images_per_step=12)
    shown = carft("status", folder)
    assert shown.returncode == 1  # a job has failed
    counts = "1 done (1 diverged), 1 running, 4 not launched, 1 interrupted, 1 failed"
    assert shown.stdout.startswith(f"8 jobs: {counts}.\n")
    job = "PACS CARFT, test environments 1, trial 0, hparams seed 0"
    for text in (
        "14 of 88 steps (16%)",
        f"{job}; killed by SIGKILL (often: out of memory): words of -9",
        "exit status 75: words of 75",
        "step 3 of 11",
    ):
        assert text in shown.stdout

    document = read_status(folder)
    assert document["counts"]["failed"] == 1 and len(document["jobs"]) == 8
    done, failed, running, *_ = document["jobs"]
    assert set(done) == STATUS_KEYS and done["diverged"] and not failed["diverged"]
    assert (failed["exit_status"], failed["last_words"]) == (-9, "words of -9")
    assert (running["state"], running["step"]) == ("running", 3)


def test_status_survives_damaged_files_and_escapes_their_text(sweep):
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
    shown = carft("status", folder)
    assert shown.returncode == 0 and "\\x1b]0;own" in shown.stdout
    assert not {"\x1b", "\u202e", "\x07"} & set(shown.stdout)

    (folder / "sweep.json").write_text('{"version": ' + "[")
    refused = carft("status", folder)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "sweep.json is not a readable manifest" in refused.stderr
