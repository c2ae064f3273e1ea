"""Jobs that are killed or stopped resume to the results of an uninterrupted job.

All records (except times) and the final weights must be bit-identical.
"""

import contextlib
import itertools
import math
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from domainbed import algorithms, hparams_registry
from domainbed.scripts import train

from domainbed_carft.images import stages
from domainbed_carft.jobs.job_folder import JobFolder

from . import fakes
from .fakes import quick_arguments, start_train, stop_in_step, wait_for

pytestmark = pytest.mark.usefixtures("registered")


def assert_same_outcome(folder: Path, expected_folder: Path) -> None:
    """Assert that both jobs are done, with bit-identical records and weights."""
    assert fakes.comparable_records(folder) == fakes.comparable_records(expected_folder)
    for name in ("model.pkl", "model_best.pkl"):
        content, expected = (
            torch.load(path / name, weights_only=True) for path in (folder, expected_folder)
        )
        assert content.get("best_step") == expected.get("best_step")
        weights, expected_weights = content["model_dict"], expected["model_dict"]
        assert weights.keys() == expected_weights.keys()
        assert all(torch.equal(weights[key], expected_weights[key]) for key in weights)

    file_names = {path.name for path in folder.iterdir()}
    assert file_names == {path.name for path in expected_folder.iterdir()}
    assert not {"state.pt", "lock"} & file_names


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """Train LinearSGD without interruption, and return the folder."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "LinearSGD", fakes.LinearSGD, raising=False)
        assert train.main(quick_arguments(folder)) == 0
    return folder


def kill_before_change(folder: Path, number: int) -> None:
    """Kill this process before its change of this number to the folder's files, counted from 1."""
    changes = itertools.count(1)

    def watch(event, args):
        is_change = event in ("os.rename", "os.remove") or (
            event == "open" and args[2] & os.O_ACCMODE
        )
        if is_change and str(args[0]).startswith(str(folder)) and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.parametrize("number", [2, 6, 14, 20, 25, 26])
def test_job_killed_before_a_file_change_resumes_to_the_same_weights(
    uninterrupted, tmp_path, number
):
    # A complete job makes 26 changes.
    folder = tmp_path / "job"
    killed = start_train(quick_arguments(folder), begin=partial(kill_before_change, folder, number))
    assert wait_for(killed) == -signal.SIGKILL
    assert train.main(quick_arguments(folder)) == 0
    assert_same_outcome(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_the_state_after_the_step_and_exits_with_75(uninterrupted, tmp_path, number):
    for step in (2, 4):
        with fakes.before_step(step, lambda: os.kill(os.getpid(), number)):
            assert train.main(quick_arguments(tmp_path)) == 75
        last_line = (tmp_path / "err.txt").read_text().splitlines()[-1]
        assert last_line == f"train: stopped by {number.name}; to resume, rerun the command"

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["steps_done"], state["recorded"]) == (6, True)
    assert train.main(quick_arguments(tmp_path, "--workers", "1")) == 0
    assert "Resumed after step" in (tmp_path / "out.txt").read_text()
    assert_same_outcome(tmp_path, uninterrupted)


def signal_group_in_fifth_step() -> None:
    """Make this process send SIGTERM to itself and its loader processes, as SLURM does."""
    os.setpgrp()
    original = fakes.LinearSGD.update
    steps = itertools.count(1)

    def update(self, *args):
        if next(steps) == 5:
            os.killpg(0, signal.SIGTERM)
        return original(self, *args)

    fakes.LinearSGD.update = update


def test_signal_to_the_process_group_with_loaders_saves_the_state(uninterrupted, tmp_path):
    arguments = quick_arguments(tmp_path, "--workers", "2")
    process = start_train(arguments, begin=signal_group_in_fifth_step)
    assert wait_for(process) == 75, (tmp_path / "err.txt").read_text()
    assert train.main(quick_arguments(tmp_path)) == 0
    assert_same_outcome(tmp_path, uninterrupted)


