"""How `carft sweep launch` ends: what is not done is told; what cannot begin leaves nothing."""

import os
from types import SimpleNamespace

import pytest
from sweep_folders import Others, ended

from domainbed_carft import cli, launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.sweep import launch as launching
from domainbed_carft.sweep import sources, states

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--steps", "2"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def launch(out, monkeypatch):
    """`carft sweep launch` of three jobs, with a function of the jobs as the launcher."""

    def start(launcher, *flags):
        monkeypatch.setattr(launchers, "make", lambda *args: launcher)
        return cli.main(["sweep", "launch", *FLAGS, "--output_dir", str(out), "--yes", *flags])

    return start


def finish(jobs, environment=None):
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "done").touch()
    return []


def test_a_sweep_that_is_done_ends_with_0(launch, capsys):
    assert launch(finish) == 0
    assert "not done" not in capsys.readouterr().err
    assert launch(finish) == 0


def test_every_job_that_is_not_done_is_told_with_its_reason(launch, capsys):
    others = Others()

    def leave(jobs, environment):
        stopped, held, refused = jobs
        ended(stopped, 75)
        others.hold(held)
        words = "No space left on device"
        return [SimpleNamespace(folder=str(refused.folder), status=127, last_words=words)]

    try:
        assert launch(leave) == 1
        said = capsys.readouterr().err
        assert "3 jobs not done:" in said and "failed" not in said
        assert "exit status 75: words of 75" in said
        holder = others.running[0].pid
        assert f"running elsewhere: {os.uname().nodename}, process {holder}, since" in said
        assert "No space left on device" in said
        # What another launcher runs is not done either when nothing is left to launch.
        assert launch(finish) == 1
        assert "1 job not done:" in capsys.readouterr().err
        assert launch(finish) == 1
        said = capsys.readouterr()
        assert "nothing to launch" in said.out and "running elsewhere" in said.err
    finally:
        others.kill()


def test_from_python_what_failed_before_is_told_too(out):
    made = sources.parse("name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\ntrials: 1\n", "x")

    def some(jobs, environment):
        finish(jobs[:1])
        ended(jobs[1], 2)
        return []

    left = launching.run(made, "D", out, some)
    assert [one.state for one in left] == [states.FAILED, *[states.NOT_LAUNCHED] * 2]
    assert left[0].attempt.last_words == "words of 2" and all(one.detail for one in left)
    again = launching.run(made, "D", out, lambda jobs, environment: [])
    assert [one.job.folder for one in again] == [one.job.folder for one in left]


def test_what_slurm_has_is_not_waited_for(launch):
    assert launch(lambda *given: None, "--launcher", "slurm") == 0


def test_what_slurm_cannot_hold_is_told_before_any_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "100% sure"
    flags = [*FLAGS, "--output_dir", str(out), "--launcher", "slurm"]
    assert cli.main(["sweep", "launch", *flags]) == 1
    said = capsys.readouterr().err
    assert "2 problems, nothing was done" in said
    assert "sbatch, srun, squeue, scontrol cannot be found" in said
    assert "100% sure' has a line break, % or" in said
    assert not out.exists()
    assert cli.main(["sweep", "launch", *flags, "--dry-run"]) == 0


def test_gpus_that_are_not_there_are_told_before_any_folder_is_made(out, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = [*FLAGS, "--output_dir", str(out), "--jobs_per_gpu", "2"]
    assert cli.main(["sweep", "launch", *flags]) == 1
    assert "jobs_per_gpu = 2, but there is no GPU" in capsys.readouterr().err
    made = sources.parse("name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n", "x")
    with pytest.raises(CarftError, match="there is no GPU"):
        launching.run(made, "D", out, launchers.make("pool", {"jobs_per_gpu": 2}))
    assert not out.exists()
