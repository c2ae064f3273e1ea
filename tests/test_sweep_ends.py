"""How `carft sweep launch` ends: what is not done is told; what cannot begin leaves nothing."""

import os
from types import SimpleNamespace

import pytest
from sweep_folders import FLAGS, ended, finish

from domainbed_carft import cli, launchers


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


def finish_all(jobs, environment=None):
    for job in jobs:
        finish(job)
    return []


def test_every_job_that_is_not_done_is_told_with_its_reason(launch, others, capsys):
    def leave(jobs, environment):
        stopped, held, refused = jobs
        ended(stopped, 75)
        others.hold(held)
        words = "No space left on device"
        return [SimpleNamespace(folder=str(refused.folder), status=127, last_words=words)]

    assert launch(leave) == 1
    said = capsys.readouterr().err
    assert "3 jobs not done:" in said and "failed" not in said
    assert "exit status 75: words of 75" in said and "No space left on device" in said
    holder = others.running[0].pid
    assert f"running, {os.uname().nodename}, process {holder}, since" in said
    assert launch(finish_all) == 1
    assert "1 job not done:" in capsys.readouterr().err
    others.kill()
    assert launch(finish_all) == launch(finish_all) == 0


@pytest.mark.parametrize(("name", "taken"), [("pool", 3), ("local", 3), ("slurm", 2)])
def test_what_others_have_only_queued_is_taken_by_whoever_has_a_free_slot(
    launch, others, name, taken
):
    seen = []

    def note(jobs, environment):
        seen.append([job.folder for job in jobs])
        if name != "slurm" and len(seen) > 1:
            finish_all(jobs)

    launch(note, "--launcher", "slurm")
    others.queue(SimpleNamespace(folder=seen[0][0]))
    assert launch(note, "--launcher", name) == 0
    assert len(seen[1]) == taken and set(seen[1]) == set(seen[0][-taken:])


def test_a_log_and_what_is_kept_reach_the_jobs_which_stay_the_same(launch, monkeypatch):
    for name in ("DOMAINBED_LOG", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("domainbed.lib.scalar_logs.problems", lambda kinds: [])
    seen = []

    def note(jobs, environment):
        seen.append([(job.line, environment(job)) for job in jobs])

    told = ["--log", "tensorboard", "wandb", "--keep_weights", "none", "--skip_training_in_splits"]
    assert launch(note) == launch(note, *told) == 1  # none is done
    plain, given = seen
    variables = {"DOMAINBED_LOG": "tensorboard wandb", "WANDB_RUN_GROUP": "out"}
    variables |= {"DOMAINBED_KEEP_WEIGHTS": "none", "DOMAINBED_SKIP_TRAINING_IN_SPLITS": "1"}
    assert len(plain) == 3 and given == [(line, variables) for line, none in plain if not none]


def test_what_slurm_cannot_hold_is_told_before_any_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "100% sure"
    flags = [*FLAGS, "--output_dir", str(out), "--launcher", "slurm"]
    assert cli.main(["sweep", "launch", *flags]) == 1
    said = capsys.readouterr().err
    assert "2 problems, nothing was done" in said
    assert "sbatch, srun, squeue, scontrol, which are not on PATH" in said
    assert "100% sure' contains a line break, % or" in said
    assert not out.exists()
    assert cli.main(["sweep", "launch", *flags, "--dry-run"]) == 0