def train_and_stop(folder: Path, expected: int = 75) -> None:
    """Train a job and stop it in its fifth step."""
    with stop_in_step(5):
        assert train.main(quick_arguments(folder)) == expected


def test_weights_before_a_nan_loss_are_not_saved_as_the_best(uninterrupted, tmp_path, monkeypatch):
    best_step = torch.load(uninterrupted / "model_best.pkl", weights_only=True)["best_step"]
    original = fakes.LinearSGD.update

    for finite_losses, is_kept in ((best_step + 1, False), (best_step + 2, True)):
        steps = itertools.count(1)

        def update(self, *args, steps=steps, finite_losses=finite_losses):
            values = original(self, *args)
            return values if next(steps) <= finite_losses else {**values, "loss": math.nan}

        monkeypatch.setattr(fakes.LinearSGD, "update", update)
        folder = tmp_path / str(finite_losses)
        assert train.main(quick_arguments(folder)) == 0
        best_weights = folder / "model_best.pkl"
        assert best_weights.exists() == is_kept
    assert torch.load(best_weights, weights_only=True)["best_step"] == best_step


class Resolving(fakes.LinearSGD):
    """Has a hyperparameter `mode` whose value "auto" is resolved on the machine."""

    machine_mode = "first machine"

    def recorded_facts(self):
        is_auto = self.hparams["mode"] == "auto"
        return {"mode": self.machine_mode if is_auto else self.hparams["mode"]}


def test_resumed_job_keeps_the_resolved_hyperparameter_of_another_machine(tmp_path, monkeypatch):
    default_hparams = hparams_registry.default_hparams
    monkeypatch.setattr(
        hparams_registry,
        "default_hparams",
        lambda *names: {**default_hparams(*names), "mode": "auto"},
    )
    monkeypatch.setattr(algorithms, "LinearSGD", Resolving)
    train_and_stop(tmp_path)

    monkeypatch.setattr(Resolving, "machine_mode", "second machine")
    assert train.main(quick_arguments(tmp_path)) == 0
    records = fakes.records(tmp_path)
    assert [record["mode"] for record in records] == ["first machine"] * 4
    assert {record["hparams"]["mode"] for record in records} == {"auto"}


class Comparing(fakes.LinearSGD):
    """Records the hyperparameters that differ from the defaults of its version."""

    changed_hparams = ()

    def recorded_facts(self):
        return {"changed_hparams": list(self.changed_hparams)}


def test_records_name_the_jitter_of_the_machine_that_continues(images, tmp_path, monkeypatch):
    arguments = quick_arguments(tmp_path, "--dataset", str(images))
    with stop_in_step(4):
        assert train.main(arguments) == 75
    monkeypatch.setattr(stages, "has_numba", lambda: False)
    assert train.main(arguments) == 0

    backends = [record["image_plan"]["jitter"] for record in fakes.records(tmp_path)]
    assert backends == ["numba", "numba", "torch", "torch"]
    described = [record["images"] for record in fakes.records(tmp_path)]
    assert described == [f"fast, jitter by {backend}" for backend in backends]
    weights = torch.load(tmp_path / "model.pkl", weights_only=True)
    assert weights["image_plan"]["jitter"] == "torch"


def test_job_resumes_in_a_version_with_other_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "LinearSGD", Comparing)
    train_and_stop(tmp_path)
    monkeypatch.setattr(Comparing, "changed_hparams", ["lr"])
    assert train.main(quick_arguments(tmp_path)) == 0
    assert fakes.records(tmp_path)[-1]["changed_hparams"] == ["lr"]


