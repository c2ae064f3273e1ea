"""A run that is killed or stopped ends as one that never was.

Compared are all records but for times, and the final weights, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import warm
from domainbed import algorithms
from domainbed.lib import preparation
from domainbed.scripts import train
from sweep_jobs import wait_until

from domainbed_carft.jobs.folder import JobFolder

from . import fakes
from .fakes import quick

STEPS = 30


def carft(pictures: Path, folder: Path, *more: str) -> list[str]:
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "lr": 1e-3}
    hparams |= {"total_steps": STEPS, "warmup_steps": 5}
    fixed = ("--algorithm", "CARFT", "--steps", str(STEPS), "--checkpoint_freq", "3")
    data = ("--dataset", str(pictures), "--hparams", json.dumps(hparams))
    return quick(folder, *fixed, *data, *more)


def start(arguments: list[str]) -> warm.Process:
    return warm.start("-m", "domainbed.scripts.train", *arguments)


def run(arguments: list[str]) -> int:
    return start(arguments).wait()


def outcome(folder: Path):
    """Records without what differs between any two runs, and the final weights."""
    records = fakes.records(folder)
    for record in records:
        del record["step_time"], record["args"]["output_dir"], record["args"]["workers"]
    weights = torch.load(folder / "model.pkl", weights_only=True)["model_dict"]
    best = torch.load(folder / "model_best.pkl", weights_only=True)
    return records, weights, best["model_dict"], best["best_step"]


def assert_same(folder: Path, undisturbed: Path) -> None:
    found, expected = outcome(folder), outcome(undisturbed)
    assert found[0] == expected[0]
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert found[3] == expected[3]
    names = [sorted(path.name for path in f.iterdir()) for f in (folder, undisturbed)]
    assert names[0] == names[1] and "state.pt" not in names[0] and "lock" not in names[0]


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(carft(pictures, folder)) == 0
    records = outcome(folder)[0]
    assert len(records) == 11 and records[-1]["loss_kl"] > 0
    return folder


MIXED = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize("numbers", [[signal.SIGKILL] * 20, [*MIXED, signal.SIGKILL]])
def test_ended_at_random_moments(pictures, undisturbed, tmp_path, numbers):
    """By twenty kills, or by whatever signal comes."""
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
    left, went_on = chance.sample(numbers, len(numbers)), set()
    while left:
        began, is_new = time.monotonic(), not folder.exists()
        process = start(carft(pictures, folder))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, longest))
            if is_new:
                longest = time.monotonic() - began  # no signal has to come later
        if process.returncode is None:
            os.kill(process.pid, left[-1])
        if process.wait():
            left.pop()
            went_on.add((folder / "state.pt").exists())
        if (folder / "done").exists():
            assert_same(folder, undisturbed)
            folder = tmp_path / f"{len(os.listdir(tmp_path))} ended"
    assert run(carft(pictures, folder)) == 0
    assert_same(folder, undisturbed)
    assert True in went_on


EVENTS = """
import os, signal, sys
from domainbed.scripts import train

folder, left, *arguments = sys.argv[1:]
left = int(left)

def watch(event, args):
    global left
    if event in ("os.rename", "os.remove") or event == "open" and args[2] & os.O_ACCMODE:
        left -= str(args[0]).startswith(folder)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
sys.exit(train.main(arguments))
"""


def test_killed_when_a_file_is_about_to_change(tmp_path):
    """Before these of the 26 changes that make a whole run."""
    assert run(quick(tmp_path / "whole", "--algorithm", "ERM")) == 0
    for number in (2, 6, 14, 20, 25, 26):
        arguments = quick(tmp_path / str(number), "--algorithm", "ERM")
        killed = warm.run("-c", EVENTS, tmp_path / str(number), number, *arguments)
        assert killed.returncode == -signal.SIGKILL
        assert run(arguments) == 0
        assert_same(tmp_path / str(number), tmp_path / "whole")


SIGNALLED = """
import os, sys
from domainbed.scripts import train
from domainbed_carft.method.algorithms import CARFT

place, number, *arguments = sys.argv[1:]
original = getattr(CARFT, place)
calls = []

def signalled(self, *args, **kwargs):
    calls.append(place)
    if len(calls) in (2, 8):
        os.kill(os.getpid(), int(number))
    return original(self, *args, **kwargs)

