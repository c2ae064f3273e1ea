"""`carft sweep launch`: what it sees of the data, what it estimates, and how it ends."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_trees import even, grow
from sweep_folders import declared, ended, finish, launched, record

from domainbed_carft import cli, launchers
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.sweep import costs, declaration_file, host, states, upkeep
from domainbed_carft.sweep import launch as launching
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.launch import SKIP_VARIABLE


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def launch(out, monkeypatch):
    """`carft sweep launch` of three jobs, with a function of the jobs as the launcher."""

    def start(launcher, *flags):
        monkeypatch.setattr(launchers, "make", lambda *args: launcher)
        common_flags = ["--output_dir", str(out), "--yes"]
        return cli.main(["sweep", "launch", *declared(out.parent), *common_flags, *flags])

    return start


def finish_all(jobs, environment=None):
    for job in jobs:
        finish(job)
    return []


def test_every_unfinished_job_is_reported_with_its_reason(launch, foreign_processes, capsys):
    def leave(jobs, environment):
        stopped, held, refused = jobs
        ended(stopped, 75)
        foreign_processes.hold(held)
        words = "No space left on device"
        return [SimpleNamespace(folder=str(refused.folder), status=127, last_words=words)]

    assert launch(leave) == 1

    stderr = capsys.readouterr().err
    assert "3 jobs not done:" in stderr and "failed" not in stderr
    assert "exit status 75: words of 75" in stderr and "No space left on device" in stderr

    holder = foreign_processes.running[0].pid
    assert f"running, {os.uname().nodename}, process {holder}, since" in stderr
    assert launch(finish_all) == 1
    assert "1 job not done:" in capsys.readouterr().err

    foreign_processes.kill()
    assert launch(finish_all) == launch(finish_all) == 0


def test_a_launch_waits_for_the_jobs_that_another_one_runs(launch, foreign_processes):
    def finish_all_but_the_first(jobs, environment):
        first, *others = jobs
        foreign_processes.queue(first)
        foreign_processes.hold(first)
        finish_all(others)

        def end_other_launch():
            finish(first)
            foreign_processes.kill()

        threading.Timer(0.5, end_other_launch).start()

    assert launch(finish_all_but_the_first) == 0


def test_a_launch_loads_the_sweep_once_and_lists_its_jobs_once(launch, monkeypatch):
    calls = []

    def counted_call(owner, name):
        function = getattr(owner, name)

        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(owner, name, call)

    counted_call(declaration_file, "load")
    counted_call(Declaration, "jobs")
    assert launch(finish_all) == 0
    assert sorted(calls) == ["jobs", "load"]


def test_a_plan_from_python_writes_nothing_and_runs(out, monkeypatch):
    monkeypatch.setattr(launchers, "make", lambda *arguments: finish_all)
    monkeypatch.delenv(SKIP_VARIABLE, raising=False)
    sweep, *_ = declared(out.parent)

    plan = launching.plan(sweep, "/data", out, "local")
    assert len(plan.jobs_to_run) == len(plan.jobs) == 3
    assert plan.problems == plan.data_problems == [] and plan.skips_training_in_splits
    assert plan.costs()[costs.TOTAL].jobs == 3
    assert not out.exists()

    assert launching.run_plan(plan) == []
    assert (out / "sweep.json").exists()
    assert launching.plan(sweep, "/data", out, "local").jobs_to_run == []


def test_a_sweeps_paths_are_text_or_path_objects(out, monkeypatch):
    monkeypatch.setattr(launchers, "make", lambda *arguments: finish_all)
    sweep, *_ = declared(out.parent)
    plans = [launching.plan(kind(sweep), kind("/data"), kind(out), "local") for kind in (str, Path)]
    assert plans[0].jobs == plans[1].jobs
    assert [job.args["data_dir"] for job in plans[1].jobs] == ["/data"] * 3

    assert launching.run_plan(plans[0]) == []
    for folder in (str(out), out):
        assert len(states.of_output(folder).in_state(states.DONE)) == 3
        assert upkeep.retry(folder).failed == []
    for wrong in ([out], 5, None):
        for function in (states.of_output, upkeep.retry, declaration_file.load):
            with pytest.raises(CarftError, match="the path is"):
                function(wrong)


def test_problems_of_a_sweep_and_of_its_launcher_come_together(tmp_path):
    sweep, *_ = declared(tmp_path, trials=0)
    with pytest.raises(CarftError) as caught:
        launching.plan(sweep, "/data", tmp_path / "out", "local", {"gpus": -1})
    in_file, of_launcher = caught.value.problems
    assert in_file.endswith(": trials: got 0, expected at least 1")
    assert of_launcher == "local: gpus is -1, expected at least 1"


@pytest.mark.parametrize(("name", "launched_count"), [("pool", 3), ("local", 3), ("slurm", 2)])
def test_jobs_queued_by_another_launcher_are_run_by_a_free_slot(
    launch, foreign_processes, name, launched_count
):
    launched_folders = []

    def note_folders(jobs, environment):
        launched_folders.append([job.folder for job in jobs])
        if name != "slurm" and len(launched_folders) > 1:
            finish_all(jobs)

    launch(note_folders, "--launcher", "slurm")
    foreign_processes.queue(SimpleNamespace(folder=launched_folders[0][0]))
    assert launch(note_folders, "--launcher", name) == 0

    first, second = launched_folders
    assert len(second) == launched_count and set(second) == set(first[-launched_count:])


def test_log_and_keep_weights_reach_jobs_without_changing_identity(launch, monkeypatch):
    for name in ("DOMAINBED_LOG", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("domainbed.lib.scalar_logs.problems", lambda kinds: [])
    launches = []

    def note_jobs(jobs, environment):
        launches.append([(job.line, environment(job)) for job in jobs])

    flags = ["--log", "tensorboard", "wandb", "--keep_weights", "none"]
    assert launch(note_jobs) == launch(note_jobs, *flags) == 1  # none is done

    plain, with_flags = launches
    usual = {SKIP_VARIABLE: "1"}
    variables = {"DOMAINBED_LOG": "tensorboard wandb", "WANDB_RUN_GROUP": "out"}
    variables |= {"DOMAINBED_KEEP_WEIGHTS": "none", **usual}
    assert len(plain) == 3
    assert all(variables_of_job == usual for _, variables_of_job in plain)
    assert with_flags == [(line, variables) for line, _ in plain]


def test_a_dry_run_warns_of_a_log_that_a_launch_refuses(launch, out, monkeypatch, capsys):
    refusal = "--log wandb: you are not logged in"
    monkeypatch.setattr("domainbed.lib.scalar_logs.problems", lambda kinds: [refusal])
    assert launch(finish_all, "--log", "wandb", "--dry-run") == 0

    output = capsys.readouterr()
    assert "Nothing is launched." in output.out
    assert output.err == f"Warning: a launch would refuse this: {refusal}\n"
    assert launch(finish_all, "--log", "wandb") == 1
    assert refusal in capsys.readouterr().err and not out.exists()


@pytest.fixture
def values(launch, monkeypatch):
    """What each launch tells the jobs about the training environments' in-splits."""
    monkeypatch.delenv(SKIP_VARIABLE, raising=False)

    def start(*flags):
        values_of_jobs = []

        def note_values(jobs, environment):
            values_of_jobs.extend(environment(job).get(SKIP_VARIABLE) for job in jobs)

        launch(note_values, *flags)
        (value,) = set(values_of_jobs)
        return value

    return start