def test_job_with_other_arguments_does_not_resume(tmp_path, capsys):
    train_and_stop(tmp_path)
    state = (tmp_path / "state.pt").read_bytes()
    assert train.main(quick_arguments(tmp_path, "--steps", "9", "--trial_seed", "1")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "other arguments (steps: 7 then, 9 now; trial_seed: 0 then, 1 now)" in message
    assert (tmp_path / "state.pt").read_bytes() == state


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: {"steps_done": 3}, "state.pt is not the state of a job"),
        (lambda state: {**state, "format": 2}, "state.pt has format 2, expected 1"),
    ],
)
def test_invalid_state_is_refused_and_kept(tmp_path, capsys, change, problem):
    train_and_stop(tmp_path)
    path = tmp_path / "state.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    content = path.read_bytes()
    assert train.main(quick_arguments(tmp_path)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert problem in message and "delete the folder to start over" in message
    assert path.read_bytes() == content


def test_truncated_or_missing_record_is_written_again(uninterrupted, tmp_path):
    for name, end in (("truncated", -30), ("missing", 0)):
        train_and_stop(tmp_path / name)
        path = tmp_path / name / "results.jsonl"
        path.write_text(path.read_text()[:end])
        assert train.main(quick_arguments(tmp_path / name)) == 0
        assert_same_outcome(tmp_path / name, uninterrupted)


def test_job_in_the_folder_of_a_finished_one_appends_with_a_warning(tmp_path, capsys):
    for earlier_runs in (0, 1):
        assert train.main(quick_arguments(tmp_path)) == 0
        printed = capsys.readouterr().out
        assert printed.count("results.jsonl has each step again") == earlier_runs
    assert [record["step"] for record in fakes.records(tmp_path)] == 2 * [0, 2, 4, 6]


class Unstorable(fakes.LinearSGD):
    """Has an iterator, which cannot be stored."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = iter([1])


def test_algorithm_that_cannot_be_stored_trains_with_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(algorithms, "LinearSGD", Unstorable)
    train_and_stop(tmp_path, expected=1)
    printed = capsys.readouterr()
    assert printed.out.count("Warning: this job cannot be resumed after an interruption:") == 1
    assert "batches (a list_iterator)" in printed.out
    assert "this algorithm cannot be stored" in printed.err


def test_failed_write_is_an_error_and_keeps_the_earlier_state(tmp_path, capsys):
    # As on a full disk: from the third step on, no file can grow beyond 10 kB.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = quick_arguments(tmp_path, "--checkpoint_freq", "1")
    try:
        with fakes.before_step(
            3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        ):
            assert train.main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    (message,) = capsys.readouterr().err.splitlines()
    assert "state.pt cannot be written: " in message and " MiB are free" in message
    assert torch.load(tmp_path / "state.pt", weights_only=True)["steps_done"] == 2
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "done").exists()

    assert train.main(arguments) == 0
    assert [record["step"] for record in fakes.records(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]


def test_second_process_on_a_job_names_the_first_and_exits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "PATIENCE_SECONDS", 0.1)
    with JobFolder(tmp_path).claim():
        assert train.main(quick_arguments(tmp_path)) == 73
    assert f"process {os.getpid()}, since " in capsys.readouterr().err
    assert not (tmp_path / "err.txt").exists()
    assert train.main(quick_arguments(tmp_path)) == 0


def test_job_whose_folder_is_moved_and_reused_ends_at_the_next_checkpoint(tmp_path, capsys):
    job, moved = tmp_path / "job", tmp_path / "moved"
    with contextlib.ExitStack() as stack:

        def move_and_reuse():
            job.rename(moved)
            job.mkdir()
            stack.enter_context(JobFolder(job).claim())

        with (
            fakes.before_step(4, move_and_reuse),
            fakes.before_step(6, lambda: pytest.fail("trained after the checkpoint")),
        ):
            assert train.main(quick_arguments(job)) == 1
        assert "job was moved or removed" in capsys.readouterr().err
        assert [path.name for path in job.iterdir()] == ["lock"]

    assert train.main(quick_arguments(moved)) == 0
    assert [record["step"] for record in fakes.records(moved)] == [0, 2, 4, 6]