setattr(CARFT, place, signalled)
sys.exit(train.main(arguments))
"""


@pytest.mark.parametrize(
    ("place", "number"), [("step_on_device", signal.SIGTERM), ("predict", signal.SIGUSR1)]
)
def test_a_signal_saves_and_asks_to_be_started_again(
    pictures, undisturbed, tmp_path, place, number
):
    """At once, not only at the next checkpoint, in training as well as in an evaluation."""
    arguments = carft(pictures, tmp_path / "run", "--checkpoint_freq", "3")
    for _ in range(2):
        assert warm.run("-c", SIGNALLED, place, int(number), *arguments).returncode == 75
        said = (tmp_path / "run" / "err.txt").read_text().splitlines()[-1]
        assert said == f"train: stopped by {number.name}; to resume, rerun the command"
        state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        due = (state["steps_done"] - 1) % 3 == 0
        assert state["recorded"] != due  # it left during the evaluation of a step, or after one
        assert due or place == "step_on_device"
    assert run(arguments) == 0
    assert_same(tmp_path / "run", undisturbed)
    assert "Resumed after step" in (tmp_path / "run" / "out.txt").read_text()


def test_a_job_in_passes_goes_on_in_the_middle_of_one(pictures, tmp_path):
    """On a set of one environment, of which two steps have had 12 of 16 pictures."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only").symlink_to(next(pictures.iterdir()))
    hparams = {"batch_size": 6, "clip_backbone": "tiny", "lr": 1e-3, "sampling": "passes"}
    few = ("--test_envs", "--steps", "7", "--hparams", json.dumps({**hparams, "total_steps": 7}))
    whole, stopped = (carft(tmp_path / "one", tmp_path / name, *few) for name in "ab")
    assert run(whole) == 0
    command = ("-c", SIGNALLED, "step_on_device", int(signal.SIGTERM), *stopped)
    assert warm.run(*command).returncode == 75
    assert torch.load(tmp_path / "b" / "state.pt", weights_only=True)["steps_done"] == 2
    assert run(stopped) == 0
    assert_same(tmp_path / "b", tmp_path / "a")


def test_the_number_of_workers_changes_nothing(pictures, tmp_path):
    few = ("--steps", "8", "--checkpoint_freq", "4")
    for workers in ("0", "1", "3"):
        assert run(carft(pictures, tmp_path / workers, "--workers", workers, *few)) == 0
    for workers in ("1", "3"):
        assert_same(tmp_path / workers, tmp_path / "0")
    # And it may change on the way.
    process = start(carft(pictures, tmp_path / "changed", "--workers", "2", *few))
    wait_until((tmp_path / "changed" / "state.pt").exists)
    process.kill()
    process.wait()
    # But not the way pictures are made: others would be another run's.
    assert run(carft(pictures, tmp_path / "changed", "--pictures", "pillow", *few)) == 1
    said = (tmp_path / "changed" / "err.txt").read_text()
    assert "other arguments (pictures: 'fast, jitter by" in said and "'pillow' now)" in said
    assert run(carft(pictures, tmp_path / "changed", *few)) == 0
    assert_same(tmp_path / "changed", tmp_path / "0")


