"""Jobs forked from a process that has imported torch run like jobs that are started directly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from domainbed.command_launchers import REGISTRY
from fake_checkout import REPO, write_checkout, write_files
from harness.fakes import assert_same_outcome
from runs_jobs import write_images
from sweep_jobs import (
    STAND_IN,
    command,
    is_warm,
    launch,
    run,
    stat,
    statuses,
    story,
    wait_until,
)

from domainbed_carft.jobs import fork_server
from domainbed_carft.jobs.fork_server import SWITCH
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.job_folder import JobFolder


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def descendants(pid: int) -> list[int]:
    """This process's children, and theirs."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    children = [child for child in pids if int(stat(child)[1]) == pid]
    grandchildren = [pid for child in children for pid in descendants(child)]
    return [*children, *grandchildren]


def test_forked_job_has_the_environment_of_a_cold_start(tmp_path, monkeypatch):
    before = {*descendants(os.getpid())}  # other tests' helpers
    jobs = {name: [tmp_path / name / str(n) for n in range(3)] for name in ("warm", "cold")}
    for name, folders in jobs.items():
        monkeypatch.setenv(SWITCH, "1" if name == "cold" else "")
        commands = [command(folder, hparams={"a b": "'ü"}) for folder in folders]
        assert run("pool", commands, jobs=2) == []

    forked, cold = ([story(folder)[0] for folder in folders] for folders in jobs.values())
    assert not any(map(is_warm, jobs["cold"])) and all(map(is_warm, jobs["warm"]))
    assert len({facts["imported_by"] for facts in forked}) == 1
    assert len({facts["drawn"] for facts in forked}) == 3

    differing = {"drawn", "pid", "imported_by", "parent", "time"}
    for facts, expected in zip(forked, cold):
        facts["environment"][SWITCH] = "1"
        expected = json.loads(json.dumps(expected).replace(f"{tmp_path}/cold", f"{tmp_path}/warm"))
        for fact in expected.keys() - differing:
            assert (fact, facts[fact]) == (fact, expected[fact])

    assert {*descendants(os.getpid())} <= before


def test_crashes_of_forked_jobs_are_recorded_and_other_jobs_finish(tmp_path):
    # A job forked while another one runs must not keep its lock, or the retries would fail.
    codes = {
        "signal": "time.sleep(1); os.kill(os.getpid(), signal.SIGSEGV)",
        "exit": "os._exit(7)",
        "error": "raise ValueError('so')",
        "words": "sys.exit('words')",
    }
    jobs = [command(tmp_path / name, code=code, words="last words") for name, code in codes.items()]
    jobs[1:1] = [command(tmp_path / "long", seconds=5)]
    ends = {end.folder.name: (end.status, end.last_words) for end in run("pool", jobs, jobs=2)}

    assert ends == {
        "signal": (-signal.SIGSEGV, "last words"),
        "exit": (7, "last words"),
        "error": (1, "ValueError: so"),
        "words": (1, "words"),
    }
    assert statuses(tmp_path / "signal") == [-signal.SIGSEGV] * 3
    assert statuses(tmp_path / "long") == [0]
    assert all(is_warm(tmp_path / name) for name in (*codes, "long"))


def test_jobs_outlive_a_killed_fork_server_and_are_retried_after_a_killed_guard(tmp_path):
    jobs = [command(tmp_path / n, seconds=2, code=f"sys.exit({ord(n)})") for n in "abc"]
    process = launch("pool", [*jobs, command(tmp_path / "d")], {"jobs": 3})
    wait_until(lambda: all(story(tmp_path / name) for name in "abc"))
    was_warm = [is_warm(tmp_path / name) for name in "abc"]
    os.kill(story(tmp_path / "a")[0]["imported_by"], signal.SIGKILL)
    os.kill(story(tmp_path / "c")[0]["parent"], signal.SIGKILL)
    process.communicate()

    assert was_warm == [True] * 3 and not is_warm(tmp_path / "d")

    statuses_by_job = [statuses(tmp_path / name) for name in "abcd"]
    assert statuses_by_job == [[97] * 3, [98] * 3, [-signal.SIGTERM, 99, 99, 99], [0]]

    first, *_ = JobFolder(tmp_path / "c").read_attempts()
    assert first.ended - first.started > 2  # noted at the job's own end


@pytest.mark.parametrize("variable", [SWITCH, "OMP_NUM_THREADS", "PYTHONHASHSEED", "MINE"])
def test_job_with_own_variables_starts_cold(tmp_path, variable):
    jobs = [command(tmp_path / n) for n in "abc"]
    jobs[1] = f"{variable}=3 {jobs[1]}"
    assert run("local", jobs) == []
    assert [is_warm(tmp_path / name) for name in "abc"] == [True, False, True]
    assert story(tmp_path / "b")[0]["environment"][variable] == "3"