def test_a_new_sweep_skips_the_training_in_splits_until_a_flag_undoes_it(
    values, capsys, monkeypatch
):
    assert values("--launcher", "local") == values() == "1"
    stdout = capsys.readouterr().out
    assert "Evaluation: without training in-splits (--training_in_splits adds them)" in stdout
    assert values("--training_in_splits") == values() == values("--launcher", "slurm") == "0"
    monkeypatch.setenv(SKIP_VARIABLE, "1")
    assert values() == "1"
    assert values("--training_in_splits") == "0"


def test_a_checkout_gets_no_flag_for_training_in_splits(values, monkeypatch):
    monkeypatch.setattr(host, "skips_in_splits", lambda: False)
    assert values() is None


def test_a_wrong_value_of_the_variable_is_refused_before_any_job(launch, out, monkeypatch, capsys):
    monkeypatch.setenv(SKIP_VARIABLE, "yes")
    assert launch(finish_all) == 1
    assert f"{SKIP_VARIABLE} is 'yes', expected 0 or 1" in capsys.readouterr().err
    assert not out.exists()


def test_too_many_slurm_jobs_are_refused_before_any_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "100% sure"
    flags = [*declared(tmp_path), "--output_dir", str(out), "--launcher", "slurm"]
    assert cli.main(["sweep", "launch", *flags]) == 1

    stderr = capsys.readouterr().err
    assert "2 problems, nothing was done" in stderr
    assert "sbatch, srun, squeue, scontrol, which are not on PATH" in stderr
    assert "100% sure' has a line break, % or" in stderr
    assert not out.exists()
    assert cli.main(["sweep", "launch", *flags, "--dry-run"]) == 0


