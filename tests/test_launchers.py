"""The launchers local, pool and dummy, with real processes and in DomainBed's registry."""

import json
import signal
import sys

import pytest
from domainbed.command_launchers import REGISTRY
from helpers.command_lines import python
from sweep_jobs import (
    command,
    commands,
    events,
    is_warm,
    launch,
    most_at_once,
    run,
    stat,
    statuses,
    story,
    wait_until,
)

from domainbed_carft import launchers, machine
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.fork_server import SWITCH
from domainbed_carft.jobs.job_folder import JobFolder

HOSTILE = 'it\'s "one" $(touch pwned) `touch pwned`; #\n&& touch pwned'


def test_registry_of_domainbed_has_launchers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("multi_gpu", "pool", "slurm"):
        assert REGISTRY[name] is launchers.LAUNCHERS[name]

    assert REGISTRY["local"].__module__ == "domainbed.command_launchers"
    assert REGISTRY["pool"]([command(tmp_path / "job")]) == []
    assert (tmp_path / "job" / "done").exists()


@pytest.mark.parametrize("name", ["local", "pool"])
def test_shell_syntax_in_arguments_is_not_executed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / HOSTILE.replace("/", "") / "job"
    assert run(name, [command(folder, hparams=HOSTILE)]) == []
    assert story(folder)[0]["flags"]["--hparams"] == HOSTILE
    assert not list(tmp_path.rglob("pwned"))
    assert sorted(path.name for path in folder.iterdir()) == ["attempts.jsonl", "done", "story"]
    assert not list(folder.parent.glob("launches/*"))

    (attempt,) = JobFolder(folder).read_attempts()
    assert attempt.status == 0 and attempt.started < attempt.ended and attempt.slurm is None


def test_jobs_use_this_interpreter_and_variables_of_command(tmp_path):
    """The sweeps of T3A and DPLCLIP write variables before their commands."""
    code = (
        "import os, sys; open(sys.argv[2] + '/done', 'w')"
        ".write('|'.join([sys.executable, os.environ['A'], os.environ['B']]))"
    )
    folder = tmp_path / "a=b"
    words = f"{python(code)} --output_dir {folder}"

    assert run("pool", [f"A='one two' B= {words}"]) == []
    assert (folder / "done").read_text() == f"{sys.executable}|one two|"

    with pytest.raises(CarftError, match=r"the command has no --output_dir: 'A=1 python x'"):
        run("local", ["A=1 python x"])


@pytest.mark.parametrize("name", ["local", "pool"])
def test_job_is_not_retried_after_three_failures(name, tmp_path, capfd):
    bad = tmp_path / "bad"
    good = tmp_path / "good"
    wrong = tmp_path / "wrong"
    words = "no \x1b]0;such flag"  # must be escaped on a terminal
    jobs = [command(bad, code="sys.exit(1)", words="no such image"), command(good)]
    (final,) = run(name, [command(wrong, code="sys.exit(2)", words=words)])

    assert (final.status, final.attempts, final.last_words) == (2, 1, words)
    assert r"exit status 2: no \x1b]0;such flag" in capfd.readouterr().err

    (failed,) = run(name, jobs)
    assert failed == launchers.JobEnd(bad, "failed", 1, 3, "no such image")
    assert str(failed) == f"{bad}: failed 3 times, exit status 1: no such image"
    assert str(failed) in capfd.readouterr().err
    assert statuses(bad) == [1, 1, 1] and JobFolder(good).done

    # A later launch reports the failure again without another attempt.
    assert run(name, jobs) == [failed]
    assert statuses(bad) == [1, 1, 1]


def test_status_0_without_done_and_missing_program_are_failures(tmp_path):
    jobs = [f"{python('pass')} --output_dir {tmp_path}/job"]
    failed, absent = run("local", [*jobs, f"no-such-program --output_dir {tmp_path}/job2"])
    assert failed.attempts == 3 and "wrote no file 'done'" in failed.last_words
    assert absent.status == 127 and "no-such-program" in absent.last_words