def test_local_launcher_of_the_harness_forks_jobs_with_its_streams(tmp_path, monkeypatch, capfd):
    # In the launcher's session, so that Ctrl-C in a terminal reaches the jobs.
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    before = {*descendants(os.getpid())}
    code = "print({0!r}, os.getsid(0)); sys.exit({0})"
    jobs = [Job({"code": code.format(n), "words": "last words"}, tmp_path / n) for n in "03"]
    failed = REGISTRY["local"]([job.line for job in jobs])
    out, err = capfd.readouterr()

    assert out == f"0 {os.getsid(0)}\n3 {os.getsid(0)}\n"
    assert err.startswith("last words\nlast words\nsweep: 1 of 2 jobs failed:\n- exit status 3: ")
    assert len(failed) == 1 and all(is_warm(job.folder) for job in jobs)
    assert {*descendants(os.getpid())} <= before


@pytest.mark.slow
def test_forked_job_trains_like_a_cold_one_after_a_resume(tmp_path):
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "lr": 1e-3, "warmup_steps": 0}
    images = write_images(tmp_path / "images")
    args = {"algorithm": "CARFT", "dataset": str(images), "hparams": hparams, "steps": 9}
    args |= {"checkpoint_freq": 4, "workers": 1, "seed": 7}
    stopped, cold = (Job(args, tmp_path / name) for name in ("stopped", "cold"))
    process = launch("pool", [stopped.line])
    wait_until(lambda: (stopped.folder / "results.jsonl").exists())
    pid = JobFolder(stopped.folder).get_holder().pid

    assert fork_server.MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()

    os.kill(pid, signal.SIGTERM)
    out, err = process.communicate()
    assert json.loads(out) == [], err
    assert run("local", [f"{SWITCH}=1 {cold.line}"]) == []
    assert [statuses(job.folder) for job in (stopped, cold)] == [[75, 0], [0]]

    assert_same_outcome(stopped.folder, cold.folder)
    assert "stopped by SIGTERM" in (stopped.folder / "err.txt").read_text()
    assert "Traceback" not in (cold.folder / "err.txt").read_text()


IN_A_CHECKOUT = """
import json, os, sys
from domainbed import algorithms, hparams_registry, imported_by

if __name__ == "__main__":
    folder = sys.argv[sys.argv.index("--output_dir") + 1]
    found = algorithms.get_algorithm_class("CARFT")
    facts = dict(
        file=algorithms.__file__, found=str(found.__mro__), listed=algorithms.ALGORITHMS,
        hparams=hparams_registry.default_hparams("CARFT", "Pets"), path=sys.path,
        is_warm=imported_by.PID != os.getpid(),
    )
    json.dump(facts, open(folder + "/done", "w"))
"""


@pytest.mark.slow
def test_jobs_in_a_checkout_are_forked_from_its_train_with_the_plugin(tmp_path, monkeypatch):
    modules = {"scripts/train": IN_A_CHECKOUT, "imported_by": "import os\nPID = os.getpid()"}
    checkout = write_checkout(tmp_path / "checkout", modules=modules)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    jobs = [Job({}, tmp_path / "warm").line, f"{SWITCH}=1 {Job({}, tmp_path / 'cold').line}"]

    assert run("local", jobs) == []

    forked, cold = (json.loads((tmp_path / name / "done").read_text()) for name in ("warm", "cold"))
    assert [facts.pop("is_warm") for facts in (forked, cold)] == [True, False]
    assert forked == cold
    assert cold["file"] == str(checkout / "domainbed" / "algorithms.py")
    assert "domainbed_carft.method.carft.CARFT" in cold["found"]


THREAD = "import threading as t, time\nt.Thread(None, time.sleep, args=[60], daemon=True).start()"
FAULT = "if 'DOMAINBED_LOCK_FD' not in os.environ:\n    raise ImportError"


@pytest.mark.parametrize("added", [THREAD, FAULT], ids=["thread", "fault"])
def test_jobs_start_cold_if_forking_is_impossible(tmp_path, added):
    # Imports that start a thread, and imports that fail outside a job.
    text = (STAND_IN / "imported_by.py").read_text()
    folder = write_files(tmp_path / "path", {"imported_by.py": text + added})
    jobs = [command(tmp_path / name, path=f"{folder}:{STAND_IN}") for name in "ab"]

    assert run("local", jobs) == []
    assert not is_warm(tmp_path / "a") and not is_warm(tmp_path / "b")
