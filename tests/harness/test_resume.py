"""A run that is killed or stopped ends as one that never was.

Compared are all records but for times, and the final weights, to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from domainbed import algorithms, hparams_registry
from domainbed.scripts import train
from sweep_jobs import wait_until

from domainbed_carft.jobs.folder import JobFolder

from . import fakes
from .fakes import quick

STEPS = 7


def carft(pictures: Path, folder: Path, *flags: str) -> list[str]:
    """Arguments of a run of CARFT of three records; `flags` go over them."""
    hparams = {"batch_size": 2, "clip_backbone": "tiny", "lr": 1e-3}
    hparams |= {"total_steps": STEPS, "warmup_steps": 3}
    fixed = ("--algorithm", "CARFT", "--steps", str(STEPS), "--checkpoint_freq", "3")
    data = ("--dataset", str(pictures), "--hparams", json.dumps(hparams))
    return quick(folder, *fixed, *data, *flags)


def start(arguments: list[str]) -> warm.Process:
    """A process of `train`."""
    return warm.start("-m", "domainbed.scripts.train", *arguments)


def run(arguments: list[str]) -> int:
    """The exit status of `train`, in a process of its own."""
    return start(arguments).wait()


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, the records without what differs between any two runs."""

    records: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    best_weights: dict[str, torch.Tensor]
    best_step: int
    file_names: list[str]


def outcome_of(folder: Path) -> Outcome:
    """What the run in the folder has left."""
    records = fakes.records(folder)
    for record in records:
        del record["step_time"]
        del record["evaluation_time"]
        del record["args"]["output_dir"]
        del record["args"]["workers"]

    best = torch.load(folder / "model_best.pkl", weights_only=True)
    return Outcome(
        records=records,
        weights=torch.load(folder / "model.pkl", weights_only=True)["model_dict"],
        best_weights=best["model_dict"],
        best_step=best["best_step"],
        file_names=sorted(path.name for path in folder.iterdir()),
    )


def assert_same_outcome(folder: Path, undisturbed: Path) -> None:
    """Assert that both runs are over and have left the same, to the bit."""
    outcome = outcome_of(folder)
    expected = outcome_of(undisturbed)

    assert outcome.records == expected.records
    assert_same_weights(outcome.weights, expected.weights)
    assert_same_weights(outcome.best_weights, expected.best_weights)
    assert outcome.best_step == expected.best_step
    assert outcome.file_names == expected.file_names
    assert not {"state.pt", "lock"} & {*outcome.file_names}


def assert_same_weights(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> Path:
    """The folder of a run of CARFT that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(carft(pictures, folder)) == 0

    records = outcome_of(folder).records
    assert len(records) == 3
    assert records[-1]["loss_kl"] > 0
    return folder


MIXED = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([*MIXED, *[signal.SIGKILL] * 3], id="signals of each kind and kills"),
        pytest.param([signal.SIGKILL] * 20, id="twenty kills", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_random_moments_resumes_to_the_same_weights(
    pictures, undisturbed, tmp_path, numbers
):
    # What is ignored here, as by nohup, the children ignore as well.
    numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    chance = random.Random(time.time_ns())
    folder = tmp_path / "first"

    began = time.monotonic()
    process = start(carft(pictures, folder))
    wait_until((folder / "state.pt").exists)
    longest = 2 * (time.monotonic() - began)  # seconds until a signal
    process.kill()
    process.wait()

    signals = chance.sample(numbers, len(numbers))
    has_been_resumable = False
    while signals:
        began = time.monotonic()
        is_new = not folder.exists()
        process = start(carft(pictures, folder))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, longest))
            if is_new:
                longest = time.monotonic() - began  # no signal has to come later
        if process.returncode is None:
            os.kill(process.pid, signals[-1])
        if process.wait():
            signals.pop()
            has_been_resumable = has_been_resumable or (folder / "state.pt").exists()

        if (folder / "done").exists():
            if process.returncode < 0:  # by a signal, maybe before it deleted its lock
                (folder / "lock").unlink(missing_ok=True)
            assert_same_outcome(folder, undisturbed)
            folder = tmp_path / f"{len(os.listdir(tmp_path))} ended"

    assert run(carft(pictures, folder)) == 0
    assert_same_outcome(folder, undisturbed)
    assert has_been_resumable


KILLED_BEFORE_A_CHANGE = """
import os, signal, sys
from domainbed.scripts import train

folder, changes_to_come, *arguments = sys.argv[1:]
changes_to_come = int(changes_to_come)

def watch(event, args):
    global changes_to_come
    if event in ("os.rename", "os.remove") or event == "open" and args[2] & os.O_ACCMODE:
        changes_to_come -= str(args[0]).startswith(folder)
        if changes_to_come == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
sys.exit(train.main(arguments))
"""


@pytest.fixture(scope="module")
def whole_erm_run(tmp_path_factory) -> Path:
    """The folder of a run of ERM that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("erm") / "whole"
    assert run(quick(folder, "--algorithm", "ERM")) == 0
    return folder


@pytest.mark.parametrize(
    "number", [2, 14, 25, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 20, 26))]
)
def test_a_run_killed_before_a_file_changes_resumes_to_the_same_weights(
    whole_erm_run, tmp_path, number
):
    """Before these of the 26 changes that make a whole run."""
    arguments = quick(tmp_path / "run", "--algorithm", "ERM")
    killed = warm.run("-c", KILLED_BEFORE_A_CHANGE, tmp_path / "run", number, *arguments)

    assert killed.returncode == -signal.SIGKILL
    assert run(arguments) == 0
    assert_same_outcome(tmp_path / "run", whole_erm_run)


