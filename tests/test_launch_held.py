"""Jobs that other processes have: launchers wait for them, and run what these leave undone."""

import os
import signal
import subprocess
import sys

import pytest
from sweep_jobs import command, commands, events, launch, story, wait_until

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import shared_queue, slurm_commands, slurm_element
from domainbed_carft.launchers.slurm_element import Element

HOLD = """
import os, sys, time
from domainbed_carft.jobs.folder import JobFolder
os.makedirs(sys.argv[1], exist_ok=True)
with JobFolder(sys.argv[1]).claim():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold():
    """Holds the lock of a job for some seconds in a process of its own, and leaves it undone."""
    running = []

    def start(folder, seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["local", "pool"])
def test_a_held_job_comes_last_and_is_run_when_it_is_free(name, tmp_path, hold, capfd, monkeypatch):
    monkeypatch.setattr(shared_queue, "LOOK_EVERY", 0.2)
    process = hold(tmp_path / "job00", 2.5)
    jobs = commands(tmp_path, 3, seconds=0.1)
    assert launchers.make(name)(jobs) == []
    assert [events(tmp_path / f"job{n:02}") for n in range(3)] == [["start", "end"]] * 3
    starts = [story(tmp_path / f"job{n:02}")[0]["time"] for n in range(3)]
    assert starts[0] > max(starts[1:])
    said = capfd.readouterr().err
    assert said.count("waiting for ") == 1
    assert f"{name}: waiting for {tmp_path}/job00, run by " in said
    assert f"process {process.pid}, since" in said


def test_a_held_job_that_its_holder_finishes_is_done(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shared_queue, "LOOK_EVERY", 0.2)
    jobs = commands(tmp_path, 1, seconds=2)
    first = launch("local", jobs)
    wait_until(lambda: events(tmp_path / "job00"))
    assert launchers.make("local")(jobs) == []
    assert JobFolder(tmp_path / "job00").done and events(tmp_path / "job00") == ["start", "end"]
    first.communicate()


def test_ctrl_c_ends_the_waiting(tmp_path, hold):
    hold(tmp_path / "job00", 60)
    process = launch("local", commands(tmp_path, 1))
    assert "waiting for" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode in (130, -signal.SIGINT)


@pytest.fixture
def element(tmp_path, monkeypatch):
    """In a SLURM job that nobody started; what SLURM is told is kept."""
    asked = []
    monkeypatch.setattr(slurm_commands, "requeue", asked.append)
    monkeypatch.setattr(slurm_element, "_OTHERS_SECONDS", 0.1)
    monkeypatch.setattr(slurm_element, "_HELD_TURNS", 2)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    yield Element(command(tmp_path / "job"), {}, 5.0), asked
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_element_gives_way_to_who_has_its_job_but_not_for_ever(tmp_path, hold, element):
    run, asked = element
    process = hold(tmp_path / "job", 60)
    for turn in (1, 2):
        with pytest.raises(SystemExit) as left:
            run()
        assert left.value.code == 75 and asked == ["12_3"] * turn
    with pytest.raises(CarftError, match=rf"process {process.pid}.* waited for 3 times; launch"):
        run()
    assert len(asked) == 2
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not JobFolder(tmp_path / "job").is_held())
    run()
    assert events(tmp_path / "job") == ["start", "end"]
