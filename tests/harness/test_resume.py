"""A run that is killed or stopped ends as one that never was.

Compared are all records but for times, and the final weights, to the bit.
"""

import contextlib
import itertools
import json
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

from domainbed_carft.jobs.folder import JobFolder

from . import fakes
from .fakes import quick_arguments, start, status, stop_in_step

pytestmark = pytest.mark.usefixtures("registered")

STEPS = 7


def carft(images: Path, folder: Path, *flags: str) -> list[str]:
    """Arguments of a run of CARFT of three records; `flags` go over them."""
    hparams = {"batch_size": 2, "clip_backbone": "tiny", "lr": 1e-3}
    hparams |= {"total_steps": STEPS, "warmup_steps": 3}
    fixed = ("--algorithm", "CARFT", "--steps", str(STEPS), "--checkpoint_freq", "3")
    data = ("--dataset", str(images), "--hparams", json.dumps(hparams))
    return quick_arguments(folder, *fixed, *data, *flags)


def assert_same_outcome(folder: Path, undisturbed: Path) -> None:
    """Assert that both runs are over and have left the same, to the bit."""
    assert fakes.comparable_records(folder) == fakes.comparable_records(undisturbed)
    for name in ("model.pkl", "model_best.pkl"):
        content, expected = (
            torch.load(path / name, weights_only=True) for path in (folder, undisturbed)
        )
        assert content.get("best_step") == expected.get("best_step")
        weights, expected_weights = content["model_dict"], expected["model_dict"]
        assert weights.keys() == expected_weights.keys()
        assert all(torch.equal(weights[key], expected_weights[key]) for key in weights)

    file_names = {path.name for path in folder.iterdir()}
    assert file_names == {path.name for path in undisturbed.iterdir()}
    assert not {"state.pt", "lock"} & file_names


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of LinearSGD that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "LinearSGD", fakes.LinearSGD, raising=False)
        assert train.main(quick_arguments(folder)) == 0
    return folder


def kill_before_change(folder: Path, number: int) -> None:
    """Kill this process before the change of this number to a file in the folder, from 1."""
    changes = itertools.count(1)

    def watch(event, args):
        is_change = event in ("os.rename", "os.remove") or (
            event == "open" and args[2] & os.O_ACCMODE
        )
        if is_change and str(args[0]).startswith(str(folder)) and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.parametrize("number", [2, 6, 14, 20, 25, 26])
def test_a_run_killed_before_a_file_changes_resumes_to_the_same_weights(whole, tmp_path, number):
    # A whole run makes 26 changes.
    folder = tmp_path / "run"
    killed = start(quick_arguments(folder), begin=partial(kill_before_change, folder, number))
    assert status(killed) == -signal.SIGKILL
    assert train.main(quick_arguments(folder)) == 0
    assert_same_outcome(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_state_after_its_step_and_exits_with_status_75(whole, tmp_path, number):
    for step in (2, 4):
        with fakes.before_step(step, lambda: os.kill(os.getpid(), number)):
            assert train.main(quick_arguments(tmp_path)) == 75
        last_line = (tmp_path / "err.txt").read_text().splitlines()[-1]
        assert last_line == f"train: stopped by {number.name}; to resume, rerun the command"

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["steps_done"], state["recorded"]) == (6, True)
    assert train.main(quick_arguments(tmp_path, "--workers", "1")) == 0
    assert "Resumed after step" in (tmp_path / "out.txt").read_text()
    assert_same_outcome(tmp_path, whole)


class SignalsItsGroup(fakes.LinearSGD):
    """In its fifth step all its processes get SIGTERM, as SLURM signals a job."""

    steps = itertools.count(1)

    def update(self, *args):
        if next(self.steps) == 5:
            os.killpg(0, signal.SIGTERM)
        return super().update(*args)


def signal_the_group() -> None:
    """Give this process a group of its own, which its algorithm stops."""
    os.setpgrp()
    algorithms.LinearSGD = SignalsItsGroup


def test_a_signal_to_the_process_group_with_loaders_saves_the_state(whole, tmp_path):
    process = start(quick_arguments(tmp_path, "--workers", "2"), begin=signal_the_group)
    assert status(process) == 75, (tmp_path / "err.txt").read_text()
    assert train.main(quick_arguments(tmp_path)) == 0
    assert_same_outcome(tmp_path, whole)


def leave_stopped_run(folder: Path, expected: int = 75) -> None:
    """Leave a run behind that has been stopped after five steps."""
    with stop_in_step(5):
        assert train.main(quick_arguments(folder)) == expected


def test_weights_before_a_nan_loss_are_not_saved_as_the_best(whole, tmp_path, monkeypatch):
    best_step = torch.load(whole / "model_best.pkl", weights_only=True)["best_step"]
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
    """Its hparam `mode` is the machine's if it is "auto"."""

    RESOLVED_HPARAMS = ("mode",)
    mode_of_machine = "this machine's"

    def recorded_facts(self):
        is_auto = self.hparams["mode"] == "auto"
        return {"mode": self.mode_of_machine if is_auto else self.hparams["mode"]}


