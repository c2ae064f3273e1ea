"""The slurm launcher, with stand-ins for SLURM's programs and, if slow, with a real SLURM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from search_sweeps import STAGES, parse, write_results
from submitit.core.utils import DelayedSubmission
from sweep_folders import add_attempts, write_declaration
from sweep_jobs import (
    carft,
    command,
    commands,
    events,
    missing_slurm,
    most_at_once,
    read_status,
    run,
    statuses,
    story,
    wait_until,
)

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import JobFolder
from domainbed_carft.launchers import launch_file, slurm
from domainbed_carft.sweep import launch, search

PROGRAMS = {
    "sbatch": """
number=$((7 + $(ls submitted | wc -l)))
[ $number = "$(cat refused)" ] && { echo "no more\nof yours" >&2; exit 1; }
cp "$1" submitted/$(printf %02d $number)
echo "Submitted batch job $number"
""",
    "squeue": "cat queue",
    "scontrol": '[ "$1" = show ] && cat config || echo "scontrol $*" >> calls',
    "scancel": 'echo "scancel $*" >> calls',
    "srun": 'until [ "$1" = "$PYTHON" ]; do shift; done; cd /; exec "$@"',
}


class Cluster:
    """A folder with stand-ins for SLURM's programs.

    Attributes:
        queue: Lines that squeue prints.
        config: Lines that scontrol prints about the cluster.
        refused: Number of the first job that sbatch refuses.
        calls: Calls of scancel, and other calls of scontrol.
    """

    def __init__(self, folder):
        self.folder = folder
        (folder / "submitted").mkdir(parents=True)
        self.queue, self.config, self.refused, self.calls = (
            folder / name for name in ("queue", "config", "refused", "calls")
        )
        for path in (self.queue, self.config, self.refused, self.calls):
            path.touch()
        for name, code in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{code}\n")
            (folder / name).chmod(0o755)

    def scripts(self):
        """Return the submitted scripts by the number of their job."""
        paths = sorted((self.folder / "submitted").iterdir())
        return {int(path.name): path.read_text() for path in paths}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{cluster.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)
    return cluster


def read_launches(sweep):
    """Return the SLURM ids by job for each launch."""
    paths = sorted(Path(sweep).glob("launches/*.json"))
    return [json.loads(path.read_text())["jobs"] for path in paths]


def load_submitted_function(sweep, job_id):
    """Load the function that a submitted job calls."""
    path = sweep / "launches" / "slurm-logs" / f"{job_id}_submitted.pkl"
    return DelayedSubmission.load(path).function


def test_jobs_are_submitted_as_arrays_with_common_cap(tmp_path, cluster):
    """Jobs that are done, failed or held are skipped."""
    cluster.config.write_text("MaxArraySize            = 3\n")
    jobs = commands(tmp_path, 8)
    folders = [JobFolder(tmp_path / f"job{number:02}") for number in range(8)]
    for folder in folders[:3]:
        folder.path.mkdir()
    (folders[0].path / "done").touch()
    add_attempts(Job({}, folders[1].path), 2)
    with folders[2].claim():
        assert run("slurm", jobs, array_cap=2, time="1-0", gpus=2, cpus=4) is None

    scripts = cluster.scripts()
    assert [*scripts] == [7, 8]
    assert "--array=0-2%2\n" in scripts[7] and "--array=0-1%2\n" in scripts[8]
    assert "dependency" not in scripts[7] and "--dependency=afterany:7\n" in scripts[8]
    for flag in ("--requeue", "--time=1-0", "--signal=USR2@120", "--gpus-per-node=2"):
        assert f"#SBATCH {flag}\n" in scripts[8]

    (ids,) = read_launches(tmp_path)
    assert ids == dict(zip([f"job{n:02}" for n in range(3, 8)], "7_0 7_1 7_2 8_0 8_1".split()))
    environment = load_submitted_function(tmp_path, "8_1").environment
    assert environment["DOMAINBED_PROCESSES"] == "2" and environment["OMP_NUM_THREADS"] == "1"

    jobs_of_two_folders = [*commands(tmp_path / "a", 1), *commands(tmp_path / "b", 1)]
    for cap in (2, 1):
        run("slurm", jobs_of_two_folders, array_cap=cap)
    are_chained = ["dependency" in script for script in cluster.scripts().values()]
    assert are_chained == [False, True, False, False, False, True]


def test_refused_submission_keeps_earlier_arrays(tmp_path, cluster):
    cluster.config.write_text("MaxArraySize = 3\n")
    cluster.refused.write_text("8")
    jobs = commands(tmp_path, 5)
    for number in range(5):
        (tmp_path / f"job{number:02}").mkdir()
    message = r"refused: .*no more of yours.*\. 3 of 5 jobs in .* are submitted; launch the rest"
    with pytest.raises(CarftError, match=message):
        run("slurm", jobs)

    # DomainBed's sweep would skip jobs whose folders exist.
    assert sorted(path.name for path in tmp_path.glob("job*")) == ["job00", "job01", "job02"]
    assert read_launches(tmp_path) == [{f"job0{number}": f"7_{number}" for number in range(3)}]


def test_job_saves_at_time_limit_and_resumes_after_requeue(tmp_path, cluster, monkeypatch):
    run("slurm", commands(tmp_path, 2, seconds=1))
    job = tmp_path / "job00"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    words = ["sh", cluster.folder / "submitted" / "07"]
    turn = subprocess.Popen(words)
    wait_until(lambda: story(job), 60)
    os.kill(JobFolder(job).get_holder().pid, signal.SIGUSR2)
    turn.wait(60)

    assert events(job) == ["start", "saved for SIGUSR1"]
    assert cluster.calls.read_text() == "scontrol requeue 7_0\n"

    subprocess.run(words, check=True)
    assert events(job)[2:] == ["start", "end"]
    assert statuses(job) == [75, 0]
    assert [attempt.slurm for attempt in JobFolder(job).read_attempts()] == ["7_0"] * 2


@pytest.fixture
def restored_handlers():
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_handlers")
def test_array_element_requeues_itself_while_job_is_held(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "LOCK_PATIENCE", 0.1)
    run("slurm", commands(tmp_path, 2))
    element = load_submitted_function(tmp_path, "7_0")
    folder = JobFolder(tmp_path / "job00")
    folder.path.mkdir()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")  # set by SLURM
    with folder.claim():
        with pytest.raises(SystemExit) as exit_raised:
            element()
        assert exit_raised.value.code == 75
        assert cluster.calls.read_text() == "scontrol requeue 12_3\n"

        monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
        with pytest.raises(CarftError, match=rf"process {os.getpid()}"):
            element()
    assert cluster.calls.read_text().count("requeue") == 1 and not folder.read_attempts()

    element()
    assert events(folder.path) == ["start", "end"]


@pytest.mark.usefixtures("restored_handlers")
def test_array_element_fails_after_three_attempts(tmp_path, cluster):
    run("slurm", [command(tmp_path / "job", code="sys.exit(3)", words="no such image")])
    with pytest.raises(CarftError, match="failed 3 times, exit status 3: no such image"):
        load_submitted_function(tmp_path, "7")()
    assert statuses(tmp_path / "job") == [3, 3, 3] and not cluster.calls.read_text()


def test_queued_sweep_can_be_watched_cancelled_and_cleaned(tmp_path, cluster):
    out = tmp_path / "out"
    words = [*write_declaration(tmp_path), "--output_dir", out, "--launcher", "slurm"]
    cluster.queue.write_text(
        "7_0|PENDING|QOSMaxCpuPerJobLimit\n7_1|PENDING|JobHeldUser\n7_2|PENDING|Priority\n"
    )
    launched = carft("launch", *words)
    assert launched.returncode == 0
    reasons = ("QOSMaxCpuPerJobLimit", "JobHeldUser", "Priority")
    assert all(reason in launched.stdout for reason in reasons)
    assert [*map(slurm.is_lasting, reasons)] == [True, True, False]
    assert carft("launch", *words).returncode == 0 and len(cluster.scripts()) == 1

    cluster.queue.write_text("7_0|RUNNING|None\n7_1|PENDING|JobHeldUser\n7_2|PENDING|Priority\n")
    status = read_status(out)
    assert status["counts"]["queued"] == 3
    assert [job["slurm_reason"] for job in status["jobs"]] == [None, "JobHeldUser", "Priority"]

    cluster.queue.unlink()  # SLURM does not answer
    assert "squeue failed" in read_status(out)["note"]
    refused = carft("clean", out, "--incomplete")
    assert refused.returncode == 1 and "no job was deleted" in refused.stderr
    assert read_launches(out)

    cluster.queue.write_text("7_0|RUNNING|None\n7_1|PENDING|JobHeldUser\n70_2|PENDING|Priority\n")
    assert "2 SLURM jobs cancelled" in carft("cancel", out, "--yes").stdout
    assert cluster.calls.read_text() == "scancel 7_0 7_1\n"
    cluster.queue.write_text("")
    assert read_status(out)["counts"]["not launched"] == 3
    assert "1 leftover file deleted" in carft("clean", out).stdout and not read_launches(out)


def test_missing_programs_and_unsupported_folder_names_are_problems(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "100% sure"
    words = [*write_declaration(tmp_path), "--output_dir", out, "--launcher", "slurm"]
    refused = carft("launch", *words)
    assert refused.returncode == 1 and "2 problems, nothing was done" in refused.stderr
    assert "sbatch, srun, squeue, scontrol, which are not on PATH" in refused.stderr
    assert "100% sure' has a line break, % or" in refused.stderr
    dry_run = carft(
        "launch", *words, "--gpus", "2", "--cpus", "8", "--memory-gb", "30", "--dry-run"
    )
    assert not out.exists() and dry_run.returncode == 0
    request = "SLURM: each job requests 2 GPUs, 8 CPU cores, 30 GB, and a time limit of 1-0.\n"
    assert request in dry_run.stdout


def launch_second_stage():
    """Called by the job that launches the second stage."""


@pytest.mark.parametrize(
    ("queue", "waiting_jobs", "dependency"),
    [
        ("7_0|RUNNING|\n7_1|PENDING|\n10_0|PENDING|\n", [], "7:10"),
        ("7_0|RUNNING|\n9|PENDING|\n", ["9"], None),  # already submitted
        ("7_0|RUNNING|\n9|PENDING|\n10_0|PENDING|\n", ["9"], "7:10"),
        ("", [], None),
        ("9|PENDING|\n", ["9"], None),
    ],
)
def test_second_stage_job_depends_on_first_stage(
    queue, waiting_jobs, dependency, tmp_path, cluster
):
    cluster.queue.write_text(queue)
    listed = {f"job{number}": name for number, name in enumerate(("7_0", "7_1", "10_0"))}
    for name, jobs in [("", listed), *(("small", {search.NAME: job}) for job in waiting_jobs)]:
        entry = launch_file.begin("slurm", tmp_path, name)
        entry.jobs.update(jobs)
        entry.write()

    search.submit(launchers.make("slurm", {"gpus": 2}), tmp_path, launch_second_stage)
    scripts = "".join(cluster.scripts().values())
    assert (f"--dependency=afterany:{dependency}\n" in scripts) == bool(dependency)
    assert bool(scripts) == bool(dependency) and "gpus" not in scripts


def test_second_stage_job_launches_stage_after_first_is_done(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_METHODS", "")
    cluster.queue.write_text("7_0|RUNNING|None\n")
    options = {"setup": ["a b"]}
    plan = launch.plan(parse(STAGES), "D", tmp_path, "slurm", options, keep_weights="none")
    assert launch.run_plan(plan) == []
    assert "--dependency=afterany:7\n" in cluster.scripts()[10]

    cluster.queue.write_text("")
    monkeypatch.setenv("SLURM_JOB_ID", "10")
    second_stage = load_submitted_function(tmp_path, "10")
    with pytest.raises(CarftError, match="the first stage is not done: 24 not launched"):
        second_stage()

    for job in plan.jobs:
        write_results(job, accuracies=lambda step: [0.5] * 8)
    second_stage()
    assert "\na b\n" in cluster.scripts()[11]
    element = load_submitted_function(tmp_path, "11_0")
    assert element.environment["DOMAINBED_KEEP_WEIGHTS"] == "none"
    assert element.job.args["trial_seed"] in (0, 1)
    assert "SLURM_JOB_ID" not in os.environ


@pytest.mark.slow
def test_real_slurm_keeps_cap_and_resumes_requeued_job(tmp_path):
    """The SLURM of .ci/slurm allows 6 jobs per array, so the cap must hold over two arrays."""
    if missing := missing_slurm():
        pytest.skip(missing)
    sweep = tmp_path / 'the sweep\'s "$(touch pwned)" `touch pwned`; #x'
    hparams = 'it\'s "a" $(touch pwned)\nline; `x`'
    jobs = [f"CUDA_VISIBLE_DEVICES='its own' {command(sweep / 'long', seconds=15)}"]
    jobs += commands(sweep, 7, seconds=0.5, hparams=hparams)
    run("slurm", jobs, array_cap=1, cpus=2, time=5)
    (ids,) = read_launches(sweep)
    try:
        wait_until(lambda: story(sweep / "long"), pause=1)
        assert set(slurm.get_states(ids.values())) == set(ids.values())
        subprocess.run(["scontrol", "requeue", ids["long"]], check=True)
        wait_until(lambda: statuses(sweep / "long"), pause=1)
        time.sleep(6)  # earlier the node would refuse the job
        # Otherwise SLURM waits two minutes before it restarts a job.
        now = ["scontrol", "update", f"jobid={ids['long']}", "starttime=now"]
        subprocess.run(now, check=True)
        wait_until(lambda: not slurm.get_states(ids.values()), pause=1)
    finally:
        slurm.cancel(ids.values())

    long, *folders = (sweep / name for name in ids)
    assert events(long) == ["start", "saved for SIGTERM", "start", "end"]
    assert statuses(long) == [75, 0]
    assert all(events(folder) == ["start", "end"] for folder in folders)
    assert most_at_once([long, *folders]) == 1
    assert {story(folder)[0]["flags"]["--hparams"] for folder in folders} == {hparams}
    variables = story(long)[0]["environment"]
    assert variables["OMP_NUM_THREADS"] == "2" and variables["CUDA_VISIBLE_DEVICES"] == "its own"
    assert not [path for root in (Path.cwd(), tmp_path) for path in root.glob("**/pwned")]
