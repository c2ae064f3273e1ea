"""`train --log`: what TensorBoard and W&B read is what results.jsonl has."""

import json
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
    """Offline, without reports to anybody, and with nobody's login or settings.

    W&B reads them once a process, which another test may have made it do.
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
    """The exit status of a run of four records that is logged."""
    return train.main([*fakes.quick_arguments(folder), *flags, "--log", log])


def run_and_interrupt(folder: Path, log: str) -> None:
    """Start a run and stop it in its fourth step."""
    with fakes.stop_in_step(4):
        assert run(folder, log=log) == 75


def recorded_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of the records' numbers, in single precision, found otherwise than in the harness."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            if type(value) in (int, float):
                curves.setdefault(name, []).append((step, float(np.float32(value))))
    return curves


def tensorboard_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard's own reader has them."""
    accumulating = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_folder = folder / "tensorboard" / NAME
    accumulator = accumulating.EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    accumulator.Reload()

    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def wandb_steps(path: Path) -> list[int]:
    """The steps in a file of W&B's, each below 10; in protobuf's encoding a digit as JSON."""
    steps = re.findall(rb"\x12\x05_step\x82\x01\x01(\d)", path.read_bytes())
    return sorted({int(step) for step in steps})


def test_tensorboard_has_all_records_after_an_interruption(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    run_and_interrupt(tmp_path, "tensorboard")
    assert run(tmp_path) == 0

    curves = tensorboard_curves(tmp_path)
    assert curves == recorded_curves(tmp_path)
    assert [step for step, _ in curves["loss"]] == STEPS
    assert f"TensorBoard: tensorboard --logdir {tmp_path}" in capsys.readouterr().out

    assert run(tmp_path) == 0  # another run in the folder: a log is one run's
    assert [step for step, _ in tensorboard_curves(tmp_path)["loss"]] == STEPS


@pytest.mark.slow
def test_an_interrupted_run_is_a_single_wandb_run(tmp_path):
    pytest.importorskip("wandb")
    run_and_interrupt(tmp_path, "wandb")
    assert run(tmp_path, log="wandb") == 0

    def files() -> list[Path]:
        return sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)

    # W&B's own process may write the last entries after the run has ended.
    wait_until(lambda: wandb_steps(files()[-1]) == STEPS, seconds=30)
    first, second = files()
    assert wandb_steps(first) == [0, 2]
    assert first.name == second.name  # has the run's id
    assert all(name.encode() in second.read_bytes() for name in recorded_curves(tmp_path))

    assert run(tmp_path, log="wandb") == 0  # another run in the folder
    assert len({path.name for path in files()}) == 2


def test_a_missing_wandb_login_is_one_problem(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "login", refuse)
    settings = types.SimpleNamespace(mode="online")
    monkeypatch.setattr(wandb, "setup", lambda: types.SimpleNamespace(settings=settings))

    advice = "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
    assert scalar_logs.problems(["wandb"]) == [f"--log wandb: you are not logged in; {advice}"]


def test_missing_libraries_and_unknown_names_are_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(scalar_logs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard papyrus")
    assert train.main(["--dataset", "Debug28", "--output_dir", str(tmp_path)]) == 2

    message = capsys.readouterr().err
    assert "--log tensorboard needs tensorboard: pip install tensorboard\n" in message
    assert "DOMAINBED_LOG has 'papyrus', expected names from tensorboard, wandb" in message