def test_pool_divides_cores_and_keeps_variables_of_user(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(machine, "cores", lambda root=None: 7)
    pool = launchers.make("pool", {"jobs": 2})
    share = {"OMP_NUM_THREADS": "3", "DOMAINBED_CORES": "3", "OMP_WAIT_POLICY": "PASSIVE"}
    assert all(slot.items() >= share.items() for slot in pool.slots(3))

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("GOMP_SPINCOUNT", "9")
    (slot,) = pool.slots(1)
    assert slot["DOMAINBED_CORES"] == "7"
    assert not slot.keys() & {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}


def test_pool_distributes_jobs_over_gpus(tmp_path, monkeypatch):
    """Jobs with different GPUs and groups can be forks of one process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    jobs = commands(tmp_path, 3, seconds=1)
    run("pool", [f"WANDB_RUN_GROUP={number} {job}" for number, job in enumerate(jobs)])
    folders = [tmp_path / f"job{n:02}" for n in range(3)]
    variables = [story(folder)[0]["environment"] for folder in folders]
    assert {each["CUDA_VISIBLE_DEVICES"] for each in variables} == {"3", "GPU-5a"}
    assert [each["WANDB_RUN_GROUP"] for each in variables] == ["0", "1", "2"]
    assert most_at_once(folders) == 2 and all(map(is_warm, folders))


@pytest.mark.parametrize(
    ("number", "status", "cold"), [("SIGTERM", 143, ""), ("SIGHUP", 129, "1"), ("SIGINT", -2, "")]
)
def test_stopped_launcher_lets_jobs_save(tmp_path, monkeypatch, number, status, cold):
    monkeypatch.setenv(SWITCH, cold)
    process = launch("pool", commands(tmp_path, 4, seconds=30), {"jobs": 2})
    running = [tmp_path / "job00", tmp_path / "job01"]
    wait_until(lambda: all(map(story, running)))

    assert [is_warm(folder) for folder in running] == [not cold] * 2
    (launch_file,) = tmp_path.glob("launches/*.json")
    assert json.loads(launch_file.read_text())["pid"] == process.pid
    process.send_signal(getattr(signal, number))
    err = process.communicate(timeout=30)[1]
    assert process.returncode == status or (number == "SIGINT" and process.returncode == 130)
    assert "waiting for the running jobs to save" in err

    for folder in running:
        assert events(folder) == ["start", "saved for SIGTERM"] and statuses(folder) == [75]
        (attempt,) = JobFolder(folder).read_attempts()
        assert (attempt.last_words == "stopped by Ctrl-C (SIGINT)") == (number == "SIGINT")
        assert not JobFolder(folder).lock_path.exists()

    assert not (tmp_path / "job02").exists() and not list(tmp_path.glob("launches/*"))


@pytest.mark.parametrize("cold", ["", "1"])
def test_jobs_of_killed_launcher_continue_and_keep_locks(tmp_path, monkeypatch, cold):
    """Their fork server ends with the launcher, and their guards with the jobs."""
    monkeypatch.setenv(SWITCH, cold)
    jobs = commands(tmp_path, 3, seconds=4)
    killed = launch("pool", jobs, {"jobs": 2})
    running = [JobFolder(tmp_path / name) for name in ("job00", "job01")]
    wait_until(lambda: all(story(folder.path) for folder in running))
    killed.kill()
    killed.communicate()
    starts = [story(folder.path)[0] for folder in running]
    if not cold:
        wait_until(lambda: stat(starts[0]["imported_by"])[0] == "Z", 2)

    assert all(folder.get_holder().pid == killed.pid for folder in running)

    second = launch("pool", jobs, {"jobs": 2})
    out, err = second.communicate()
    assert json.loads(out) == ["held", "held"]
    assert err.count("is being run by") == 2 and f"process {killed.pid}" in err
    assert events(tmp_path / "job02") == ["start", "end"]

    wait_until(lambda: not any(folder.is_held() for folder in running), 10)
    assert all(folder.get_last_holder().pid == killed.pid for folder in running)

    if not cold:
        wait_until(lambda: all(stat(start["parent"])[0] == "Z" for start in starts), 2)
    # The jobs have ended in the meantime, so a third launch has nothing to do.
    assert run("pool", jobs) == []
    assert [events(tmp_path / f"job0{n}") for n in range(3)] == [["start", "end"]] * 3


def test_three_launchers_at_once_run_each_job_once(tmp_path):
    """A free slot takes the next job, and never waits for a job of another launcher."""
    jobs = commands(tmp_path, 12, seconds=0.2)
    processes = [launch("pool", order, {"jobs": 2}) for order in (jobs, jobs, jobs[::-1])]
    outputs = [process.communicate() for process in processes]

    assert all(set(json.loads(out)) <= {"held"} for out, _ in outputs), outputs
    assert [events(tmp_path / f"job{n:02}") for n in range(12)] == [["start", "end"]] * 12
    assert [statuses(tmp_path / f"job{n:02}") for n in range(12)] == [[0]] * 12


def test_job_held_elsewhere_is_not_a_failure(tmp_path, capfd):
    """With exit status 73 train found a lock that the launcher did not see, as on a network."""
    folder = JobFolder(tmp_path / "job")
    job = command(folder.path, code="sys.exit(73)", words="run by someone")
    (end,) = run("local", [job])

    assert (end.result, end.last_words) == ("held", "run by someone")
    assert statuses(folder.path) == [73] and "run by someone" in capfd.readouterr().err
    assert (
        launchers.RegisteredLauncher("pool", True)([job]) == []
    )  # not a failure for DomainBed's sweep


def test_job_with_moved_folder_fails_without_retry(tmp_path):
    folder, moved = tmp_path / "job", tmp_path / "moved"
    job = command(folder, code=f"os.rename({str(folder)!r}, {str(moved)!r}); sys.exit(1)")
    (end,) = run("pool", [job])

    assert end.result == "failed"
    assert end.last_words.startswith(f"{folder} was moved or removed while this job ran there")
    assert not folder.exists() and not (moved / "attempts.jsonl").exists()
