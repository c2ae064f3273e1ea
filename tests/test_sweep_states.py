"""What status says of each job, from real locks held by real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from domainbed_carft import cli
from domainbed_carft.jobs.folder import Attempt, JobFolder
from domainbed_carft.sweep import declaration, jobs, launching, output, states

TEXT = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\ntrials: 2\nsteps: 11\n"


@pytest.fixture
def sweep(tmp_path):
    """A sweep of 8 jobs that is launched, none of which has begun; its folder, its jobs."""
    folder = tmp_path / "it's out"
    made = declaration.parse(TEXT, "x.yaml")
    statuses = launching.look(made, "D", folder)
    launching.prepare(made, "D", folder, statuses, "pool", launching.Origin("x.yaml", TEXT))
    return folder, [status.job for status in statuses]


HOLD = """
import json, os, sys, time
from pathlib import Path
from domainbed_carft.jobs.folder import JobFolder
folder, fields = JobFolder(sys.argv[1]), json.loads(sys.argv[2])
with folder.claim() as lock:
    holder = {**folder.holder()._asdict(), **fields}
    os.truncate(lock, 0)
    os.pwrite(lock, json.dumps(holder).encode(), 0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Holds the lock of a job's folder in a process of its own, which says these fields of it."""
    running = []

    def start(folder, code=HOLD, **fields):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), json.dumps(fields)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def status(folder, job):
    waiting = states.queues(folder)
    return states.status(job, waiting)


def ended(job, *statuses):
    for value in statuses:
        attempt = Attempt(1.0, 2.0, "host", None, value, f"words of {value}")
        JobFolder(job.folder).add_attempt(attempt)


def record(job, step, **fields):
    value = {"step": step, "args": dict(job.train_args), "hparams": {"batch_size": 4}, **fields}
    with (job.folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(value) + "\n")


def test_before_anything_ran(sweep):
    folder, found = sweep
    assert {status(folder, job).state for job in found} == {states.NOT_LAUNCHED}


def test_done(sweep):
    folder, (job, *_) = sweep
    (job.folder / "done").touch()
    now = status(folder, job)
    assert (now.state, now.step, now.steps) == (states.DONE, 11, 11)


def test_running_tells_where_since_when_how_far_and_how_fast(sweep, hold):
    folder, (job, *_) = sweep
    begun = time.time() - 100
    process = hold(
        job.folder, since=begun, step=5, steps=11, pictures_per_step=12, updated=begun + 50
    )
    now = status(folder, job)
    assert now.state == states.RUNNING
    assert (now.holder.host, now.holder.pid, now.holder.since) == (
        os.uname().nodename,
        process.pid,
        begun,
    )
    assert (now.step, now.steps) == (5, 11)
    assert now.pictures_per_second == pytest.approx(12 / 10)
    assert now.eta == pytest.approx(6 * 10)


def test_a_running_job_that_went_on_from_a_state_is_timed_by_its_records(sweep, hold):
    folder, (job, *_) = sweep
    record(job, 4, step_time=2.0)
    begun = time.time() - 1
    hold(job.folder, since=begun, step=8, steps=11, pictures_per_step=12, updated=begun + 1)
    now = status(folder, job)
    assert now.eta == pytest.approx(3 * 2.0)
    assert now.pictures_per_second == pytest.approx(6)


def test_a_running_job_of_a_foreign_domainbed_is_followed_by_its_records(sweep, hold):
    folder, (job, *_) = sweep
    record(job, 0, step_time=9.0)
    record(job, 4, step_time=2.0)
    with (job.folder / "results.jsonl").open("a") as file:
        file.write('{"step": 9, "cu')
    hold(job.folder)
    now = status(folder, job)
    assert (now.state, now.step, now.steps) == (states.RUNNING, 5, 11)
    assert now.pictures_per_second == pytest.approx(4 * 3 / 2)  # three training environments
    assert now.eta == pytest.approx(6 * 2.0)


def test_stale_says_who_died(sweep, hold):
    folder, (job, *_) = sweep
    process = hold(job.folder)
    process.kill()
    process.wait()
    now = status(folder, job)
    assert now.state == states.STALE
    assert f"process {process.pid}" in now.detail


@pytest.mark.parametrize(
    ("statuses", "state", "detail"),
    [
        ([1, 1, 1], states.FAILED, "exit status 1: words of 1"),
        ([2], states.FAILED, "exit status 2: words of 2"),
        ([-9, -9, -9], states.FAILED, "signal 9: words of -9"),
        ([1, 1], states.STOPPED, "exit status 1: words of 1"),
        ([130], states.STOPPED, "exit status 130: words of 130"),
        ([75, 75, 75, 75], states.STOPPED, "exit status 75: words of 75"),
    ],
)
def test_how_attempts_ended(sweep, statuses, state, detail):
    folder, (job, *_) = sweep
    ended(job, *statuses)
    now = status(folder, job)
    assert (now.state, now.detail) == (state, detail)
    assert now.as_dict()["exit_status"] == statuses[-1]


