"""The launcher and `carft sweep` on a real SLURM, such as .ci/slurm starts; else these skip."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.test_resume import assert_same_outcome
from harness.test_resume import carft as carft_arguments
from runs_jobs import write_pictures
from sweep_folders import declared
from sweep_jobs import (
    carft,
    command,
    commands,
    events,
    look,
    missing_slurm,
    most_at_once,
    run,
    story,
    wait_until,
)

from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import slurm

_MISSING = missing_slurm()
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)

QUICK = {"time": 5}


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder with a name that a shell would take for something else."""
    folder = tmp_path / 'the sweep\'s "$(touch pwned)" `touch pwned`; #x'
    yield folder
    slurm.cancel(name for launched in launched_in(folder) for name in launched.values())
    pwned = [p for root in (Path.cwd(), tmp_path) for p in root.glob("**/pwned")]

    assert not pwned


def launched_in(sweep):
    """Of each launch, the jobs and their SLURM ids."""
    paths = sorted(Path(sweep).glob("launches/*.json"))
    return [json.loads(path.read_text())["jobs"] for path in paths]


def submit(commands, **options):
    return run("slurm", commands, **{**QUICK, **options})


def unfinished(sweep):
    return slurm.states(launched_in(sweep)[0].values())


def end_soon(sweep):
    """Wait until all jobs have ended; requeued ones wait a few seconds, not SLURM's two minutes.

    At once, a node would not take a job again that it has just been told to end.
    """

    def ended():
        for name, state in unfinished(sweep).items():
            if state.name == "PENDING":
                time.sleep(6)
                subprocess.run(["scontrol", "update", f"jobid={name}", "starttime=now"])
        return not unfinished(sweep)

    wait_until(ended, 400)


