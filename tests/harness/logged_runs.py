"""Runs of `train --log`, and what TensorBoard and W&B read of them.

TensorBoard's files are read by its own EventAccumulator. What W&B's own client sends, while the
run goes on or by `wandb sync`, is received by a server of ours (`wandb_server`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from domainbed.lib import scalar_logs
from domainbed.scripts import train

from . import wandb_server

# Its import takes seconds, in every worker that collects tests.
WITHOUT_WANDB = not any(importlib.metadata.distributions(name="wandb"))
needs_wandb = pytest.mark.skipif(WITHOUT_WANDB, reason="wandb is not installed")

STEPS = [0, 2, 4, 6]
NAME = "LinearSGD_Debug28_test0_trial0_hparams0"


def arguments(folder: Path, *more: str, log: tuple[str, ...] = ("tensorboard", "wandb")):
    command = "--algorithm LinearSGD --dataset Debug28 --workers 0 --steps 7 --checkpoint_freq 2"
    hparams = ["--hparams", '{"batch_size": 4}', "--output_dir", str(folder)]
    return [*command.split(), *hparams, *more, *(["--log", *log] if log else [])]


def quiet_wandb(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Offline, without reports to anybody, and with nobody's login or settings."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DOMAINBED_LOG"))]:
        patch.delenv(name)
    patch.setenv("HOME", str(home))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        patch.setenv(name, str(home))
    patch.setenv("NETRC", str(home / "netrc"))
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.setenv("WANDB_MODE", "offline")


@contextlib.contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[wandb_server.Server]:
    """A server, to which nothing goes unless the mode is online or something is synced."""
    made = wandb_server.Server()
    with wandb_server.serving(made):
        patch.setenv("WANDB_BASE_URL", made.url)
        patch.setenv("WANDB_API_KEY", wandb_server.KEY)
        yield made


def recorded(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and all numbers of the records, found here in another way than in the harness."""
    found = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        numbers = {name: v for name, v in record.items() if type(v) in (int, float)}
        assert {*record} - {*numbers} == {"args", "hparams"}
        found.append((step, numbers))
    return found


def on_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the one folder that is a run to TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = {path.parent for path in folder.glob("**/*tfevents*")}
    assert place.relative_to(folder) == Path("tensorboard") / NAME
    accumulator = EventAccumulator(str(place), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def assert_on_tensorboard(folder: Path) -> None:
    """TensorBoard keeps single precision."""
    records, curves = recorded(folder), on_tensorboard(folder)
    assert sorted(curves) == sorted(records[0][1])
    for name, points in curves.items():
        expected = [(step, float(np.float32(numbers[name]))) for step, numbers in records]
        assert points == expected, name


def assert_on_wandb(received: wandb_server.Run, folder: Path) -> None:
    """W&B adds names of its own, which begin with an underscore; a NaN is a word in JSON."""
    rows = [
        (row["_step"], {n: v for n, v in row.items() if n[0] != "_"}) for row in received.history
    ]
    assert rows == recorded(folder)


def sync(folder: Path, *flags: str) -> None:
    (place,) = (folder / "wandb").glob(f"*run-*-{run_id(folder)}*")
    command = [sys.executable, "-m", "wandb", "sync", *flags, str(place)]
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    where = env["HOME"]  # it writes into the current folder
    done = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run_id(folder: Path) -> str:
    return (folder / "wandb" / "domainbed-run-id").read_text()


def killing(monkeypatch, number: int, at: int) -> None:
    """Let the next runs get a signal after a record is written and before it is logged."""
    original = scalar_logs.Logs.catch_up
    calls = []

    def catch_up(self, records):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
            time.sleep(0.01 if number == signal.SIGTERM else 60)
        original(self, records)

    monkeypatch.setattr(scalar_logs.Logs, "catch_up", catch_up)


def forked(arguments: list[str]) -> int:
    """Start `train` in a fork of the tests' own process, with what is patched there; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        status = train.main(arguments)
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(arguments: list[str]) -> int:
    return ended(forked(arguments))