def test_a_hyperparameter_resolved_on_one_machine_stays_on_another(tmp_path, monkeypatch):
    default_hparams = hparams_registry.default_hparams
    monkeypatch.setattr(
        hparams_registry,
        "default_hparams",
        lambda *names: {**default_hparams(*names), "mode": "auto"},
    )
    monkeypatch.setattr(algorithms, "LinearSGD", Resolving)
    leave_stopped_run(tmp_path)

    monkeypatch.setattr(Resolving, "mode_of_machine", "another's")
    assert train.main(quick_arguments(tmp_path)) == 0
    records = fakes.records(tmp_path)
    assert [record["mode"] for record in records] == ["this machine's"] * 4
    assert {record["hparams"]["mode"] for record in records} == {"auto"}


def test_a_run_is_not_resumed_with_other_arguments(tmp_path, capsys):
    leave_stopped_run(tmp_path)
    state = (tmp_path / "state.pt").read_bytes()
    assert train.main(quick_arguments(tmp_path, "--steps", "9", "--trial_seed", "1")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "other arguments (steps: 7 then, 9 now; trial_seed: 0 then, 1 now)" in message
    assert "to start this one over, delete its folder" in message
    assert (tmp_path / "state.pt").read_bytes() == state


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: {"steps_done": 3}, "state.pt is not the state of a run"),
        (lambda state: {**state, "format": 2}, "state.pt has format 2, expected 1"),
    ],
)
def test_an_invalid_state_is_refused_and_kept(tmp_path, capsys, change, problem):
    leave_stopped_run(tmp_path)
    path = tmp_path / "state.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    content = path.read_bytes()
    assert train.main(quick_arguments(tmp_path)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert problem in message and "delete the folder to start over" in message
    assert path.read_bytes() == content


def test_a_truncated_or_missing_record_is_written_again(whole, tmp_path):
    for name, end in (("cut", -30), ("lost", 0)):
        leave_stopped_run(tmp_path / name)
        path = tmp_path / name / "results.jsonl"
        path.write_text(path.read_text()[:end])
        assert train.main(quick_arguments(tmp_path / name)) == 0
        assert_same_outcome(tmp_path / name, whole)


def test_a_run_in_the_folder_of_a_finished_one_says_that_it_appends(tmp_path, capsys):
    for earlier_runs in (0, 1):
        assert train.main(quick_arguments(tmp_path)) == 0
        printed = capsys.readouterr().out
        assert printed.count("results.jsonl has each step again") == earlier_runs
    assert [record["step"] for record in fakes.records(tmp_path)] == 2 * [0, 2, 4, 6]


class Unstorable(fakes.LinearSGD):
    """Keeps an iterator."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = iter([1])


def test_an_algorithm_that_cannot_be_stored_trains_with_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(algorithms, "LinearSGD", Unstorable)
    leave_stopped_run(tmp_path, expected=1)
    printed = capsys.readouterr()
    assert printed.out.count("Warning: this run cannot be resumed after an interruption:") == 1
    assert "batches (a list_iterator)" in printed.out
    assert "this algorithm cannot be stored" in printed.err

    assert train.main(quick_arguments(tmp_path)) == 0
    # Each step is there once.
    assert [record["step"] for record in fakes.records(tmp_path)] == [0, 2, 4, 6]


def test_a_failed_write_is_an_error_and_keeps_the_earlier_state(tmp_path, capsys):
    # As of a full disk: from the third step on no file may grow beyond 10 kB.
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
    assert "state.pt cannot be written: " in message and " MiB are free; earlier" in message
    assert torch.load(tmp_path / "state.pt", weights_only=True)["steps_done"] == 2
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "done").exists()

    assert train.main(arguments) == 0
    assert [record["step"] for record in fakes.records(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_second_process_on_a_job_names_the_first_and_exits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "PATIENCE_SECONDS", 0.1)
    with JobFolder(tmp_path).claim():
        assert train.main(quick_arguments(tmp_path)) == 73
    assert f"process {os.getpid()}, since " in capsys.readouterr().err
    assert not (tmp_path / "err.txt").exists()
    assert train.main(quick_arguments(tmp_path)) == 0


@pytest.mark.parametrize("is_anew", [False, True])
def test_a_job_whose_folder_is_moved_ends_at_the_next_checkpoint(tmp_path, capsys, is_anew):
    job, moved = tmp_path / "job", tmp_path / "moved"
    with contextlib.ExitStack() as stack:

        def move():
            job.rename(moved)
            if is_anew:
                job.mkdir()
                stack.enter_context(JobFolder(job).claim())

        with fakes.before_step(4, move), fakes.before_step(6, lambda: pytest.fail("went on")):
            assert train.main(quick_arguments(job)) == 1
        assert "job was moved or removed while this job ran there." in capsys.readouterr().err
        assert {path.name for path in job.glob("*")} == ({"lock"} if is_anew else set())

    assert train.main(quick_arguments(moved)) == 0
    assert [record["step"] for record in fakes.records(moved)] == [0, 2, 4, 6]