def test_a_signal_to_the_whole_group_reaches_the_loaders_processes_too(
    pictures, undisturbed, tmp_path
):
    """SLURM signals all processes of a job."""
    arguments = carft(pictures, tmp_path / "run", "--workers", "2")
    said = tmp_path / "run" / "out.txt"
    for times, moment in ((1, 0.3), (2, 0.0)):
        process = start(arguments)
        wait_until(lambda n=times: said.exists() and said.read_text().count("Workers: 2") == n)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 75, (tmp_path / "run" / "err.txt").read_text()
    assert run(carft(pictures, tmp_path / "run")) == 0
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.usefixtures("registered")
class TestWithAQuickAlgorithm:
    """The same without CLIP."""

    def stopped(self, folder: Path, *more: str, expected: int = 75) -> None:
        """Leave a run behind that has been stopped after five steps."""
        os.makedirs(folder, exist_ok=True)
        with fakes.stopped_in_step(5):
            assert train.main(quick(folder, *more)) == expected

    def test_weights_that_the_next_loss_shows_to_be_broken_are_not_the_best(
        self, tmp_path, monkeypatch
    ):
        assert train.main(quick(tmp_path / "whole")) == 0
        best = outcome(tmp_path / "whole")[3]
        original, calls = fakes.LinearSGD.update, []

        def update(self, *args):
            calls.append(1)
            return original(self, *args) | ({"loss": math.nan} if len(calls) > healthy else {})

        monkeypatch.setattr(fakes.LinearSGD, "update", update)
        for healthy, kept in ((best + 1, False), (best + 2, True)):
            calls.clear()
            folder = tmp_path / str(healthy)
            assert train.main(quick(folder, "--checkpoint_freq", "2")) == 0
            assert (folder / "model_best.pkl").exists() is kept
        assert outcome(folder)[3] == best

    def test_a_value_that_the_machine_has_settled_stays_on_another(self, tmp_path, monkeypatch):
        class Settles(fakes.LinearSGD):
            SETTLED = ("mode",)
            here = "this machine's"

            def __init__(self, *args):
                if args[3]["mode"] == "auto":
                    args[3]["mode"] = self.here
                super().__init__(*args)

        choose = preparation.choose_hparams
        monkeypatch.setattr(
            preparation,
            "choose_hparams",
            lambda args, stored: choose(args, stored) | {"mode": "auto"},
        )
        monkeypatch.setattr(algorithms, "LinearSGD", Settles)
        self.stopped(tmp_path)
        Settles.here = "another's"
        assert train.main(quick(tmp_path)) == 0
        modes = [record["hparams"]["mode"] for record in fakes.records(tmp_path)]
        assert modes == ["this machine's"] * 4

    def test_a_run_with_other_arguments_does_not_go_on(self, tmp_path, capsys):
        self.stopped(tmp_path)
        state = (tmp_path / "state.pt").read_bytes()
        assert train.main(quick(tmp_path, "--steps", "9", "--trial_seed", "1")) == 1
        said = capsys.readouterr().err
        assert "other arguments (steps: 7 then, 9 now; trial_seed: 0 then, 1 now)" in said
        assert "--restart" in said and "Traceback" not in said
        assert (tmp_path / "state.pt").read_bytes() == state
        assert train.main(quick(tmp_path, "--steps", "9", "--restart")) == 0
        assert [record["step"] for record in fakes.records(tmp_path)] == [0, 2, 4, 6, 8]
        aside = [json.loads(line)["step"] for line in (tmp_path / "results-1.jsonl").open()]
        assert aside == [0, 2]

    @pytest.mark.parametrize("content", [{}, [1], {"steps_done": 3}])
    def test_a_file_that_is_no_state_is_left_and_told(self, tmp_path, capsys, content):
        torch.save(content, tmp_path / "state.pt")
        assert train.main(quick(tmp_path)) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert "state.pt is not the state of a run" in said and "--restart" in said
        assert train.main(quick(tmp_path, "--restart")) == 0

    @pytest.mark.parametrize(
        ("more", "status"), [(["--hparams", "{"], 2), (["--hparams", '{"lr": "no rate"}'], 1)]
    )
    def test_a_restart_that_cannot_begin_leaves_all_there_is(self, tmp_path, more, status):
        self.stopped(tmp_path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".txt"}
        assert train.main(quick(tmp_path, "--restart", *more)) == status
        after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".txt"}
        assert after == before and {"state.pt", "model_best.pkl", "results.jsonl"} <= before.keys()
        assert train.main(quick(tmp_path)) == 0

    def test_a_cut_or_lost_record_is_written_again(self, tmp_path):
        assert train.main(quick(tmp_path / "whole")) == 0
        for name, left in (("cut", -30), ("lost", 0)):
            self.stopped(tmp_path / name)
            path = tmp_path / name / "results.jsonl"
            path.write_text(path.read_text()[:left])
            assert train.main(quick(tmp_path / name)) == 0
            assert_same(tmp_path / name, tmp_path / "whole")

    def test_an_algorithm_that_cannot_be_stored_trains_all_the_same(
        self, tmp_path, monkeypatch, capsys
    ):
        original = fakes.LinearSGD.__init__

        def init(self, *args):
            original(self, *args)
            self.batches = iter([1])

        monkeypatch.setattr(fakes.LinearSGD, "__init__", init)
        assert train.main(quick(tmp_path)) == 0
        said = capsys.readouterr().out
        assert said.count("Warning: this run cannot be resumed after an interruption:") == 1
        assert "batches (a list_iterator)" in said

        interrupted = tmp_path / "interrupted"
        self.stopped(interrupted, expected=1)
        assert "this algorithm cannot be stored" in capsys.readouterr().err
        assert train.main(quick(interrupted)) == 0
        assert [one["step"] for one in fakes.records(interrupted)] == [0, 2, 4, 6]  # each once

    def test_a_write_that_fails_is_told_and_the_state_before_is_intact(
        self, tmp_path, monkeypatch, capsys
    ):
        """As of a full disk: from the third step on no file may grow beyond 10 kB."""
        original, calls = fakes.LinearSGD.update, []
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def update(self, *args):
            calls.append(1)
            if len(calls) == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            return original(self, *args)

        monkeypatch.setattr(fakes.LinearSGD, "update", update)
        arguments = quick(tmp_path, "--checkpoint_freq", "1")
        try:
            for _ in range(2):
                assert train.main(arguments) == 1
                said = capsys.readouterr().err
                assert "state.pt cannot be written: " in said and " MiB are free; earlier" in said
                assert "Traceback" not in said
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert torch.load(tmp_path / "state.pt", weights_only=True)["steps_done"] == 2
        assert not list(tmp_path.glob(".*")) and not (tmp_path / "done").exists()
        assert train.main(arguments) == 0
        assert [record["step"] for record in fakes.records(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]

    def test_a_second_process_names_the_first_and_leaves(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(train, "PATIENCE_SECONDS", 0.1)
        with JobFolder(tmp_path).claim():
            assert train.main(quick(tmp_path)) == 73
            assert f"process {os.getpid()}, since " in capsys.readouterr().err
            assert not (tmp_path / "err.txt").exists()
        assert train.main(quick(tmp_path)) == 0
