"""The command `sweep`, in this process."""

import io
import json
import sys

import pytest
from domainbed import datasets
from domainbed.command_launchers import REGISTRY, local_launcher
from domainbed.scripts import sweep
from domainbed.scripts.sweep import Job
from test_launchers import python

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job_folder import JobFolder

pytestmark = pytest.mark.usefixtures("registered")


def test_jobs_and_command_lines_equal_upstream(golden):
    for case in golden("jobs.json").values():
        args_list = sweep.make_args_list(**case["keywords"])
        jobs = [Job(train_args, "out dir") for train_args in args_list]
        assert [job.command_str for job in jobs] == case["commands"]


def run(folder, *arguments, command="launch", confirm=False):
    """Run the command, by default for six jobs and the launcher `dummy`; return the exit status."""
    flags = [] if confirm else ["--skip_confirmation"]
    defaults = ["--algorithms", "Still", "--datasets", "Debug28", "--n_trials", "1"]
    defaults += ["--n_hparams", "1", "--command_launcher", "dummy", "--data_dir", "/data"]
    return sweep.main([command, "--output_dir", str(folder), *defaults, *flags, *arguments])


def folders(output):
    """List the folders of jobs."""
    return sorted(path for path in output.iterdir() if path.is_dir())


def launched_commands(capsys):
    """Read the lines that the launcher `dummy` has printed."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("Dummy launcher: ")]


def job_states(output, capsys):
    """Map each folder to its state in `carft sweep status`."""
    capsys.readouterr()
    cli.main(["sweep", "status", str(output), "--json"])
    return {job["folder"]: job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]}


def test_incomplete_jobs_are_relaunched_after_deletion(tmp_path, capsys):
    assert run(tmp_path) == 0
    commands = launched_commands(capsys)
    assert len(commands) == 6
    assert commands[0].startswith("Dummy launcher: python -m domainbed.scripts.train --algorithm S")
    assert job_states(tmp_path, capsys) == {str(path): "not launched" for path in folders(tmp_path)}

    assert run(tmp_path, "--steps", "7") == 0
    assert len(launched_commands(capsys)) == 6
    assert run(tmp_path) == 0
    assert launched_commands(capsys) == []

    assert run(tmp_path, "--single_test_envs", command="delete_incomplete") == 0
    assert "About to delete 3 jobs." in capsys.readouterr().out
    assert job_states(tmp_path, capsys).keys() == {str(path) for path in folders(tmp_path)}
    assert len(folders(tmp_path)) == 9

    assert run(tmp_path) == 0
    assert launched_commands(capsys) == [commands[0], commands[3], commands[5]]


@pytest.mark.parametrize("stdin", [None, io.StringIO()])
def test_sweep_without_terminal_names_the_confirmation_flag(tmp_path, capsys, monkeypatch, stdin):
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(tmp_path / "out", confirm=True) == 2
    assert "--skip_confirmation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            "--algorithms Stil LinearSGD --datasets PACS PASC --command_launcher lokal "
            '--hparams {"lrr":1} --n_trials 0 --n_hparams_from 5',
            [
                "sweep: 6 problems, nothing was done\n",
                "no launcher is called 'lokal'; did you mean local? Valid: local, dummy",
                "no algorithm is called 'Stil'; did you mean Still?",
                "no dataset is called 'PASC'; did you mean PACS",
                "no hyperparameter of LinearSGD is called 'lrr'",
                "--n_trials must be at least 1, not 0",
                "--n_hparams must be at least 6, not 1",
            ],
        ),
        ("--holdout_fraction 0", ["--holdout_fraction must be more than 0"]),
        ("--steps 0", ["--steps must be at least 1, not 0"]),
        ("--task domain_adaptation", ["--task domain_adaptation is not included"]),
        ("--command_launcher local --datasets PACS --data_dir /no", ["/no does not exist"]),
        ("--datasets Two", ["Two has 2 environments", "--single_test_envs"]),
    ],
)
def test_all_problems_are_reported_before_folders_are_made(
    tmp_path, capsys, monkeypatch, arguments, messages
):
    two = type("Two", (datasets.Debug28,), {"ENVIRONMENTS": ["a", "b"]})
    monkeypatch.setattr(datasets, "Two", two, raising=False)

    assert run(tmp_path / "sweep", *arguments.split()) == 2

    err = capsys.readouterr().err
    assert not [message for message in messages if message not in err]
    assert not (tmp_path / "sweep").exists()


def test_launch_with_failed_job_returns_1(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "failing", lambda commands: commands[:1])
    assert run(tmp_path, "--command_launcher", "failing") == 1


def test_running_job_is_not_deleted(tmp_path, capsys):
    assert run(tmp_path, "--single_test_envs") == 0
    running, *waiting = folders(tmp_path)
    assert len(waiting) == 2

    with JobFolder(running).claim():
        assert run(tmp_path, "--single_test_envs") == 0
        assert "3 incomplete jobs were not launched, 1 of them" in capsys.readouterr().err
        assert run(tmp_path, "--single_test_envs", command="delete_incomplete") == 0
        assert f"sweep: not deleted: {running} is being run by" in capsys.readouterr().err
        assert folders(tmp_path) == [running]


def test_repeated_dataset_is_listed_and_deleted_once(tmp_path):
    flags = ["--datasets", "PACS", "PACS", "--single_test_envs"]
    assert run(tmp_path, *flags) == 0
    listed = manifest.read(tmp_path)
    assert {job.folder for job in listed.jobs} == set(folders(tmp_path))
    assert len(listed.jobs) == 4
    assert listed.datasets["PACS"].images == (2048, 2344, 1670, 3929)

    assert run(tmp_path, *flags, command="delete_incomplete") == 0
    assert folders(tmp_path) == []
    assert manifest.read(tmp_path).jobs == ()


def test_sweep_defaults_to_all_registered_algorithms_and_datasets():
    args = sweep.build_parser().parse_args(
        ["launch", "--output_dir", "o", "--data_dir", "d", "--command_launcher", "dummy"]
    )
    assert args.algorithms == ["Still", "LinearSGD"]
    assert {"PACS", "DomainNet", "SVIRO"} <= set(args.datasets)
    assert "Debug28" not in args.datasets
    assert (args.n_hparams_from, args.n_hparams, args.n_trials) == (0, 20, 3)


def test_local_launcher_runs_commands_without_a_shell_and_reports_failures(tmp_path, capfd):
    note = "import sys; print(sys.executable, *sys.argv[1:])"
    awkward = "$HOME; `ls` * 'x'"
    failing = python("raise SystemExit(4)", "--output_dir", str(tmp_path / "gone"))
    commands = [python(note, "1"), failing, python(note, awkward), "no-such-program --flag"]

    assert len(local_launcher(commands)) == 2

    out, err = capfd.readouterr()
    assert out == f"{sys.executable} 1\n{sys.executable} {awkward}\n"
    assert err.splitlines()[:2] == [
        "sweep: 2 of 4 jobs failed:",
        f"- exit status 4: {tmp_path / 'gone'}: no message in err.txt",
    ]
    assert "exit status 127: no-such-program --flag: " in err