SIGNALLED_IN_A_METHOD = """
import os, sys
from domainbed.scripts import train
from domainbed_carft.method.algorithms import CARFT

method, number, *arguments = sys.argv[1:]
original = getattr(CARFT, method)
calls = []

def signalled(self, *args, **kwargs):
    calls.append(method)
    if len(calls) in (2, 8):
        os.kill(os.getpid(), int(number))
    return original(self, *args, **kwargs)

setattr(CARFT, method, signalled)
sys.exit(train.main(arguments))
"""


@pytest.mark.parametrize(
    ("method", "number"), [("step_on_device", signal.SIGTERM), ("predict", signal.SIGUSR1)]
)
def test_a_signal_saves_the_state_and_exits_with_status_75(
    pictures, undisturbed, tmp_path, method, number
):
    """At once, not only at the next checkpoint, in training as well as in an evaluation."""
    arguments = carft(pictures, tmp_path / "run", "--checkpoint_freq", "3")
    for _ in range(2):
        assert (
            warm.run("-c", SIGNALLED_IN_A_METHOD, method, int(number), *arguments).returncode == 75
        )
        last_line = (tmp_path / "run" / "err.txt").read_text().splitlines()[-1]
        assert last_line == f"train: stopped by {number.name}; to resume, rerun the command"

        state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        is_checkpoint = (state["steps_done"] - 1) % 3 == 0
        # It stopped in the evaluation of a checkpoint, or after a step that is none.
        assert state["recorded"] != is_checkpoint
        assert is_checkpoint or method == "step_on_device"

    assert run(arguments) == 0
    assert_same_outcome(tmp_path / "run", undisturbed)
    assert "Resumed after step" in (tmp_path / "run" / "out.txt").read_text()


