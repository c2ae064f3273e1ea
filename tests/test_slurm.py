"""The slurm launcher on a real SLURM, such as .ci/slurm starts; without one, these tests skip."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from sweep_jobs import (
    command,
    commands,
    events,
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

QUICK = {"time": 5, "signal_seconds": 30}


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


def ids_of(sweep):
    (launched,) = launched_in(sweep)
    return launched


def left(sweep):
    return slurm.states(ids_of(sweep).values())


def end_soon(sweep):
    """Wait until all jobs have ended, without most of the two minutes that requeued ones wait.

    SLURM has them wait since a node does not take a job again that it has just been told to end.
    """
    waiting_since = {}

    def ended():
        states = left(sweep)
        for name in [name for name in waiting_since if states.get(name) != "PENDING"]:
            del waiting_since[name]
        for name in (name for name, state in states.items() if state == "PENDING"):
            if time.monotonic() > waiting_since.setdefault(name, time.monotonic()) + 5:
                subprocess.run(["scontrol", "update", f"jobid={name}", "starttime=now"])
                waiting_since[name] = time.monotonic() + 10**6  # once is enough
        return not states

    wait_until(ended, 400, "jobs did not end")


def test_jobs_are_elements_of_arrays_no_more_at_once_than_the_cap(sweep, capsys):
    """SLURM's own limit, 6 here, is below the option array_size; the cap holds over two arrays."""
    hparams = 'it\'s "a" $(touch pwned)\nline; `x`'
    jobs = commands(sweep, 8, seconds=0.5, hparams=hparams)
    jobs[0] = f"CUDA_VISIBLE_DEVICES='its own' {jobs[0]}"
    assert submit(jobs, array_cap=1, cpus=2) is None
    ids = ids_of(sweep)
    assert len(ids) == len(set(ids.values())) == 8
    size = slurm.largest_array()
    arrays = {name.partition("_")[0] for name in ids.values()}
    assert len(arrays) == -(-8 // min(size, 1000))
    assert set(left(sweep)) == set(ids.values())
    assert f"has {min(size, 8)} of the sweep's 8 jobs" in capsys.readouterr().out
    wait_until(lambda: not left(sweep), 120)
    folders = [sweep / name for name in ids]
    assert all(events(folder) == ["start", "end"] for folder in folders)
    assert most_at_once(folders) == 1
    first = story(folders[0])[0]
    assert first["hparams"] == hparams and first["threads"] == "2" and first["gpu"] == "its own"
    for folder in folders:
        (attempt,) = JobFolder(folder).attempts()
        assert attempt.status == 0 and attempt.slurm == ids[folder.name]
        assert not (folder / "lock").exists()
    assert submit(jobs) is None  # all are done: nothing is submitted
    assert len(launched_in(sweep)) == 1


@pytest.mark.slow
def test_at_its_time_limit_a_job_saves_and_goes_on_later(sweep):
    """One minute is SLURM's shortest limit. Its warning comes up to half a minute early.

    So with 20 s it comes 10 to 40 s after the start. One that comes at the start itself is lost.
    """
    submit([command(sweep / "long", seconds=50)], time=1, signal_seconds=20)
    end_soon(sweep)
    told = events(sweep / "long")
    assert told[:2] == ["start", "saved for SIGUSR1"] and told[-2:] == ["start", "end"]
    statuses = [attempt.status for attempt in JobFolder(sweep / "long").attempts()]
    assert set(statuses[:-1]) == {75} and statuses[-1] == 0