def test_a_folder_of_another_tool_is_unknown_until_it_is_done(sweep):
    folder, (job, *_) = sweep
    (job.folder / "job.json").unlink()
    assert status(folder, job).state == states.UNKNOWN
    (job.folder / "out.txt").touch()
    assert status(folder, job).state == states.UNKNOWN
    (job.folder / "done").touch()
    assert status(folder, job).state == states.DONE


LAUNCH = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from domainbed_carft.launchers import launches
    from domainbed_carft.jobs.folder import JobFolder
    with launches.in_hand("pool", [JobFolder(sys.argv[1])]):
        print("held", flush=True)
        sys.stdin.read()
""")


def test_queued_as_long_as_its_launcher_lives(sweep, hold):
    folder, (job, other, *_) = sweep
    process = hold(job.folder, LAUNCH)
    now = status(folder, job)
    assert now.state == states.QUEUED
    assert now.detail == f"pool on {os.uname().nodename}, process {process.pid}"
    assert status(folder, other).state == states.NOT_LAUNCHED
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status(folder, job).state == states.NOT_LAUNCHED


def test_launch_takes_up_what_can_go_on_and_leaves_the_rest(sweep, hold):
    folder, found = sweep
    done, running, stale, failed, stopped, foreign, new, queued = found
    (done.folder / "done").touch()
    hold(running.folder)
    process = hold(stale.folder)
    process.kill()
    process.wait()
    ended(failed, 1, 1, 1)
    ended(stopped, 75)
    (foreign.folder / "job.json").unlink()
    hold(queued.folder, LAUNCH)
    now = states.look(found, folder)
    assert [one.job for one in launching.needed(now)] == [stale, stopped, new]
    assert [one.job for one in launching.needed(now, True)] == [stale, stopped, foreign, new]


def test_status_as_text_and_as_json(sweep, hold, capsys):
    folder, found = sweep
    (found[0].folder / "done").touch()
    ended(found[1], 2)
    hold(found[2].folder, step=3, steps=11, pictures_per_step=12)
    assert cli.main(["sweep", "status", str(folder)]) == 1  # one has failed
    said = capsys.readouterr().out
    assert said.startswith("8 jobs: 1 done, 1 running, 5 not launched, 1 failed.\n")
    assert "14 of 88 steps (16%)" in said
    assert "PACS CARFT, test environments 1, trial 0, hparams seed 0; exit status 2: words" in said
    assert "step 3 of 11" in said
    assert cli.main(["sweep", "status", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["failed"] == 1 and len(told["jobs"]) == 8
    assert set(told["jobs"][0]) == {
        "folder", "variant", "dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed",
        "state", "step", "steps", "host", "pid", "slurm", "since", "pictures_per_second",
        "eta_seconds", "exit_status", "last_words", "detail", "diverged",
    }  # fmt: skip
    assert told["jobs"][1]["exit_status"] == 2 and told["jobs"][1]["last_words"] == "words of 2"
    assert told["jobs"][2]["state"] == "running" and told["jobs"][2]["step"] == 3


def test_a_folder_without_a_declaration_shows_what_is_found(sweep, capsys):
    folder, _ = sweep
    (folder / "sweep.json").unlink()
    (folder / ("0" * 32)).mkdir()
    assert cli.main(["sweep", "status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("9 jobs: 8 not launched, 1 unknown.")
    assert "PACS      CARFT      " in said


def test_a_missing_folder_is_told(tmp_path, capsys):
    assert cli.main(["sweep", "status", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_watch_looks_again_until_nothing_moves(sweep, hold, capsys):
    folder, (job, *_) = sweep
    process = hold(job.folder)
    watching = subprocess.Popen(
        [sys.executable, "-m", "domainbed_carft", "sweep", "status", str(folder), "--watch", "0.2"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = [watching.stdout.readline() for _ in range(2)]
    assert "1 running" in seen[1]
    process.stdin.close()
    rest, _ = watching.communicate(timeout=60)
    assert "1 running" not in rest.split("jobs:")[-1]
    assert "\033" not in "".join(seen) + rest  # nobody's terminal
    assert watching.returncode == 0
    assert cli.main(["sweep", "status", str(folder), "--watch", "0"]) == 1
    assert "--watch is 0.0, expected at least 0.2 seconds" in capsys.readouterr().err


def test_retry_keeps_how_they_ended(sweep, capsys):
    folder, (a, b, *_) = sweep
    ended(a, 1, 1, 1)
    ended(b, 2)
    assert cli.main(["sweep", "retry", str(folder), "--only", "test environments 1"]) == 0
    assert "1 of 2 failed jobs may be tried again" in capsys.readouterr().out
    assert status(folder, a).state == states.FAILED
    assert status(folder, b).state == states.NOT_LAUNCHED
    (b.folder / "out.txt").touch()
    assert status(folder, b).state == states.STOPPED
    assert (b.folder / "attempts-1.jsonl").read_text().count("words of 2") == 1
    ended(b, 2)
    assert cli.main(["sweep", "retry", str(folder)]) == 0
    assert {p.name for p in b.folder.glob("attempts*")} == {"attempts-1.jsonl", "attempts-2.jsonl"}
    ended(b, 2)
    assert cli.main(["sweep", "retry", str(folder), "--only", "DomainNet"]) == 1
    assert "no failed job matches 'DomainNet'; those that failed:" in capsys.readouterr().err


def test_clean_removes_leftovers_of_done_jobs_only(sweep, capsys):
    folder, (done, other, *_) = sweep
    for job in (done, other):
        for name in ("state.pt", "model.pkl.part", "model.pkl", "results.jsonl"):
            (job.folder / name).write_text("x")
    (done.folder / "done").touch()
    assert cli.main(["sweep", "clean", str(folder)]) == 0
    assert "2 files removed" in capsys.readouterr().out
    assert {p.name for p in done.folder.iterdir()} == {
        "model.pkl", "results.jsonl", "done", "job.json"
    }  # fmt: skip
    assert (other.folder / "state.pt").exists()


def test_clean_never_touches_a_running_or_queued_job(sweep, hold, capsys):
    folder, found = sweep
    done, running, stale, failed, stopped, foreign, new, queued = found
    (done.folder / "done").touch()
    hold(running.folder)
    (running.folder / "state.pt").write_text("precious")
    process = hold(stale.folder)
    process.kill()
    process.wait()
    ended(failed, 2)
    ended(stopped, 75)
    (foreign.folder / "job.json").unlink()
    hold(queued.folder, LAUNCH)
    assert cli.main(["sweep", "clean", str(folder), "--incomplete", "--yes"]) == 0
    said = capsys.readouterr().out
    assert "About to delete 4 folders: 1 not launched, 1 stopped, 1 stale, 1 failed." in said
    assert "1 folder made by another tool" in said
    for job in (done, running, foreign, queued):
        assert job.folder.is_dir()
    for job in (stale, failed, stopped, new):
        assert not job.folder.exists()
    assert (running.folder / "state.pt").read_text() == "precious"
    assert cli.main(["sweep", "clean", str(folder), "--incomplete", "--unknown", "--yes"]) == 0
    assert not foreign.folder.exists() and running.folder.is_dir() and queued.folder.is_dir()


def test_a_job_that_was_taken_up_meanwhile_is_not_deleted(sweep, hold):
    from domainbed_carft.sweep import clearing

    folder, (job, *_) = sweep
    before = status(folder, job)
    hold(job.folder)
    assert not clearing.remove_folder(before, folder)
    assert (job.folder / "job.json").exists()


def test_clean_asks_on_a_terminal(sweep, monkeypatch):
    folder, (job, *_) = sweep
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "clean", str(folder), "--incomplete"])
    assert left.value.code == 0 and job.folder.is_dir()


def test_thousands_of_jobs_are_looked_at_in_seconds(tmp_path):
    made = declaration.parse(
        "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\nhparams_seeds: 250\n", "x.yaml"
    )
    found = jobs.make(made, "D", tmp_path)
    for job in found:
        output.describe(job, None)
    begun = time.process_time()
    states.look(found, tmp_path)
    assert len(found) == 3000 and time.process_time() - begun < 5


def test_a_diverged_job_is_done_and_counted_as_diverged(sweep, capsys):
    folder, (marked, foreign, healthy, *_) = sweep
    for job, last in (
        (marked, {"diverged_at": 3}),
        (foreign, {"loss": float("nan")}),
        (healthy, {}),
    ):
        record(job, 10, **{"loss": 0.5, **last})
        (job.folder / "done").touch()
    assert cli.main(["sweep", "status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "8 jobs: 3 done (2 diverged), 5 not launched." in said
    listed = said.split("Diverged, so that")[1]
    assert marked.folder.name in listed and foreign.folder.name in listed
    assert healthy.folder.name not in listed
    assert cli.main(["sweep", "status", str(folder), "--json"]) == 0
    found = {one["folder"]: one for one in json.loads(capsys.readouterr().out)["jobs"]}
    assert found[str(marked.folder)]["state"] == "done"
    assert [found[str(job.folder)]["diverged"] for job in (marked, foreign, healthy)] == [
        True, True, False,
    ]  # fmt: skip
