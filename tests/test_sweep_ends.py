"""How `carft sweep launch` ends: what is not done is told; what cannot begin leaves nothing."""

import os
import subprocess
import sys

import pytest

from domainbed_carft import cli, launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import Attempt, JobFolder
from domainbed_carft.launchers import Ending
from domainbed_carft.launchers.attempt import run_commands
from domainbed_carft.sweep import declaration, launching, states

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--steps", "2"]

HOLD = """
import sys
from domainbed_carft.jobs.folder import JobFolder
with JobFolder(sys.argv[1]).claim():
    print("held", flush=True)
    sys.stdin.read()
"""


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


def folders(jobs):
    return [JobFolder(job.folder) for job in jobs]


def finish(jobs, environment):
    for folder in folders(jobs):
        (folder.path / "done").touch()
    return []


def end(folder, status, words=""):
    folder.add_attempt(Attempt(1.0, 2.0, "host", None, status, words))


def test_a_sweep_that_is_done_ends_with_0(launch, capsys):
    assert launch(finish) == 0
    assert "not done" not in capsys.readouterr().err
    assert launch(finish) == 0


def test_every_job_that_is_not_done_is_told_with_its_reason(launch, capsys):
    holders = []

    def leave(jobs, environment):
        stopped, held, refused = folders(jobs)
        end(stopped, 75, "told to stop")
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(held.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        holders[0].stdout.readline()
        return [Ending(refused.path, "failed", 127, 1, "No space left on device")]

    try:
        assert launch(leave) == 1
        said = capsys.readouterr().err
        assert "3 jobs not done:" in said and "failed" not in said
        assert "exit status 75: told to stop" in said
        assert f"running elsewhere: {os.uname().nodename}, process {holders[0].pid}, since" in said
        assert "No space left on device" in said
        # What another launcher runs is not done either when nothing is left to launch.
        assert launch(finish) == 1
        assert "1 job not done:" in capsys.readouterr().err
        assert launch(finish) == 1
        said = capsys.readouterr()
        assert "nothing to launch" in said.out and "running elsewhere" in said.err
    finally:
        holders[0].kill()
        holders[0].communicate()


def test_from_python_what_failed_before_is_told_too(out):
    made = declaration.parse("name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\ntrials: 1\n", "x")

    def some(jobs, environment):
        first, second, *_ = folders(jobs)
        (first.path / "done").touch()
        end(second, 2, "no such flag")
        return []

    left = launching.run(made, "D", out, some)
    assert [one.state for one in left] == [states.FAILED, *[states.NOT_LAUNCHED] * 2]
    assert left[0].attempt.last_words == "no such flag" and all(one.detail for one in left)
    again = launching.run(made, "D", out, lambda jobs, environment: [])
    assert [one.job.folder for one in again] == [one.job.folder for one in left]


def test_what_slurm_has_is_not_waited_for(launch):
    assert launch(lambda jobs, environment: None, "--launcher", "slurm") == 0


def test_weights_to_keep_are_a_variable_of_each_job(launch, capsys):
    seen = []

    def see(jobs, environment):
        seen.append([(job, environment(job)) for job in jobs])

    assert launch(see, "--keep_weights", "none") == 1
    launch(see)
    assert len(seen[0]) == 3
    assert all(told == {"DOMAINBED_KEEP_WEIGHTS": "none"} for _, told in seen[0])
    # It is no part of what the jobs are.
    assert [job for job, _ in seen[0]] == [job for job, _ in seen[1]]
    with pytest.raises(SystemExit):
        launch(None, "--keep_weights", "some")
    assert "invalid choice: 'some'" in capsys.readouterr().err


def test_a_running_job_gets_the_variable(tmp_path):
    code = (
        "import os,sys; open(sys.argv[2]+'/done','w').write(os.environ['DOMAINBED_KEEP_WEIGHTS'])"
    )
    for name in ("local", "pool"):
        job = f'DOMAINBED_KEEP_WEIGHTS=best python -c "{code}" --output_dir {tmp_path}/{name}'
        assert run_commands(launchers.make(name), [job]) == []
        assert (tmp_path / name / "done").read_text() == "best"


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
    made = declaration.parse("name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n", "x")
    with pytest.raises(CarftError, match="there is no GPU"):
        launching.run(made, "D", out, launchers.make("pool", {"jobs_per_gpu": 2}))
    assert not out.exists()
