"""The processes of `carft evaluate OUT`: failures of one run, signals, loading processes."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pool_tasks
import pytest

from domainbed_carft import machine
from domainbed_carft.errors import CarftWarning
from domainbed_carft.runs import pool
from domainbed_carft.runs.predictions import MAX_DEFAULT_WORKERS

DEADLINE = pool_tasks.SECONDS / 3
JOBS = pytest.mark.parametrize("jobs", [1, 2])


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid):
    with contextlib.suppress(FileNotFoundError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def start_command(task, folder):
    words = [sys.executable, pool_tasks.__file__, task, str(folder)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(
    ("number", "task"),
    [
        (signal.SIGTERM, "sleep"),
        (signal.SIGKILL, "load_slowly"),
        (signal.SIGINT, "load_slowly"),
    ],
)
def test_processes_end_with_the_command(number, task, tmp_path):
    command = start_command(task, tmp_path)
    wait_until(lambda: len([*tmp_path.glob("worker*")]) == len([*tmp_path.glob("loader*")]) == 2)
    pids = [int(path.name.split()[1]) for path in tmp_path.iterdir()]
    assert all(map(is_running, pids)) and command.pid not in pids

    command.send_signal(number)
    command.wait(DEADLINE)
    wait_until(lambda: not any(map(is_running, pids)), seconds=5)
    command.stderr.close()


def test_processes_that_start_ignore_ctrl_c(tmp_path):
    """The terminal sends the signal to the processes, too, which then import torch."""
    command = start_command("sleep", tmp_path)
    pids = []
    while len(pids) < 2:
        words = ["ps", "-o", "pid=,args=", "-ww", "-s", str(command.pid)]
        lines = subprocess.check_output(words, text=True).splitlines()
        pids = [int(line.split()[0]) for line in lines if "spawn_main(" in line]
    wait_until(lambda: all("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids))
    for pid in pids:
        os.kill(pid, signal.SIGINT)

    wait_until(lambda: all((tmp_path / f"worker {pid}").exists() for pid in pids))
    command.terminate()
    assert "Traceback" not in command.communicate(timeout=DEADLINE)[1]


@JOBS
def test_unexpected_error_of_a_run_is_its_problem(jobs, capsys):
    tasks = {
        "a": functools.partial(pool_tasks.raise_unexpected, "a"),
        "b": functools.partial(pool_tasks.leave, "b"),
        "c": pool_tasks.succeed,
    }
    with pytest.warns(CarftWarning) if jobs == 1 else contextlib.nullcontext() as caught:
        ends = pool.run_tasks(tasks, jobs=jobs)
    assert ends["a"].problem.startswith("KeyError: 'a' (pool_tasks.py, line ")
    assert ends["b"].problem.startswith("SystemExit: b (pool_tasks.py, line ")
    assert ends["c"] == pool.TaskEnd(was_measured=True)

    printed = capsys.readouterr().err
    assert "evaluate: a: KeyError: 'a'" in printed
    warning = str(caught[0].message) if jobs == 1 else printed
    assert "warning before a" in warning


@JOBS
def test_loading_processes_share_the_cores_of_a_slot(jobs, monkeypatch):
    monkeypatch.delenv(machine.CORES, raising=False)
    ends = pool.run_tasks(dict.fromkeys("ab", pool_tasks.report_loaders), jobs=jobs)
    n_cores = machine.cores() if jobs == 1 else max(1, machine.cores() // 2)
    n_loaders = min(MAX_DEFAULT_WORKERS, n_cores)
    assert {end.problem for end in ends.values()} == {f"{n_loaders} loaders"}
