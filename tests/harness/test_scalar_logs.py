"""`train --log`: what TensorBoard and W&B read is what results.jsonl has."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from domainbed.lib import scalar_logs
from domainbed.scripts import train

from . import fakes

STEPS = [0, 2, 4, 6]
NAME = "LinearSGD_Debug28_test0_trial0_hparams0"

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch, tmp_path_factory):
    """Offline, without reports to anybody, and with nobody's login or settings."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DOMAINBED_LOG"))]:
        monkeypatch.delenv(name)
    home = str(tmp_path_factory.mktemp("home"))
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "NETRC"):
        monkeypatch.setenv(name, home)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")


def run(folder: Path, *more: str, log: str = "tensorboard") -> int:
    return train.main([*fakes.quick(folder), *more, "--log", log])


def interrupted(folder: Path, at: int, log: str) -> None:
    """A run that was stopped after so many steps."""
    with fakes.stopped_in_step(at):
        assert run(folder, log=log) == 75


def recorded(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of the records' numbers, in single precision, found otherwise than in the harness."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            if type(value) in (int, float):
                curves.setdefault(name, []).append((step, float(np.float32(value))))
    return curves


def on_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard's own reader has them."""
    accumulating = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    place = folder / "tensorboard" / NAME
    accumulator = accumulating.EventAccumulator(str(place), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def entries(path: Path) -> Iterator[bytes]:
    """What is in a file of W&B's: LevelDB's log format after seven bytes of its own."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # no room for a head in this block
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def on_wandb(folder: Path) -> tuple[list[tuple[str, list[int]]], set[str]]:
    """Of each offline run in the order of time its id and steps; and all names of scalars."""
    protobuf = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    runs, names = [], set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime):
        steps, run_id = [], ""
        for entry in map(protobuf.Record.FromString, entries(path)):
            run_id = entry.run.run_id or run_id
            if entry.HasField("history"):
                found = {i.key or i.nested_key[0]: i.value_json for i in entry.history.item}
                steps.append(int(found["_step"]))
                names |= {name for name in found if name[0] != "_"}
        runs.append((run_id, steps))
    return runs, names


def test_tensorboard_has_the_records_also_after_an_interruption(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    interrupted(tmp_path, 4, "tensorboard")
    assert run(tmp_path) == 0
    curves = on_tensorboard(tmp_path)
    assert curves == recorded(tmp_path) and [step for step, _ in curves["loss"]] == STEPS
    assert f"TensorBoard: tensorboard --logdir {tmp_path}" in capsys.readouterr().out
    assert run(tmp_path) == 0  # another run in the folder: a log is one run's
    assert [step for step, _ in on_tensorboard(tmp_path)["loss"]] == STEPS


def test_an_interrupted_run_is_one_run_of_wandb(tmp_path):
    pytest.importorskip("wandb")
    interrupted(tmp_path, 4, "wandb")
    assert run(tmp_path, log="wandb") == 0
    runs, names = on_wandb(tmp_path)
    assert [steps for _, steps in runs] == [[0, 2], [4, 6]] and names == set(recorded(tmp_path))
    assert len({run_id for run_id, _ in runs}) == 1
    assert run(tmp_path, "--restart", log="wandb") == 0
    assert on_wandb(tmp_path)[0][-1][0] != runs[0][0]


def test_a_missing_login_is_told_once(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "login", refuse)
    monkeypatch.setattr(
        wandb, "setup", lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
    )
    advice = "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
    assert scalar_logs.problems(["wandb"]) == [f"--log wandb: you are not logged in; {advice}"]


def test_what_is_missing_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scalar_logs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard papyrus")
    assert train.main(["--dataset", "Debug28", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "--log tensorboard needs tensorboard: pip install tensorboard\n" in said
    assert "DOMAINBED_LOG has 'papyrus', expected names from tensorboard, wandb" in said