def test_jobs_run_as_arrays_with_at_most_array_cap_at_once(sweep, capsys):
    """An array has as many jobs as SLURM allows, 6 here; the cap holds over two arrays."""
    hparams = 'it\'s "a" $(touch pwned)\nline; `x`'
    jobs = commands(sweep, 8, seconds=0.5, hparams=hparams)
    jobs[0] = f"CUDA_VISIBLE_DEVICES='its own' {jobs[0]}"

    assert submit(jobs, array_cap=1, cpus=2) is None

    (ids,) = launched_in(sweep)
    assert len(ids) == len(set(ids.values())) == 8

    size = slurm.largest_array()
    arrays = {name.partition("_")[0] for name in ids.values()}
    assert len(arrays) == -(-8 // size)
    assert set(unfinished(sweep)) == set(ids.values())
    assert f"runs {min(size, 8)} of the sweep's 8 jobs" in capsys.readouterr().out

    wait_until(lambda: not unfinished(sweep), 120)
    folders = [sweep / name for name in ids]
    assert all(events(folder) == ["start", "end"] for folder in folders)
    assert most_at_once(folders) == 1

    first = story(folders[0])[0]
    assert first["flags"]["--hparams"] == hparams

    variables = first["environment"]
    assert variables["OMP_NUM_THREADS"] == "2" and variables["CUDA_VISIBLE_DEVICES"] == "its own"

    for folder in folders:
        (attempt,) = JobFolder(folder).attempts()
        assert attempt.status == 0 and attempt.slurm == ids[folder.name]
        assert not (folder / "lock").exists()

    assert submit(jobs) is None  # all are done: nothing is submitted
    assert len(launched_in(sweep)) == 1


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_resumes(sweep, monkeypatch):
    """One minute is SLURM's shortest limit. Its warning comes up to half a minute early.

    So with 20 s it comes 10 to 40 s after the start. One that comes at the start itself is lost.
    """
    monkeypatch.setattr(slurm, "SIGNAL_SECONDS", 20)
    submit([command(sweep / "long", seconds=50)], time=1)
    end_soon(sweep)
    job_events = events(sweep / "long")

    assert job_events[:2] == ["start", "saved for SIGUSR1"] and job_events[-2:] == ["start", "end"]

    statuses = [attempt.status for attempt in JobFolder(sweep / "long").attempts()]
    assert set(statuses[:-1]) == {75} and statuses[-1] == 0


SLURM = ["--launcher", "slurm", "--time", "10"]


def wait_for(condition, seconds=240):
    return wait_until(condition, seconds, pause=1)


def test_a_slurm_sweep_is_launched_cancelled_and_cleaned(tmp_path):
    out = tmp_path / "it's out"
    long = declared(tmp_path, steps=1000000, hparams={"batch_size": 4})
    endless = [*long, *SLURM, "--output_dir", out]
    launched = carft("launch", *endless, "--array_cap", 1)

    assert launched.returncode == 0, launched.stderr
    assert "Submitted. To watch the jobs: carft sweep status" in launched.stdout

    wait_for(lambda: any(job["step"] for job in look(out)["jobs"] if job["state"] == "running"))
    status = look(out)
    assert (status["counts"]["running"], status["counts"]["queued"]) == (1, 2)

    (running,) = [job for job in status["jobs"] if job["state"] == "running"]
    assert "_" in running["slurm"]  # an array's element

    queued = [job for job in status["jobs"] if job["state"] == "queued"]
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


@pytest.fixture
def partition():
    """A partition of its own, with a limit of ten minutes."""
    name = f"carft-{os.getpid()}"
    created = subprocess.run(
        ["scontrol", "create", f"partitionname={name}", "nodes=ALL", "maxtime=10"],
        capture_output=True,
        text=True,
    )
    if created.returncode:
        pytest.skip(f"may not create a partition: {created.stderr.strip()}")
    yield name
    subprocess.run(["scancel", f"--partition={name}"], check=True)
    wait_for(
        lambda: (
            not subprocess.run(
                ["squeue", "--noheader", f"--partition={name}"], capture_output=True
            ).stdout
        )
    )
    subprocess.run(["scontrol", "delete", f"partitionname={name}"], check=True)


def test_jobs_that_slurm_never_starts_are_reported_with_its_reason(tmp_path, partition):
    out = tmp_path / "out"
    words = [*declared(tmp_path), "--output_dir", out, *SLURM, "--partition", partition]

    launched = carft("launch", *words, "--extra", "hold")
    assert launched.returncode == 0, launched.stderr
    held = "  3 jobs: JobHeldUser. SLURM does not start them: carft sweep cancel"
    assert "Waiting in SLURM:" in launched.stdout and held in launched.stdout
    assert held in carft("launch", *words).stdout

    (jobs,) = launched_in(out)
    limit = ["scontrol", "update", f"partitionname={partition}", "maxtime=1"]
    subprocess.run(limit, check=True)
    subprocess.run(["scontrol", "release", ",".join(jobs.values())], check=True)
    wait_for(lambda: look(out)["jobs"][0]["slurm_reason"] == "PartitionTimeLimit", 30)

    status = look(out)
    assert [job["slurm_reason"] for job in status["jobs"]] == ["PartitionTimeLimit"] * 3
    assert status["counts"]["queued"] == 3
    printed = carft("status", out).stdout
    assert "  3 jobs: PartitionTimeLimit. SLURM does not start them: carft sweep cancel" in printed


def test_the_processes_of_a_slurm_job_save_when_it_is_signalled(tmp_path):
    """As by `--signal`: SLURM signals every process, not only the one that started the others."""
    folder = tmp_path / "job"
    pictures = write_pictures(tmp_path / "pictures", 3)
    words = carft_arguments(pictures, folder, "--steps", "100000", "--processes", "2")
    train = shlex.join([sys.executable, "-m", "domainbed.scripts.train", *words])
    options = ("--wait", "--parsable", "--time=10", "--cpus-per-task=2", "--output=/dev/null")
    submitted = subprocess.Popen(
        ["sbatch", *options, "--wrap", f"exec {train}"], stdout=subprocess.PIPE, text=True
    )
    job = submitted.stdout.readline().strip()
    try:
        wait_for((folder / "state.pt").exists)
        subprocess.run(["scancel", "--full", "--signal=USR1", job], check=True)
        assert submitted.wait(120) == 75
    finally:
        subprocess.run(["scancel", job], check=True)
    message = "train: stopped by SIGUSR1; to resume, rerun the command\n"
    assert (folder / "err.txt").read_text() == message


ONE = """
name: one
datasets: [EmojiStyles]
algorithms: [CARFT]
trials: 1
steps: 101
test_environments: [line]
"""


@pytest.mark.slow
def test_a_requeued_job_resumes_to_the_same_weights(tmp_path):
    """To the bit: records and weights."""
    (tmp_path / "one.yaml").write_text(ONE)
    outs = [tmp_path / "disturbed", tmp_path / "undisturbed"]
    for out in outs:
        launched = carft("launch", tmp_path / "one.yaml", "--output_dir", out, *SLURM)
        assert launched.returncode == 0, launched.stderr

    def in_the_middle():
        (job,) = look(outs[0])["jobs"]
        return job if job["state"] == "running" and 0 < (job["step"] or 0) < 60 else None

    job = wait_for(in_the_middle)
    subprocess.run(["scontrol", "requeue", job["slurm"]], check=True)
    folder = Path(job["folder"])
    wait_for((folder / "attempts.jsonl").exists)
    time.sleep(6)  # sooner, the node would not take it again

    # By itself SLURM waits two minutes before it starts a job again.
    subprocess.run(["scontrol", "update", f"jobid={job['slurm']}", "starttime=now"], check=True)
    wait_for(lambda: all(look(out)["counts"]["done"] for out in outs), 600)
    wait_for(lambda: len(JobFolder(folder).attempts()) == 2)  # it is done a little earlier

    assert [attempt.status for attempt in JobFolder(folder).attempts()] == [75, 0]
    assert "Resumed after step" in (folder / "out.txt").read_text()

    wait_for((outs[1] / folder.name / "attempts.jsonl").exists)
    assert_same_outcome(folder, outs[1] / folder.name)


SEARCH = """
name: search
datasets: [EmojiStyles]
algorithms: [CARFT]
trials: 1
steps: 2
test_environments: [line]
hparams: {batch_size: 4, warmup_steps: 0, total_steps: 2}
search: {values: {lr: [1e-4, 1e-3]}, choose_on: {trials: {from: 5, n: 1}}}
"""


@pytest.mark.slow
def test_a_small_job_submits_the_second_stage_after_the_first(tmp_path):
    (tmp_path / "search.yaml").write_text(SEARCH)
    out = tmp_path / "it's out"
    words = ["launch", tmp_path / "search.yaml", "--output_dir", out, *SLURM]
    launched = carft(*words)
    assert launched.returncode == 0, launched.stderr
    assert "submits the second stage when these have ended" in launched.stdout
    assert "There is nothing to launch." in carft(*words).stdout
    small_jobs = [jobs for jobs in launched_in(out) if "second-stage" in jobs]
    assert len(small_jobs) == 1  # the second launch has submitted no other

    wait_for(lambda: look(out)["counts"]["done"] == 3, 400)
    search = look(out)["search"]
    assert search["first_stage"]["done"] == 2 and search["second_stage"]["done"] == 1
    assert not search["needs_launch"] and search["chosen"][0]["members"] == 2


def test_cancel_ends_the_small_job_of_the_second_stage_too(tmp_path):
    (tmp_path / "search.yaml").write_text(SEARCH.replace("steps: 2", "steps: 100000"))
    out = tmp_path / "out"
    launched = carft("launch", tmp_path / "search.yaml", "--output_dir", out, *SLURM)
    assert launched.returncode == 0, launched.stderr

    cancelled = carft("cancel", out, "--yes")
    assert "3 SLURM jobs cancelled" in cancelled.stdout
    jobs = [name for jobs in launched_in(out) for name in jobs.values() if name]
    wait_for(lambda: not slurm.states(jobs))
    assert look(out)["counts"]["done"] == 0
