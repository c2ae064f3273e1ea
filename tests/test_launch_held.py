"""Jobs that other processes have: launchers leave them alone, SLURM's come back to them."""

import signal

import pytest
from sweep_folders import HOLD
from sweep_jobs import commands, events

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import slurm
from domainbed_carft.launchers.attempt import run_commands


@pytest.fixture
def element(tmp_path, monkeypatch):
    """What SLURM would start, in a job that nobody started; what SLURM is told is kept."""
    asked, made = [], []
    monkeypatch.setattr(slurm, "requeue", asked.append)
    monkeypatch.setattr(slurm, "_OTHERS_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "largest_array", lambda: None)
    monkeypatch.setattr(slurm.Slurm, "problems", lambda self, sweeps: [])

    def submit(self, sweep, elements, after):
        made.extend(elements)
        return ["12_3"]

    monkeypatch.setattr(slurm.Slurm, "_submit_array", submit)
    run_commands(launchers.make("slurm"), commands(tmp_path, 1))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    yield made[0], asked
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_element_gives_way_to_who_has_its_job_five_times(tmp_path, others, element, monkeypatch):
    start, asked = element
    process = others.start(HOLD, tmp_path / "job00")
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 75 and asked == ["12_3"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")  # as SLURM itself counts
    with pytest.raises(CarftError, match=rf"process {process.pid}"):
        start()
    assert len(asked) == 1 and not JobFolder(tmp_path / "job00").attempts()  # no failure
    process.kill()
    process.wait()
    start()
    assert events(tmp_path / "job00") == ["start", "end"]