def test_a_job_that_samples_in_passes_resumes_within_a_pass(pictures, tmp_path):
    """On a set of one environment, of which two steps have had 6 of 8 pictures."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only").symlink_to(next(pictures.iterdir()))
    hparams = {"batch_size": 3, "clip_backbone": "tiny", "lr": 1e-3, "sampling": "passes"}
    flags = ["--test_envs", "--steps", "5"]
    flags += ["--hparams", json.dumps({**hparams, "total_steps": 5})]
    assert run(carft(tmp_path / "one", tmp_path / "whole", *flags)) == 0

    arguments = carft(tmp_path / "one", tmp_path / "stopped", *flags)
    command = ("-c", SIGNALLED_IN_A_METHOD, "step_on_device", int(signal.SIGTERM), *arguments)
    assert warm.run(*command).returncode == 75
    state = torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)
    assert state["steps_done"] == 2

    assert run(arguments) == 0
    assert_same_outcome(tmp_path / "stopped", tmp_path / "whole")


def test_the_number_of_workers_does_not_change_the_weights(pictures, tmp_path):
    flags = ("--steps", "5")
    for workers in ("0", "3"):
        assert run(carft(pictures, tmp_path / workers, "--workers", workers, *flags)) == 0
    assert_same_outcome(tmp_path / "3", tmp_path / "0")

    # It may change on the way.
    process = start(carft(pictures, tmp_path / "changed", "--workers", "1", *flags))
    wait_until((tmp_path / "changed" / "state.pt").exists)
    process.kill()
    process.wait()

    assert run(carft(pictures, tmp_path / "changed", *flags)) == 0
    assert_same_outcome(tmp_path / "changed", tmp_path / "0")


def test_a_signal_to_the_process_group_with_loaders_saves_the_state(
    pictures, undisturbed, tmp_path
):
    """SLURM signals all processes of a job."""
    arguments = carft(pictures, tmp_path / "run", "--workers", "2")
    stdout = tmp_path / "run" / "out.txt"

    def has_started(times):
        return stdout.exists() and stdout.read_text().count("Workers: 2") == times

    for times, delay in ((1, 0.1), (2, 0.0)):
        process = start(arguments)
        wait_until(functools.partial(has_started, times))
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 75, (tmp_path / "run" / "err.txt").read_text()

    assert run(carft(pictures, tmp_path / "run")) == 0
    assert_same_outcome(tmp_path / "run", undisturbed)


@pytest.mark.usefixtures("registered")
class TestWithAQuickAlgorithm:
    """Resuming without CLIP."""

    def leave_stopped_run(self, folder: Path, *flags: str, expected: int = 75) -> None:
        """Leave a run behind that has been stopped after five steps."""
        os.makedirs(folder, exist_ok=True)
        with fakes.stopped_in_step(5):
            assert train.main(quick(folder, *flags)) == expected

    def test_weights_before_a_nan_loss_are_not_saved_as_the_best(self, tmp_path, monkeypatch):
        assert train.main(quick(tmp_path / "whole")) == 0
        best_step = outcome_of(tmp_path / "whole").best_step

        def run_with_finite_losses(count):
            """The folder of a run whose losses are NaN after so many steps."""
            original = fakes.LinearSGD.update
            steps = itertools.count(1)

            def update(self, *args):
                values = original(self, *args)
                return values if next(steps) <= count else {**values, "loss": math.nan}

            folder = tmp_path / str(count)
            with monkeypatch.context() as patch:
                patch.setattr(fakes.LinearSGD, "update", update)
                assert train.main(quick(folder, "--checkpoint_freq", "2")) == 0
            return folder

        folder = run_with_finite_losses(best_step + 1)
        assert not (folder / "model_best.pkl").exists()

        folder = run_with_finite_losses(best_step + 2)
        assert outcome_of(folder).best_step == best_step

    def test_a_hyperparameter_resolved_on_one_machine_stays_on_another(self, tmp_path, monkeypatch):
        class Resolving(fakes.LinearSGD):
            RESOLVED_HPARAMS = ("mode",)
            mode_of_machine = "this machine's"

            def recorded_facts(self):
                is_auto = self.hparams["mode"] == "auto"
                return {"mode": self.mode_of_machine if is_auto else self.hparams["mode"]}

        default_hparams = hparams_registry.default_hparams
        monkeypatch.setattr(
            hparams_registry,
            "default_hparams",
            lambda *names: {**default_hparams(*names), "mode": "auto"},
        )
        monkeypatch.setattr(algorithms, "LinearSGD", Resolving)
        self.leave_stopped_run(tmp_path)

        Resolving.mode_of_machine = "another's"
        assert train.main(quick(tmp_path)) == 0
        records = fakes.records(tmp_path)
        assert [record["mode"] for record in records] == ["this machine's"] * 4
        assert {record["hparams"]["mode"] for record in records} == {"auto"}

    def test_a_run_is_not_resumed_with_other_arguments(self, tmp_path, capsys):
        self.leave_stopped_run(tmp_path)
        state = (tmp_path / "state.pt").read_bytes()
        assert train.main(quick(tmp_path, "--steps", "9", "--trial_seed", "1")) == 2
        message = capsys.readouterr().err
        assert "other arguments (steps: 7 then, 9 now; trial_seed: 0 then, 1 now)" in message
        assert "to start this one over, delete its folder" in message
        assert "Traceback" not in message
        assert (tmp_path / "state.pt").read_bytes() == state

    @pytest.mark.parametrize("content", [{}, [1], {"steps_done": 3}])
    def test_an_invalid_state_file_is_refused_and_kept(self, tmp_path, capsys, content):
        torch.save(content, tmp_path / "state.pt")
        assert train.main(quick(tmp_path)) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert "state.pt is not the state of a run" in message
        assert "delete the folder to start over" in message

    def test_a_state_of_another_format_is_refused_in_a_line(self, tmp_path, capsys):
        self.leave_stopped_run(tmp_path)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        torch.save({**state, "format": 2}, tmp_path / "state.pt")
        assert train.main(quick(tmp_path)) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "state.pt has format 2, expected 1" in message

    def test_a_truncated_or_missing_record_is_written_again(self, tmp_path):
        assert train.main(quick(tmp_path / "whole")) == 0
        for name, end in (("cut", -30), ("lost", 0)):
            self.leave_stopped_run(tmp_path / name)
            path = tmp_path / name / "results.jsonl"
            path.write_text(path.read_text()[:end])

            assert train.main(quick(tmp_path / name)) == 0
            assert_same_outcome(tmp_path / name, tmp_path / "whole")

    def test_a_run_in_the_folder_of_a_finished_one_says_that_it_appends(self, tmp_path, capsys):
        for earlier_runs in (0, 1):
            assert train.main(quick(tmp_path)) == 0
            printed = capsys.readouterr().out
            assert printed.count("results.jsonl has each step again") == earlier_runs
        assert [record["step"] for record in fakes.records(tmp_path)] == 2 * [0, 2, 4, 6]

    def test_an_algorithm_that_cannot_be_stored_trains_with_a_warning(
        self, tmp_path, monkeypatch, capsys
    ):
        original = fakes.LinearSGD.__init__

        def init(self, *args):
            original(self, *args)
            self.batches = iter([1])

        monkeypatch.setattr(fakes.LinearSGD, "__init__", init)
        assert train.main(quick(tmp_path)) == 0
        printed = capsys.readouterr().out
        assert printed.count("Warning: this run cannot be resumed after an interruption:") == 1
        assert "batches (a list_iterator)" in printed

        interrupted = tmp_path / "interrupted"
        self.leave_stopped_run(interrupted, expected=1)
        assert "this algorithm cannot be stored" in capsys.readouterr().err
        assert train.main(quick(interrupted)) == 0
        # Each step is there once.
        assert [record["step"] for record in fakes.records(interrupted)] == [0, 2, 4, 6]

    def test_a_failed_write_is_an_error_and_keeps_the_earlier_state(
        self, tmp_path, monkeypatch, capsys
    ):
        """As of a full disk: from the third step on no file may grow beyond 10 kB."""
        original = fakes.LinearSGD.update
        steps = itertools.count(1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def update(self, *args):
            if next(steps) == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            return original(self, *args)

        monkeypatch.setattr(fakes.LinearSGD, "update", update)
        arguments = quick(tmp_path, "--checkpoint_freq", "1")
        try:
            for _ in range(2):
                assert train.main(arguments) == 1
                message = capsys.readouterr().err
                assert "state.pt cannot be written: " in message
                assert " MiB are free; earlier" in message
                assert "Traceback" not in message
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        assert torch.load(tmp_path / "state.pt", weights_only=True)["steps_done"] == 2
        assert not list(tmp_path.glob(".*"))
        assert not (tmp_path / "done").exists()

        assert train.main(arguments) == 0
        assert [record["step"] for record in fakes.records(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]

    def test_a_second_process_on_a_job_names_the_first_and_exits(
        self, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(train, "PATIENCE_SECONDS", 0.1)
        with JobFolder(tmp_path).claim():
            assert train.main(quick(tmp_path)) == 73
            assert f"process {os.getpid()}, since " in capsys.readouterr().err
            assert not (tmp_path / "err.txt").exists()
        assert train.main(quick(tmp_path)) == 0

    @pytest.mark.parametrize("is_anew", [False, True])
    def test_a_job_whose_folder_is_moved_ends_at_the_next_checkpoint(
        self, tmp_path, capsys, monkeypatch, is_anew
    ):
        """It writes nothing into a folder that another process has made there meanwhile."""
        job, moved = tmp_path / "job", tmp_path / "moved"
        update = fakes.LinearSGD.update
        others = contextlib.ExitStack()
        calls = []

        def move_before_step_3(*arguments: Any) -> dict[str, float]:
            calls.append(1)
            if len(calls) == 4:
                job.rename(moved)
                if is_anew:
                    job.mkdir()
                    others.enter_context(JobFolder(job).claim())
            return update(*arguments)

        monkeypatch.setattr(fakes.LinearSGD, "update", move_before_step_3)
        with others:
            assert train.main(quick(job)) == 1
            assert "job was moved or removed while this job ran there." in capsys.readouterr().err
            assert len(calls) == 5  # of 7
            written = {path.name for path in job.glob("*")}
        assert written == ({"lock"} if is_anew else set()) and job.exists() == is_anew

        assert train.main(quick(moved)) == 0
        assert [record["step"] for record in fakes.records(moved)] == [0, 2, 4, 6]