def carft(capsys, datasets, *flags, algorithms=("CARFT",), **keys):
    """Exit status, output and errors of a launch of one trial."""
    sweep, *_ = declared(".", datasets=datasets, algorithms=algorithms, **keys)
    status = cli.main(["sweep", "launch", sweep, "--output_dir", "out", *map(str, flags)])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.fixture
def data(tmp_path, monkeypatch):
    """PACS in order, but of no known edition, and VLCS damaged, below the current folder."""
    monkeypatch.chdir(tmp_path)
    for benchmark in map(benchmarks.get, ("PACS", "VLCS")):
        folders = [environment.folder for environment in benchmark.environments]
        grow(tmp_path / "data" / benchmark.folder, even(benchmark.classes, folders))
    (tmp_path / "data" / "VLCS" / "__MACOSX").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("launcher", ["local", "pool", "dummy"])
def test_broken_data_is_refused_for_our_algorithms_before_the_first_job(data, capsys, launcher):
    shutil.rmtree(data / "PACS" / "photo")
    flags = ["--data_dir", data, "--launcher", launcher]
    status, out, err = carft(capsys, ["VLCS", "PACS"], *flags, algorithms=["ERM", "CARFT"])
    assert status == 1 and "2 problems, nothing was done" in err
    assert f"- the data of VLCS in {data}/VLCS is broken: the environments are " in err
    assert f"- the data of PACS in {data}/PACS is broken: the environments are " in err
    assert err.count("or set the hparam data_edition to unchecked") == 2
    assert "jobs" not in out and not (data.parent / "out").exists()


def test_a_dry_run_shows_costs_and_verdicts_before_it_refuses(data, capsys):
    status, out, err = carft(capsys, ["VLCS", "PACS"], "--data_dir", data, "--dry-run")
    assert status == 1 and "problems, nothing was done" not in err and "__MACOSX" in err
    assert "Data: VLCS: broken: " in out and "Data: PACS: differs: " in out
    assert "8 jobs: 8 not launched" in out and "40,008" in out  # steps of both
    assert not (data.parent / "out").exists()


def test_data_missing_here_is_no_error_for_slurm(data, capsys, monkeypatch):
    monkeypatch.setattr("domainbed_carft.launchers.problems", lambda *arguments: [])
    monkeypatch.setattr(launching, "run_plan", lambda plan: [])
    nothing_submitted = SimpleNamespace(statuses=[])
    monkeypatch.setattr("domainbed_carft.sweep.states.of_output", lambda output: nothing_submitted)
    flags = ["--data_dir", "/nowhere", "--launcher", "slurm", "--yes"]
    status, out, err = carft(capsys, ["PACS"], *flags)
    assert status == 0 and "Data: not checked, no --data_dir /nowhere here; each job" in out, err

    flags[1] = data
    status, _, err = carft(capsys, ["VLCS"], *flags)
    assert status == 1 and "__MACOSX" in err


@pytest.mark.parametrize(
    ("dataset", "steps", "expected"),
    [
        # 17 checkpoints at steps 0, 300, ..., 4800, and one at the last step, 5000.
        ("PACS", None, (5001, 5001 * 32 * 3, 18 * 9991)),
        ("PACS", 301, (301, 301 * 32 * 3, 2 * 9991)),
        ("DomainNet", 1, (1, 32 * 5, 586575)),
        ("EmojiStyles", None, (101, 101 * 16 * 3, 3 * 1716)),
    ],
)
def test_costs_count_trained_and_evaluated_pictures(dataset, steps, expected):
    text = f"name: x\nalgorithms: [CARFT]\ndatasets: [{dataset}]\n"
    declaration = declaration_file.parse(f"{text}steps: {steps}" if steps else text, "x.yaml")
    (job, *_) = declaration.jobs("D", Path("o"))
    cost = costs.job_cost(job, declaration.facts[dataset])
    assert (cost.steps, cost.trained, cost.evaluated) == expected


def test_hours_left_come_from_step_times_in_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "name: x\nalgorithms: [CARFT]\ntrials: 1\ndatasets: [PACS]\nsteps: 100\n"
    job, *_ = launched("out", text)
    for step, seconds in ((0, 90.0), (50, 36.0)):
        record(job, step, step_time=seconds)
    stdout = carft(capsys, ["PACS"], "--data_dir", "D", "--dry-run", steps=100)[1]
    assert "without evaluation, from step_time in the records" in stdout
    assert stdout.count(" 3.49") == 2  # 49 + 3 x 100 steps of 36 s, and in all
