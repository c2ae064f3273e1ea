"""`train --log`: TensorBoard and W&B receive the scalars of results.jsonl."""

import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from domainbed.lib import scalar_logs
from domainbed.scripts import train
from sweep_jobs import wait_until

from . import fakes

STEPS = [0, 2, 4, 6]
NAME = "LinearSGD_Debug28_test0_trial0_hparams0"

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch, tmp_path_factory):
    """Run W&B offline, without error reports, logins or settings of the user.

    W&B reads its settings once per process, so an earlier test can have loaded them.
    """
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DOMAINBED_LOG"))]:
        monkeypatch.delenv(name)

    home = str(tmp_path_factory.mktemp("home"))
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "NETRC"):
        monkeypatch.setenv(name, home)

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")


def run(folder: Path, *flags: str, log: str = "tensorboard") -> int:
    """Train a job with four records and a log, and return the exit status."""
    return train.main([*fakes.quick_arguments(folder), *flags, "--log", log])


def run_and_interrupt(folder: Path, log: str) -> None:
    """Train a job and stop it in its fourth step."""
    with fakes.stop_in_step(4):
        assert run(folder, log=log) == 75


def recorded_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of the records' numbers, in single precision."""
    records = fakes.records(folder)
    names = {name for name, value in records[0].items() if type(value) in (int, float)} - {"step"}
    return {
        name: [(record["step"], float(np.float32(record[name]))) for record in records]
        for name in names
    }


def tensorboard_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves with TensorBoard's reader."""
    accumulating = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_folder = folder / "tensorboard" / NAME
    accumulator = accumulating.EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    accumulator.Reload()

    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def wandb_steps(path: Path) -> list[int]:
    """Find the steps, each below 10, in a file of W&B: a digit as JSON in protobuf's encoding."""
    steps = re.findall(rb"\x12\x05_step\x82\x01\x01(\d)", path.read_bytes())
    return sorted({int(step) for step in steps})


def test_tensorboard_log_has_all_records_after_an_interruption(tmp_path):
    pytest.importorskip("tensorboard")
    run_and_interrupt(tmp_path, "tensorboard")
    assert run(tmp_path) == 0

    curves = tensorboard_curves(tmp_path)
    assert curves == recorded_curves(tmp_path)
    assert [step for step, _ in curves["loss"]] == STEPS

    assert run(tmp_path) == 0  # trained again in the same folder: replaces the log
    assert [step for step, _ in tensorboard_curves(tmp_path)["loss"]] == STEPS


@pytest.mark.slow
def test_interrupted_job_is_a_single_wandb_run(tmp_path):
    pytest.importorskip("wandb")
    run_and_interrupt(tmp_path, "wandb")
    assert run(tmp_path, log="wandb") == 0

    def files() -> list[Path]:
        return sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)

    # The process of W&B can write the last entries after the job has ended.
    wait_until(lambda: wandb_steps(files()[-1]) == STEPS, seconds=30)
    first, second = files()
    assert wandb_steps(first) == [0, 2]
    assert first.name == second.name  # contains the run's id
    assert all(name.encode() in second.read_bytes() for name in recorded_curves(tmp_path))


def test_missing_wandb_login_is_one_problem(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    settings = types.SimpleNamespace(mode="online")
    monkeypatch.setattr(wandb, "setup", lambda: types.SimpleNamespace(settings=settings))
    monkeypatch.setattr(wandb, "login", lambda verify: False)

    (problem,) = scalar_logs.problems(["wandb"])
    assert problem.startswith("--log wandb: you are not logged in; run `wandb login`, or")


def test_missing_log_library_and_unknown_log_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scalar_logs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard papyrus")
    assert train.main(["--dataset", "Debug28", "--output_dir", str(tmp_path)]) == 2

    message = capsys.readouterr().err
    assert "--log tensorboard needs tensorboard: pip install tensorboard\n" in message
    assert "DOMAINBED_LOG has 'papyrus', expected names from tensorboard, wandb" in message
