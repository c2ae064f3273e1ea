"""Sweeps, in this process."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from domainbed import datasets
from domainbed.scripts import sweep
from domainbed.scripts.sweep import Job

from domainbed_carft import cli
from domainbed_carft.jobs.folder import JobFolder

pytestmark = pytest.mark.usefixtures("registered")


def test_jobs_and_command_lines_are_upstreams(golden):
    for case in golden("jobs.json").values():
        args_list = sweep.make_args_list(**case["keywords"])
        jobs = [Job(train_args, "out dir") for train_args in args_list]
        assert [job.command_str for job in jobs] == case["commands"]


def run(folder, *arguments, command="launch", confirm=False):
    flags = [] if confirm else ["--skip_confirmation"]
    defaults = ["--algorithms", "Still", "--datasets", "Debug28", "--n_trials", "1"]
    defaults += ["--n_hparams", "1", "--command_launcher", "dummy", "--data_dir", "/data"]
    return sweep.main([command, "--output_dir", str(folder), *defaults, *flags, *arguments])


def folders(output):
    return sorted(path for path in output.iterdir() if path.is_dir())


def launched(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("Dummy launcher: ")]


def test_launch_then_launch_again_then_delete_then_launch(tmp_path, capsys):
    assert run(tmp_path) == 0
    first = launched(capsys)
    assert len(first) == 6
    assert first[0].startswith("Dummy launcher: python -m domainbed.scripts.train --algorithm S")
    assert run(tmp_path) == 0
    assert launched(capsys) == []
    assert run(tmp_path, command="delete_incomplete") == 0
    assert "About to delete 6 jobs." in capsys.readouterr().out
    assert run(tmp_path) == 0
    assert launched(capsys) == first


def listed(output, capsys):
    """Folder -> state, as `carft sweep status` has them."""
    capsys.readouterr()
    cli.main(["sweep", "status", str(output), "--json"])
    return {job["folder"]: job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]}


def test_carft_knows_the_jobs(tmp_path, capsys):
    assert run(tmp_path, "--single_test_envs") == 0
    known = listed(tmp_path, capsys)
    assert sorted(known) == [str(folder) for folder in folders(tmp_path)]
    assert {*known.values()} == {"not launched"}
    assert run(tmp_path, "--single_test_envs", "--steps", "1") == 0
    assert len(listed(tmp_path, capsys)) == 6
    assert run(tmp_path, "--single_test_envs", command="delete_incomplete") == 0
    assert listed(tmp_path, capsys).keys() == {str(folder) for folder in folders(tmp_path)}
    assert len(folders(tmp_path)) == 3


def test_without_anybody_to_ask_the_flag_is_named(tmp_path, command):
    given = ["launch", "--algorithms", "Still", "--datasets", "Debug28", "--n_trials", "1"]
    given += ["--n_hparams", "1", "--data_dir", "D", "--command_launcher", "dummy"]
    for closed in ({"stdin": subprocess.DEVNULL}, {"preexec_fn": lambda: os.close(0)}):
        done = command("sweep", *given, "--output_dir", str(tmp_path / "out"), **closed)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].endswith("give --skip_confirmation")
        assert not (tmp_path / "out").exists()


def test_all_mistakes_are_told_at_once_and_nothing_is_made(tmp_path, capsys):
    folder = tmp_path / "sweep"
    arguments = ["--algorithms", "Stil", "LinearSGD", "--datasets", "PACS", "PASC"]
    arguments += ["--hparams", '{"lrr": 1}', "--command_launcher", "lokal", "--n_trials", "0"]
    assert run(folder, *arguments, "--n_hparams_from", "5") == 2
    message = capsys.readouterr().err
    for part in (
        "no launcher is called 'lokal'; did you mean local? Valid: local, dummy",
        "no algorithm is called 'Stil'; did you mean Still?",
        "no data set is called 'PASC'; did you mean PACS",
        "no hyperparameter of LinearSGD is called 'lrr'",
        "--n_trials must be at least 1, not 0",
        "--n_hparams must be at least 6, not 1",
    ):
        assert part in message
    assert message.startswith("sweep: 6 problems, nothing was done\n")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--holdout_fraction 0", "--holdout_fraction must be more than 0: models are"),
        ("--task domain_adaptation", "--task domain_adaptation is not included"),
        ("--command_launcher local --datasets PACS --data_dir /no", "/no/PACS is missing; give"),
        ("--datasets Two", "2 environments; these jobs need at least 3; with --single_test_envs"),
    ],
)
def test_what_each_job_would_refuse_is_refused_before_folders_are_made(
    tmp_path, capsys, monkeypatch, arguments, message
):
    two = type("Two", (datasets.Debug28,), {"ENVIRONMENTS": ["a", "b"]})
    monkeypatch.setattr(datasets, "Two", two, raising=False)
    folder = tmp_path / "sweep"
    assert run(folder, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert "1 problem, nothing was done\n- " in said and message in said
    assert not folder.exists()


def test_a_running_job_is_not_deleted(tmp_path, capsys):
    assert run(tmp_path, "--single_test_envs") == 0
    running, *others = folders(tmp_path)
    with JobFolder(running).claim():
        assert run(tmp_path, "--single_test_envs") == 0
        assert "3 incomplete jobs were not launched, 1 of them are run" in capsys.readouterr().err
        assert run(tmp_path, "--single_test_envs", command="delete_incomplete") == 0
        assert f"sweep: not deleted: {running} is being run by" in capsys.readouterr().err
        assert folders(tmp_path) == [running]
    assert len(others) == 2


def test_without_names_everything_registered_is_swept():
    args = sweep.build_parser().parse_args(
        ["launch", "--output_dir", "o", "--data_dir", "d", "--command_launcher", "dummy"]
    )
    assert args.algorithms == ["Still", "LinearSGD", "Breaks"]
    assert {"PACS", "DomainNet", "SVIRO"} <= set(args.datasets)
    assert "Debug28" not in args.datasets
    assert (args.n_hparams_from, args.n_hparams, args.n_trials) == (0, 20, 3)
