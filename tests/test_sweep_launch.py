"""`carft sweep launch`: its findings on the data, its estimates, and how its jobs end."""

import math
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_trees import even, grow
from sweep_folders import add_attempts, finish, record, write_declaration, write_launched_sweep
from sweep_jobs import carft

from domainbed_carft import launchers
from domainbed_carft.data import benchmarks
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.cost import Cost
from domainbed_carft.sweep import costs, declaration_file, states, upkeep
from domainbed_carft.sweep import launch as launching
from domainbed_carft.sweep.launch import SKIP_VARIABLE


@pytest.fixture
def out(tmp_path, monkeypatch):
    for name in (SKIP_VARIABLE, "DOMAINBED_LOG", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "out"


@pytest.fixture
def launch(out, monkeypatch):
    """Return a function that launches three jobs, with a function as the launcher."""

    def start(launcher, *flags):
        monkeypatch.setattr(launchers, "make", lambda *args: launcher)
        return carft("launch", *write_declaration(out.parent), "--output_dir", out, "--yes", *flags)

    return start


def finish_all(jobs):
    for job in jobs:
        finish(job)
    return []


def test_launch_reports_unfinished_jobs_and_skips_failed_ones_until_retry(launch, out):
    def leave_unfinished(jobs):
        failed, stopped, refused = jobs
        add_attempts(failed, 2)
        add_attempts(stopped, 75)
        words = "No space left on device"
        return [SimpleNamespace(folder=str(refused.folder), status=127, last_words=words)]

    done = launch(leave_unfinished)
    assert done.returncode == 1
    assert "1 job failed:" in done.stderr and "exit status 2: words of 2" in done.stderr
    assert "2 jobs not done:" in done.stderr and "exit status 75: words of 75" in done.stderr
    assert "No space left" in done.stderr and "carft sweep retry" in done.stderr

    done = launch(finish_all)
    assert done.returncode == 1 and "1 failed job is not launched" in done.stdout
    upkeep.retry(out)
    assert launch(finish_all).returncode == launch(finish_all).returncode == 0


def test_launch_waits_for_jobs_of_another_live_launch(launch, foreign_processes):
    def leave_first_to_another_launch(jobs):
        first, *others = jobs
        foreign_processes.queue(first)
        foreign_processes.hold(first)
        finish_all(others)

        def end_other_launch():
            finish(first)
            foreign_processes.kill()

        threading.Timer(0.5, end_other_launch).start()

    assert launch(leave_first_to_another_launch).returncode == 0


@pytest.mark.parametrize("kind", [str, Path])
def test_plan_writes_nothing_until_it_runs(out, monkeypatch, kind):
    monkeypatch.setattr(launchers, "make", lambda *arguments: finish_all)
    sweep = kind(write_declaration(out.parent)[0])
    plan = launching.plan(sweep, kind("/data"), kind(out), "local")
    assert len(plan.jobs_to_run) == len(plan.jobs) == plan.estimate_costs()[costs.TOTAL].jobs == 3
    assert [job.args["data_dir"] for job in plan.jobs] == ["/data"] * 3
    assert plan.problems == plan.data_problems == [] and plan.skips_training_in_splits
    assert not out.exists()

    assert launching.run_plan(plan) == []
    assert len(states.read_state(kind(out)).in_state(states.DONE)) == 3
    assert launching.plan(sweep, "/data", out, "local").jobs_to_run == []


@pytest.mark.parametrize(("name", "launched_count"), [("pool", 3), ("local", 3), ("slurm", 2)])
def test_jobs_queued_by_another_launcher_run_in_a_free_slot_of_this_machine(
    launch, foreign_processes, name, launched_count
):
    launched_folders = []

    def note_folders(jobs):
        launched_folders.append([job.folder for job in jobs])
        if name != "slurm" and len(launched_folders) > 1:
            finish_all(jobs)

    launch(note_folders, "--launcher", "slurm")
    foreign_processes.queue(SimpleNamespace(folder=launched_folders[0][0]))
    assert launch(note_folders, "--launcher", name).returncode == 0
    first, second = launched_folders
    assert len(second) == launched_count and set(second) == set(first[-launched_count:])


def test_log_and_keep_weights_reach_jobs_without_changing_identity(launch):
    launches = []

    def note_jobs(jobs):
        launches.append([(job.line, job.variables) for job in jobs])

    launch(note_jobs)
    launch(note_jobs, "--log", "tensorboard", "--keep-weights", "none")
    usual = {SKIP_VARIABLE: "1"}
    flags = {"DOMAINBED_LOG": "tensorboard", "DOMAINBED_KEEP_WEIGHTS": "none", **usual}
    plain, with_flags = launches
    assert len(plain) == 3 and all(variables == usual for _, variables in plain)
    assert with_flags == [(line, flags) for line, _ in plain]


def test_jobs_skip_training_in_splits_until_a_flag_or_variable_changes_it(launch, monkeypatch):
    def launch_and_get_value(*flags):
        values = set()

        def note_values(jobs):
            values.update(job.variables[SKIP_VARIABLE] for job in jobs)

        launch(note_values, *flags)
        return values

    assert launch_and_get_value() == {"1"}
    assert launch_and_get_value("--training-in-splits") == {"0"}
    assert launch_and_get_value("--launcher", "slurm") == {"0"}
    monkeypatch.setenv(SKIP_VARIABLE, "1")
    assert launch_and_get_value() == {"1"}
    assert launch_and_get_value("--training-in-splits") == {"0"}
    monkeypatch.setenv(SKIP_VARIABLE, "yes")
    assert f"{SKIP_VARIABLE} is 'yes', expected 0 or 1" in launch(finish_all).stderr


def launch_data(datasets, *flags, **keys):
    """Launch a sweep of these datasets from the current folder."""
    sweep, *_ = write_declaration(".", datasets=datasets, **{"algorithms": ["CARFT"], **keys})
    return carft("launch", sweep, "--output_dir", "out", *flags)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Make a usable PACS of an unknown edition and a damaged VLCS in the current folder."""
    monkeypatch.chdir(tmp_path)
    for benchmark in map(benchmarks.get, ("PACS", "VLCS")):
        folders = [environment.folder for environment in benchmark.environments]
        grow(tmp_path / "data" / benchmark.folder, even(benchmark.classes, folders))
    (tmp_path / "data" / "VLCS" / "__MACOSX").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_launch_refuses_broken_data_before_the_first_job(data, launcher):
    shutil.rmtree(data / "PACS" / "photo")
    words = (["VLCS", "PACS"], "--data_dir", data, "--launcher", launcher)
    refused = launch_data(*words, algorithms=["ERM", "CARFT"])
    assert refused.returncode == 1
    for name in ("VLCS", "PACS"):
        assert f"- the data of {name} in {data}/{name} is broken: " in refused.stderr
    assert refused.stderr.count("or set the hparam data_edition to unverified") == 2

    dry_run = launch_data(*words, "--dry-run")
    assert dry_run.returncode == 1 and "__MACOSX" in dry_run.stderr
    assert "Data: VLCS: broken: " in dry_run.stdout and "8 jobs: 8 not l" in dry_run.stdout
    assert "40,008" in dry_run.stdout and not Path("out").exists()  # steps of both


def test_data_missing_on_this_machine_is_a_problem_for_pool_but_not_for_slurm(tmp_path):
    sweep, *_ = write_declaration(tmp_path, datasets=["PACS"], algorithms=["CARFT"])
    plans = [
        launching.plan(sweep, "/nowhere", tmp_path / "out", name) for name in ("pool", "slurm")
    ]
    assert ["/nowhere" in "".join(plan.problems) for plan in plans] == [True, False]


@pytest.mark.parametrize(
    ("dataset", "steps", "expected"),
    [
        # 17 checkpoints at steps 0, 300, ..., 4800, and another at the last step, 5000.
        ("PACS", None, (5001, 5001 * 32 * 3, 18 * 9991)),
        ("PACS", 301, (301, 301 * 32 * 3, 2 * 9991)),
        ("DomainNet", 1, (1, 32 * 5, 586575)),
        ("EmojiStyles", None, (101, 101 * 16 * 3, 3 * 1716)),
    ],
)
def test_costs_count_trained_and_evaluated_images(dataset, steps, expected):
    text = f"name: x\nalgorithms: [CARFT]\ndatasets: [{dataset}]\n"
    declaration = declaration_file.parse(f"{text}steps: {steps}" if steps else text, "x.yaml")
    (job, *_) = declaration.jobs("D", Path("o"))
    cost = costs.estimate_job_cost(job, declaration.facts[dataset])
    assert (cost.steps, cost.trained, cost.evaluated) == expected


def test_dry_run_explains_only_the_columns_that_it_prints():
    """The images of an own folder are counted by the jobs, not by a dry run."""
    row = ("", "my/images", "CARFT")
    cost = Cost(jobs=1, steps=10, trained=320, evaluated=math.nan, training_hours=math.nan)
    printed = costs.format_table({row: cost, costs.TOTAL: cost}, skips=True)
    assert "trained" in printed.splitlines()[0] and "evaluated" not in printed
    assert "Hours:" not in printed


def get_cost(facts=None, skips=False, keys=""):
    """Return the cost of a job of 301 steps on PACS with the target art_painting."""
    text = f"name: x\nalgorithms: [CARFT]\ndatasets: [PACS]\nsteps: 301\n{keys}"
    declaration = declaration_file.parse(text, "x.yaml")
    (job, *_) = declaration.jobs("D", Path("o"))
    assert job.key.test_envs == {0}
    return costs.estimate_job_cost(job, replace(declaration.facts["PACS"], **facts or {}), skips)


OUT_SPLITS = int(2344 * 0.2) + int(1670 * 0.2) + int(3929 * 0.2)  # of the three others of PACS


@pytest.mark.parametrize(
    ("facts", "skips", "hparams", "expected"),
    [
        ({}, False, "{}", 9991),
        ({}, True, "{}", 2048 + OUT_SPLITS),
        ({"held_out": True}, False, "{}", 2048 + OUT_SPLITS),
        ({}, False, "{average: swad}", 9991 + OUT_SPLITS),  # also the loss on the out-splits
    ],
)
def test_evaluated_images_follow_the_splits_that_a_checkpoint_needs(
    facts, skips, hparams, expected
):
    assert get_cost(facts, skips, f"hparams: {hparams}").evaluated == 2 * expected


def test_cost_counts_the_checkpoints_of_the_job_and_has_the_largest_memory():
    keys = "overrides: [{checkpoint_freq: 100}]"
    assert get_cost(keys=keys).evaluated == 4 * 9991  # at steps 0, 100, 200 and 300
    memories = [None, 12.0, 3.0]
    assert costs.add([Cost(memory_gb=memory) for memory in memories]).memory_gb == 12.0
    assert costs.add([Cost()]).memory_gb is None


def test_hours_follow_from_the_mean_step_time_of_all_jobs_with_records(tmp_path):
    text = "name: x\nalgorithms: [CARFT]\ntrials: 1\ndatasets: [PACS]\nsteps: 100\n"
    jobs = write_launched_sweep(tmp_path, text)
    for job, seconds in zip(jobs, (36.0, 36.0, 72.0)):
        record(job, 0, step_time=90.0)
        record(job, 99, step_time=seconds)
    state = states.read_state(tmp_path)
    estimated = costs.estimate(state.statuses, manifest.read(tmp_path).datasets)
    assert estimated[costs.TOTAL].training_hours == pytest.approx(100 * 48 / 3600)


def test_dry_run_estimates_hours_from_step_times_in_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "name: x\nalgorithms: [CARFT]\ntrials: 1\ndatasets: [PACS]\nsteps: 100\n"
    job, *_ = write_launched_sweep("out", text)
    stdout = launch_data(["PACS"], "--data_dir", "D", "--dry-run", steps=100).stdout
    assert stdout.endswith("once a job has records, or after carft preflight.\n")
    for step, seconds in ((0, 90.0), (50, 36.0)):
        record(job, step, step_time=seconds)
    stdout = launch_data(["PACS"], "--data_dir", "D", "--dry-run", steps=100).stdout
    assert "without evaluation, from step_time in the records" in stdout
    assert stdout.count(" 3.49") == 2  # (49 + 3 x 100) steps of 36 s, in the row and in total
