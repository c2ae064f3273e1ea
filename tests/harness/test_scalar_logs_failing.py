"""`train --log` of runs that are killed, stopped and gone on with, and where logging fails."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import warm
from domainbed.lib import checkpoints

from . import fakes, logged_runs, wandb_server
from .conftest import PLUGIN
from .logged_runs import (
    NAME,
    STEPS,
    arguments,
    assert_on_tensorboard,
    assert_on_wandb,
    ended,
    forked,
    killing,
    needs_wandb,
    recorded,
    run,
    run_id,
    sync,
)
from .test_full_disk import mounted
from .test_resume import wait_until

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")

pytestmark = pytest.mark.usefixtures("registered", "quiet_wandb")


@pytest.fixture
def quiet_wandb(monkeypatch, tmp_path_factory):
    logged_runs.quiet_wandb(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def server(monkeypatch):
    with logged_runs.serving(monkeypatch) as made:
        yield made


# Interrupted


@needs_wandb
def test_interrupted_runs_have_the_logs_of_one_that_was_not(tmp_path, server):
    """Killed between record and log, told to stop, killed at any time; logs are offline."""
    for number, at, status in (
        (signal.SIGKILL, 1, -signal.SIGKILL),
        (signal.SIGTERM, 1, 75),
    ):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, number, at)
            assert run(arguments(tmp_path)) == status
    pid = forked(arguments(tmp_path))
    time.sleep(random.Random(time.time_ns()).uniform(0.0, 4.0))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    begun = run_id(tmp_path)
    if not (tmp_path / "done").exists():  # it may have been faster than the signal
        assert run(arguments(tmp_path)) == 0
    assert [step for step, _ in recorded(tmp_path)] == STEPS
    assert_on_tensorboard(tmp_path)
    assert len(list((tmp_path / "tensorboard" / NAME).iterdir())) == 1
    sync(tmp_path)
    assert [*server.runs] == [run_id(tmp_path)]
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)
    assert begun == run_id(tmp_path)


@needs_wandb
def test_what_was_begun_in_the_same_second_is_one_run(tmp_path, server, monkeypatch):
    """W&B calls its folders by the second, and adds a number where there is one already."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for at in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, signal.SIGTERM, at)
            assert run(arguments(tmp_path, log=("wandb",))) == 75
    assert run(arguments(tmp_path, log=("wandb",))) == 0
    sync(tmp_path)
    assert [*server.runs] == [run_id(tmp_path)]
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)


@needs_wandb
@pytest.mark.slow
def test_what_was_synced_half_way_is_whole_after_the_next_sync(tmp_path, server, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path, log=("wandb",))) == 75
    sync(tmp_path)
    received = server.runs[run_id(tmp_path)]
    half = [row["_step"] for row in received.history]
    assert half == [0, 2]
    before = run_id(tmp_path)
    assert run(arguments(tmp_path, log=("wandb",))) == 0
    assert f"sent to Weights & Biases as {before}." in (tmp_path / "out.txt").read_text()
    sync(tmp_path)
    assert [row["_step"] for row in received.history] == half
    assert [*server.runs] == [before, run_id(tmp_path)]
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)


@needs_wandb
def test_online_a_killed_run_is_gone_on_with(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "0.2")
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGSTOP, 3)  # the third record is written, and not logged
        pid = forked(arguments(tmp_path, log=("wandb",)))
        wait_until(lambda: sum(len(one.lines) for one in server.runs.values()) == 2)
        wait_until(lambda: len(recorded(tmp_path)) == 3)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    changed = ("--workers", "1")  # as may be
    assert run(arguments(tmp_path, *changed, log=("wandb", "wandb"))) == 0
    (received,) = server.runs.values()
    assert_on_wandb(received, tmp_path)
    said = (tmp_path / "out.txt").read_text()
    assert f"Weights & Biases: {server.url}/someone/domainbed/runs/{run_id(tmp_path)}" in said


@needs_wandb
def test_restart_removes_the_logs_of_this_job_alone(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path)) == 75
    before = run_id(tmp_path)
    others = [
        tmp_path / "tensorboard" / "mine" / "events.out.tfevents.1.host",
        tmp_path / "wandb" / "offline-run-20260101_000000-mine" / "run-mine.wandb",
    ]
    for path in others:
        path.parent.mkdir()
        path.touch()
    assert run(arguments(tmp_path, "--restart", log=())) == 0
    assert all(path.exists() for path in others)
    assert not (tmp_path / "tensorboard" / NAME).exists()
    assert not list((tmp_path / "wandb").glob(f"*{before}*"))


def test_states_of_before_there_were_logs_are_gone_on_with(tmp_path, monkeypatch):
    original = checkpoints.Files.state

    def state(self):
        return {name: v for name, v in original(self).items() if name != "begins_at"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Files, "state", state)
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path, log=("tensorboard",))) == 75
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    assert_on_tensorboard(tmp_path)


# Failing


DYING = """
import os, signal, subprocess, sys, time
from domainbed import algorithms
from domainbed.scripts import train
update, calls, end = algorithms.LinearSGD.update, [], int(sys.argv[1])
def killing(self, *args):
    calls.append(1)
    if len(calls) == 4:
        mine = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="]
        children = subprocess.run(mine, capture_output=True, text=True).stdout.splitlines()
        (service,) = (line.split()[0] for line in children if "wandb" in line)
        os.kill(int(service), signal.SIGKILL)
        time.sleep(0.5)
    if len(calls) == end:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(self, *args)
algorithms.LinearSGD.update = killing
sys.exit(train.main(sys.argv[2:]))
"""


@needs_wandb
def test_wandbs_process_dies_and_nothing_is_lost(tmp_path, server):
    """Neither where the run comes to its end nor where it is stopped after that."""
    env = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    for end, status in ((6, 75), (0, 0)):
        words = arguments(tmp_path, "--checkpoint_freq", "1")
        done = warm.run("-c", DYING, end, *words, env=env)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert done.stdout.count("Warning: Weights & Biases is not logged to any more") == 1
        (tmp_path / "done").unlink(missing_ok=True)
        if end == 6:
            (tmp_path / "state.pt").unlink()  # so that it dies once more, now in all seven steps
    assert_on_tensorboard(tmp_path)
    sync(tmp_path)
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)


@needs_wandb
@pytest.mark.slow
def test_the_network_fails_and_what_is_on_disk_can_be_sent_later(tmp_path, monkeypatch):
    server = wandb_server.Server()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    waiting, begin = os.pipe()
    original = fakes.LinearSGD.update

    def update(self, *args):
        if not getattr(self, "told", False):
            self.told = True
            (tmp_path / "begun").touch()
            os.read(waiting, 1)
        return original(self, *args)

    monkeypatch.setattr(fakes.LinearSGD, "update", update)
    folder = tmp_path / "run"
    with wandb_server.serving(server) as port:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        pid = forked(arguments(folder, log=("wandb",)))
        wait_until((tmp_path / "begun").exists)
    os.write(begin, b"x")
    assert ended(pid) == 0
    assert server.runs[run_id(folder)].history == [] and (folder / "done").exists()
    with wandb_server.serving(server, port):
        sync(folder, "--include-online")
    assert_on_wandb(server.runs[run_id(folder)], folder)


FULL = """
import contextlib, pathlib, sys
from domainbed import algorithms
from domainbed.scripts import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
filler = pathlib.Path(sys.argv[1]) / "filler"
update = algorithms.LinearSGD.update
for frees in (True, False):
    calls = []
    def filling(self, *args):
        calls.append(1)
        if len(calls) == 2:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        if len(calls) == 18 and frees:
            filler.unlink()
        return update(self, *args)
    algorithms.LinearSGD.update = filling
    assert train.main({arguments}) == 0
    if frees:
        points = EventAccumulator({place!r}).Reload().Scalars("loss")
        print("steps", [event.step for event in points], file=sys.stderr)
"""


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path):
    """Its file system is full for a while, then, in another run, to the end."""
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    place = str(folder / "tensorboard" / NAME)  # seen in the namespace of its file system only
    many = ("--steps", "20", "--checkpoint_freq", "1")
    code = FULL.format(place=place, arguments=arguments(folder, *many, log=("tensorboard",)))
    done = mounted(folder / "tensorboard", "size=64k", code)
    assert done.returncode == 0, done.stderr
    said = (folder / "out.txt").read_text()
    assert "Traceback" not in said + done.stderr
    warned = "Warning: TensorBoard is not logged to any more: [Errno 28] No space left on device"
    assert said.count(warned) == 2
    assert done.stderr.splitlines()[-1] == f"steps {list(range(20))}"
    assert said.count("Warning: TensorBoard has not got everything: ") == 1
    assert [step for step, _ in recorded(folder)] == 2 * list(range(20))
